#include <algorithm>
#include <map>
#include <utility>

#include "core/base/hash.h"
#include "core/tensor/host_copy.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_files.h"
#include "trainer/checkpoint/checkpoint_manifest.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

}  // namespace

struct CheckpointReader::State {
  explicit State(const fs::path& checkpoint)
      : checkpoint_(checkpoint),
        manifest_(read_manifest(checkpoint)),
        layouts_(make_tensor_layouts(manifest_.shards)) {}

  const CheckpointInfo& info() const { return manifest_.info; }
  const std::map<std::string, TensorLayout>& layouts() const { return layouts_; }

  void load(const TensorPiece& wanted) {
    const auto found = layouts_.find(wanted.name);
    if (found == layouts_.end())
      throw Error("{}: tensor {} {} expected, not found among the {} tensors of this checkpoint", checkpoint_.string(),
                  wanted.name, wanted.shape.to_string(), layouts_.size());
    const CheckpointTensor& stored = found->second.tensor;
    if (!(stored.shape == wanted.shape))
      throw Error("{}: tensor {}: shape {} found, expected {}", checkpoint_.string(), wanted.name,
                  stored.shape.to_string(), wanted.shape.to_string());
    if (wanted.begin == wanted.end) return;
    if (stored.dtype != wanted.data.dtype)
      throw Error("{}: tensor {}: {} found, expected {}", checkpoint_.string(), wanted.name, name_of(stored.dtype),
                  name_of(wanted.data.dtype));
    LAMINA_CHECK(0 <= wanted.begin && wanted.begin < wanted.end && wanted.end <= wanted.shape.num_elements() &&
                     wanted.data.is_contiguous() && wanted.data.num_elements() == wanted.end - wanted.begin,
                 "{}: {} for [{}, {})", wanted.name, wanted.data.to_string(), wanted.begin, wanted.end);
    Stream stream(wanted.data.device);
    for (const TensorLayout::Part& part : found->second.parts) {
      const ShardFile& shard = manifest_.shards[part.shard];
      const StoredPiece& piece = shard.pieces[part.piece];
      if (piece.end <= wanted.begin || wanted.end <= piece.begin) continue;
      try {
        copy_overlap(file(shard), piece, wanted, stream);
      } catch (const Error& error) {
        throw CheckpointDamaged(checkpoint_, {shard.name, fmt::format("{}: {}", piece.dataset(), error.what())});
      }
    }
    stream.synchronize();
  }

 private:
  const RawFile& file(const ShardFile& shard) {
    const auto found = files_.find(shard.name);
    if (found != files_.end()) return found->second;
    return files_.emplace(shard.name, RawFile(checkpoint_ / shard.name)).first->second;
  }

  // Reads the whole stored piece, because its checksum is over all of it.
  void copy_overlap(const RawFile& source, const StoredPiece& piece, const TensorPiece& wanted, Stream& stream) {
    constexpr int64_t block_elements = int64_t{1} << 20;
    const int64_t size = size_of(piece.dtype);
    StreamingHash hash;
    for (int64_t at = piece.begin; at < piece.end; at += block_elements) {
      const int64_t count = std::min(block_elements, piece.end - at);
      buffer_.resize(static_cast<size_t>(count * size));
      source.read(piece.offset + (at - piece.begin) * size, count * size, buffer_.data());
      hash.update(buffer_.data(), buffer_.size());
      const int64_t begin = std::max(at, wanted.begin), end = std::min(at + count, wanted.end);
      if (begin >= end) continue;
      char* const to = static_cast<char*>(wanted.data.data) + (begin - wanted.begin) * size;
      upload(buffer_.data() + (begin - at) * size, {to, piece.dtype, {end - begin}, wanted.data.device}, stream);
    }
    if (hash.digest() != piece.hash)
      throw Error("checksum {} found, expected {}", hash_to_hex(hash.digest()), hash_to_hex(piece.hash));
  }

  fs::path checkpoint_;
  Manifest manifest_;
  std::map<std::string, TensorLayout> layouts_;
  std::map<std::string, RawFile> files_;
  std::vector<char> buffer_;
};

CheckpointInfo read_checkpoint_info(const fs::path& checkpoint) {
  return read_manifest(checkpoint).info;
}

std::vector<CheckpointTensor> list_checkpoint_tensors(const fs::path& checkpoint) {
  return CheckpointReader(checkpoint).tensors();
}

CheckpointReader::CheckpointReader(const fs::path& checkpoint) : state_(std::make_unique<State>(checkpoint)) {}
CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;
CheckpointReader& CheckpointReader::operator=(CheckpointReader&&) noexcept = default;

const CheckpointInfo& CheckpointReader::info() const {
  return state_->info();
}

std::vector<CheckpointTensor> CheckpointReader::tensors() const {
  std::vector<CheckpointTensor> tensors;
  for (const auto& [name, layout] : state_->layouts()) tensors.push_back(layout.tensor);
  return tensors;
}

void CheckpointReader::load(const TensorPiece& wanted) {
  state_->load(wanted);
}

void load_checkpoint(const fs::path& checkpoint, std::span<const TensorPiece> wanted) {
  CheckpointReader reader(checkpoint);
  for (const TensorPiece& piece : wanted) reader.load(piece);
}

}  // namespace lamina
