// The bytes of a checkpoint's files, past the HDF5 library: a damaged file must be recognised before that library
// follows its offsets.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "core/device/buffer.h"
#include "core/io/hdf5.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_manifest.h"

namespace lamina {

// Reads a file by offset. Move-only. Every failure is an Error with the reason (a message names the file around it).
class RawFile {
 public:
  explicit RawFile(const std::filesystem::path& path);
  ~RawFile();
  RawFile(RawFile&& other) noexcept;
  RawFile& operator=(RawFile&& other) noexcept;

  int64_t num_bytes() const { return num_bytes_; }
  void read(int64_t offset, int64_t count, void* out) const;
  uint64_t hash(int64_t offset, int64_t count) const;

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  int64_t num_bytes_ = 0;
};

// Hash of the bytes of `file` that lie outside the pieces of `shard`.
uint64_t hash_rest(const RawFile& file, const ShardFile& shard);

// Everything that is wrong with one shard on disk; empty when it is whole.
std::vector<CheckpointProblem> verify_shard(const std::filesystem::path& checkpoint, const ShardFile& shard);
std::vector<CheckpointProblem> check_shard_size(const std::filesystem::path& checkpoint, const ShardFile& shard);

// A shard, piece by piece: every piece a dataset, those of more than `max_elements` cut (a mapping of the HDF5 library
// ends at 2^32 elements, and a load reads whole datasets to verify them). Move-only.
class ShardWriter {
 public:
  ShardWriter(const std::filesystem::path& folder, int rank, int64_t max_elements = int64_t{1} << 26);
  void write(const TensorPiece& whole);
  ShardFile finish();  // the file is on the disk when this returns

 private:
  std::filesystem::path path_;
  int64_t max_elements_;
  Buffer staging_;  // of values that are on a GPU
  io::Hdf5File file_;
  std::string name_;
  std::vector<StoredPiece> pieces_;
};

// All pieces of a rank.
ShardFile write_shard(const std::filesystem::path& folder, int rank, std::span<const TensorPiece> pieces,
                      int64_t max_elements = int64_t{1} << 26);

}  // namespace lamina
