// Tensors whose content is a function of (step, name, index), cut among any number of ranks.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "parallel/comm/thread.h"
#include "trainer/checkpoint/checkpoint.h"

namespace lamina::testing_checkpoint {

namespace fs = std::filesystem;

// A folder that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    static std::atomic<int> counter{0};
    path_ = fs::temp_directory_path() / fmt::format("lamina-test-{}-{}", ::getpid(), counter++);
    fs::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

struct TensorSpec {
  std::string name;
  Shape shape;
  DType dtype;
};

// Odd sizes, one tensor smaller than the number of ranks, every dtype.
inline std::vector<TensorSpec> some_tensors() {
  return {{"parameters/model.embed_tokens.weight", {37, 19}, DType::f32},
          {"parameters/model.norm.weight", {2}, DType::f32},
          {"parameters/model.layers.0.conv", {3, 5, 7}, DType::f32},
          {"optimizer/m/model.embed_tokens.weight", {37, 19}, DType::f32},
          {"optimizer/v/model.embed_tokens.weight", {37, 19}, DType::f64},
          {"counters", {11}, DType::i32},
          {"scalar", {}, DType::f64}};
}

inline void write_value(void* out, DType dtype, const CounterRng& rng, int64_t index) {
  const auto i = static_cast<uint64_t>(index);
  if (dtype == DType::f64) {
    const double value = rng.normal(i);
    std::memcpy(out, &value, sizeof value);
  } else {  // every bit pattern must survive, of floats every finite one
    uint32_t bits = static_cast<uint32_t>(rng.bits(i));
    constexpr uint32_t exponent = 0x7f800000;
    if (dtype == DType::f32 && (bits & exponent) == exponent) bits ^= 0x00800000;
    std::memcpy(out, &bits, sizeof bits);
  }
}

// The pieces of one rank, and the memory behind them.
class Shard {
 public:
  enum class Content { expected, poison };

  Shard(const std::vector<TensorSpec>& specs, int rank, int size, int64_t step, Content content)
      : storage_(specs.size()) {
    for (size_t t = 0; t < specs.size(); ++t) {
      const TensorSpec& spec = specs[t];
      const int64_t total = spec.shape.num_elements();
      TensorPiece piece{spec.name, spec.shape, cut(total, rank, size), cut(total, rank + 1, size), {}};
      const int64_t count = piece.end - piece.begin;
      storage_[t].assign(static_cast<size_t>(count * size_of(spec.dtype)), '\xff');  // NaN in every float
      const CounterRng rng(static_cast<uint64_t>(step), spec.name);
      if (content == Content::expected)
        for (int64_t i = 0; i < count; ++i)
          write_value(storage_[t].data() + i * size_of(spec.dtype), spec.dtype, rng, piece.begin + i);
      piece.data = TensorView(storage_[t].data(), spec.dtype, {count});
      pieces_.push_back(piece);
    }
  }
  const std::vector<TensorPiece>& pieces() const { return pieces_; }
  bool operator==(const Shard& other) const { return storage_ == other.storage_; }

 private:
  static int64_t cut(int64_t total, int rank, int size) {
    return total * rank * rank / (int64_t{size} * size);
  }  // uneven
  std::vector<std::vector<char>> storage_;
  std::vector<TensorPiece> pieces_;
};

inline CheckpointInfo info_of(int64_t step) {
  CheckpointInfo info;
  info.step = step;
  info.config_yaml = "run:\n  name: test\n";
  info.sampler_fingerprint = "0123456789abcdef";
  info.sequences_consumed = step * 32;
  info.seed = std::numeric_limits<uint64_t>::max() - 1;
  info.data_parallel = 1;
  info.program_version = "1.2.3";
  info.extra = {{"key", "value\n\"quoted\""}};
  info.tokenizer = StoredTokenizer{"sentencepiece", std::string("a\0b\xff", 4)};
  return info;
}

inline void save(const fs::path& dir, int64_t step, int ranks, int64_t keep = 0,
                 const std::vector<TensorSpec>& specs = some_tensors()) {
  comm::run_threads(ranks, [&](comm::Communicator& comm) {
    const Shard shard(specs, comm.rank(), comm.size(), step, Shard::Content::expected);
    save_checkpoint(dir, info_of(step), shard.pieces(), comm, keep);
  });
}

inline void expect_content(const fs::path& checkpoint, int64_t step, int ranks,
                           const std::vector<TensorSpec>& specs = some_tensors()) {
  for (int rank = 0; rank < ranks; ++rank) {
    const Shard expected(specs, rank, ranks, step, Shard::Content::expected);
    const Shard found(specs, rank, ranks, step, Shard::Content::poison);
    load_checkpoint(checkpoint, found.pieces());
    EXPECT_TRUE(found == expected) << checkpoint << " rank " << rank << " of " << ranks;
  }
}

inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no Error";
}

inline std::vector<fs::path> files_of(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

inline std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::path& path : files_of(folder)) names.push_back(path.filename().string());
  return names;
}

inline void flip_bit(const fs::path& path, uint64_t bit) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  char byte = 0;
  file.seekg(static_cast<std::streamoff>(bit / 8));
  file.read(&byte, 1);
  byte = static_cast<char>(byte ^ (1 << (bit % 8)));
  file.seekp(static_cast<std::streamoff>(bit / 8));
  file.write(&byte, 1);
  ASSERT_TRUE(file.good()) << path;
}

}  // namespace lamina::testing_checkpoint
