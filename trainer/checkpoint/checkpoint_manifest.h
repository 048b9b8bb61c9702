// What a checkpoint consists of, to the byte: the table in checkpoint.h5 and the COMMITTED marker.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"

namespace lamina {

// One dataset of a shard: elements [begin, end) of a tensor, contiguous at `offset` of the file, little-endian.
struct StoredPiece {
  std::string tensor;
  DType dtype = DType::f32;
  Shape shape;  // of the whole tensor
  int64_t begin = 0;
  int64_t end = 0;
  int64_t offset = 0;  // bytes
  uint64_t hash = 0;   // of the bytes, taken from memory when they were written

  int64_t num_bytes() const { return (end - begin) * size_of(dtype); }
  std::string dataset() const;  // "/parameters/model.norm.weight[0:1024]"
};

struct ShardFile {
  std::string name;
  int64_t num_bytes = 0;
  uint64_t rest_hash = 0;           // of all bytes outside the pieces, in the file's order
  std::vector<StoredPiece> pieces;  // by offset
};

struct Manifest {
  CheckpointInfo info;
  std::vector<ShardFile> shards;
};

// JSON. A shard's text is what a rank sends to rank 0, and the table holds all of them.
std::string to_text(const ShardFile& shard);
ShardFile parse_shard(const std::string& text);

// Throws InternalError unless every tensor has one shape and dtype and its pieces cover each element once.
// The pieces of each tensor, by begin.
struct TensorLayout {
  CheckpointTensor tensor;
  struct Part {
    size_t shard;
    size_t piece;
  };  // indices into the shards
  std::vector<Part> parts;
};
std::map<std::string, TensorLayout> make_tensor_layouts(std::span<const ShardFile> shards);

inline constexpr const char* index_name = "checkpoint.h5";
inline constexpr const char* marker_name = "COMMITTED";
inline constexpr int64_t format_version = 1;

// Writes <folder>/checkpoint.h5 and returns the text of the COMMITTED marker that goes with it.
std::string write_index(const std::filesystem::path& folder, const Manifest& manifest);

// Verifies COMMITTED and checkpoint.h5 before reading them. Throws CheckpointDamaged.
Manifest read_manifest(const std::filesystem::path& checkpoint);

// Error whose file and reason are also at hand. what(): "<checkpoint>: <file>: <reason>".
class CheckpointDamaged : public Error {
 public:
  CheckpointDamaged(const std::filesystem::path& checkpoint, CheckpointProblem problem)
      : Error("{}: {}: {}", checkpoint.string(), problem.file, problem.reason), problem_(std::move(problem)) {}
  const CheckpointProblem& problem() const { return problem_; }

 private:
  CheckpointProblem problem_;
};

}  // namespace lamina
