// Checkpoints. A folder `step-00000100` in the run's `checkpoints/`:
//
//   shard-00000.h5 ..   one per rank: the element ranges it owns, as 1-d datasets "/<tensor>[<begin>:<end>]"
//   checkpoint.h5       "/<tensor>" with its logical shape (virtual datasets over the shards), the run's state as
//                       attributes, "/tokenizer": the tokenizer's file, and "/table": every file, tensor and piece with its place in
//                       the file and its checksum (JSON)
//   COMMITTED           written last: size and checksum of checkpoint.h5, and its own checksum
//
// Checksums (XXH3) cover every byte of every file: a piece each, and the rest of a shard (HDF5's own records) once;
// they are compared on the raw bytes, before the HDF5 library sees the file. Nothing is gathered: a rank writes what it
// owns, and a load takes any range from whatever pieces hold it, so the number of ranks may change.
//
// Every floating-point value of a checkpoint is finite. One that is not is refused at a save; in a checkpoint of an older version it
// counts as damage.
//
// The folder is written as `step-00000100.tmp`, fsynced, renamed, then committed: whatever moment the process dies at,
// the newest committed checkpoint stays whole. The next save removes what such a death left behind.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/tensor/view.h"
#include "parallel/comm/communicator.h"

namespace lamina {

// Elements [begin, end) of a tensor's row-major order. Saved from `data`, loaded into it.
struct TensorPiece {
  std::string name;  // "parameters/model.norm.weight", "optimizer/m/model.norm.weight"
  Shape shape;       // of the whole tensor
  int64_t begin = 0;
  int64_t end = 0;
  TensorView data;  // contiguous, end - begin elements; fp32, fp64 or int32, on the CPU
};

// As a token file keeps it (data/tokenizer.h).
struct StoredTokenizer {
  std::string name, model;
  bool operator==(const StoredTokenizer&) const = default;
};

struct CheckpointInfo {
  int64_t step = 0;
  std::string config_yaml;  // resolved
  std::string sampler_fingerprint;
  int64_t sequences_consumed = 0;  // the sampler's position
  uint64_t seed = 0;               // random numbers are functions of (seed, stream, index): this is the RNG's state
  int world_size = 0;              // set by save_checkpoint from the communicator
  int data_parallel = 0;
  std::string program_version;
  std::string written_at;                    // UTC, ISO 8601; set by save_checkpoint
  std::optional<StoredTokenizer> tokenizer;  // absent: of an older program, or imported without
  std::map<std::string, std::string> extra;  // "threads" of a run's: as threads_of_ranks() has them
};

struct CheckpointTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

struct CheckpointProblem {
  std::string file;    // inside the checkpoint's folder
  std::string reason;  // what was found and what was expected
};

std::string checkpoint_folder_name(int64_t step);  // "step-00000100"

// A value that no checkpoint may hold; the message names the tensor and the element.
class NotFinite : public Error {
 public:
  using Error::Error;
};

// Collective. Every element of every tensor is in exactly one rank's `mine`. Keeps the newest `keep` committed
// checkpoints (0: all), and deletes only after the new one is committed. Any rank's failure (a full disk) is an Error
// with the path on every rank, a value that is not finite on any rank is NotFinite on all of them; the temporary folder is removed
// and the checkpoints before it are untouched.
void save_checkpoint(const std::filesystem::path& checkpoints_dir, const CheckpointInfo& info,
                     std::span<const TensorPiece> mine, comm::Communicator& comm, int64_t keep);

// Rank 0's. The half of save_checkpoint that deletes, for a caller that passes it keep: 0 and waits for a proof that the new one is good.
void remove_older_checkpoints(const std::filesystem::path& checkpoints_dir, int64_t step, int64_t keep);

// Rank 0's. Takes the checkpoint of `step`, if there is one, out of those that find_checkpoint looks at: from its parameters the next
// step has no finite loss, so no start gets past it. It is kept as "step-00000100.diverged" until the next save.
void set_checkpoint_aside(const std::filesystem::path& checkpoints_dir, int64_t step);

// The newest committed checkpoint that passes verification. One that doesn't is logged by name with its reason, and the
// one before it is tried. Empty when nothing was ever committed; when there are committed ones and all are refused, an
// Error that names them, because starting over would in time delete them.
// The collective form shares the files out among the ranks; all return the same.
std::optional<std::filesystem::path> find_checkpoint(const std::filesystem::path& checkpoints_dir);
std::optional<std::filesystem::path> find_checkpoint(const std::filesystem::path& checkpoints_dir,
                                                     comm::Communicator& comm);

// Committed or not is all that is looked at. Oldest first; a missing folder has none.
std::vector<std::filesystem::path> list_committed_checkpoints(const std::filesystem::path& checkpoints_dir);

// These verify COMMITTED and checkpoint.h5 first, and throw Error when they aren't whole.
CheckpointInfo read_checkpoint_info(const std::filesystem::path& checkpoint);
std::vector<CheckpointTensor> list_checkpoint_tensors(const std::filesystem::path& checkpoint);  // sorted by name

// A checkpoint opened for many loads, one tensor at a time: its table is read and its files are opened once. Move-only.
class CheckpointReader {
 public:
  explicit CheckpointReader(const std::filesystem::path& checkpoint);  // verifies as the two above
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;
  CheckpointReader& operator=(CheckpointReader&&) noexcept;

  const CheckpointInfo& info() const;
  std::vector<CheckpointTensor> tensors() const;  // sorted by name
  void load(const TensorPiece& wanted);           // as load_checkpoint

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A checkpoint written by one process, one tensor at a time, into any folder. Move-only; without commit() nothing stays behind.
class CheckpointWriter {
 public:
  // `checkpoint` must not exist; its parent folders are made.
  CheckpointWriter(const std::filesystem::path& checkpoint, const CheckpointInfo& info);
  ~CheckpointWriter();
  CheckpointWriter(CheckpointWriter&&) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) noexcept;

  void write(const TensorPiece& piece);
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Fills every wanted range, verifying the pieces it reads. Not collective. Error naming the checkpoint and the tensor
// when it is missing, has another shape or dtype, or a piece is damaged; the views' contents are then unspecified.
void load_checkpoint(const std::filesystem::path& checkpoint, std::span<const TensorPiece> wanted);

// Every byte of every file. Empty: the checkpoint is whole.
std::vector<CheckpointProblem> verify_checkpoint(const std::filesystem::path& checkpoint);

// The quick half of verify_checkpoint: COMMITTED and checkpoint.h5, then presence and size of every shard.
std::vector<CheckpointProblem> check_file_sizes(const std::filesystem::path& checkpoint);

}  // namespace lamina
