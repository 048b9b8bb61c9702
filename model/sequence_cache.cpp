#include "model/sequence_cache.h"

#include <algorithm>
#include <cstring>

#include "core/base/error.h"
#include "core/device/cuda_device.h"
#include "core/tensor/host_copy.h"

namespace lamina::model {
namespace {

constexpr int64_t alignment = 64;  // bytes: of every view, as of a buffer
constexpr int64_t room_step = 64;  // tokens: any number of bytes times it is aligned

int64_t aligned(int64_t bytes) {
  return (bytes + alignment - 1) / alignment * alignment;
}
int64_t width_of(const ModelConfig& c) {
  return c.linear_num_heads * c.linear_head_dim;
}
int64_t state_bytes(const ModelConfig& c, DType dtype) {
  return aligned(width_of(c) * c.linear_head_dim * size_of(accumulation_dtype(dtype)));
}
int64_t tail_bytes(const ModelConfig& c, DType dtype) {
  return aligned((c.short_conv_kernel_size - 1) * 3 * width_of(c) * size_of(dtype));
}
int64_t latent_width(const ModelConfig& c) {
  return c.kv_lora_rank + c.qk_rope_head_dim;
}
int64_t num_layers_with(const ModelConfig& c, Mixer mixer) {
  int64_t count = 0;
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) count += c.mixer(layer) == mixer ? 1 : 0;
  return count;
}

// Of an empty buffer too.
char* at(const Buffer& buffer, int64_t offset) {
  return buffer.data() == nullptr ? nullptr : static_cast<char*>(buffer.data()) + offset;
}

}  // namespace

SequenceCache::SequenceCache(const ModelConfig& config, DType dtype, const Stream& stream, MemoryLedger* ledger)
    : config_(config),
      dtype_(dtype),
      stream_(stream),
      ledger_(ledger),
      states_(fixed_bytes(config, dtype), stream.device(), ledger, "sequence states") {
  int64_t num_kda = 0, num_mla = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    place_.push_back(config.mixer(layer) == Mixer::kda ? num_kda++ : num_mla++);
}

void SequenceCache::reserve(int64_t tokens) {
  if (tokens <= room_) return;
  const int64_t wanted = std::max(tokens, room_ + room_ / 2), room = (wanted + room_step - 1) / room_step * room_step;
  const int64_t row = latent_width(config_) * size_of(dtype_), layers = num_layers_with(config_, Mixer::mla);
  Buffer larger(layers * room * row, stream_.device(), ledger_, "sequence latents");
  for (int64_t layer = 0; layer < layers; ++layer)
    copy_bytes(at(larger, layer * room * row), at(latents_, layer * room_ * row), length_ * row, stream_);
  latents_ = std::move(larger);  // on a GPU the old one is freed when the copies are through
  room_ = room;
}

void SequenceCache::advance(int64_t tokens) {
  LAMINA_CHECK(tokens >= 0 && length_ + tokens <= room_, "{} tokens behind {}, room for {}", tokens, length_, room_);
  length_ += tokens;
}

void SequenceCache::clear() {
  length_ = 0;
  if (states_.num_bytes() == 0) return;
  if (stream_.device().kind == DeviceKind::cuda)
    cuda::fill_zero(states_.data(), states_.num_bytes(), stream_);
  else
    std::memset(states_.data(), 0, static_cast<size_t>(states_.num_bytes()));
}

void SequenceCache::assign(const SequenceCache& other) {
  length_ = 0;
  reserve(other.length_);
  length_ = other.length_;
  copy_bytes(states_.data(), other.states_.data(), states_.num_bytes(), stream_);
  const int64_t row = latent_width(config_) * size_of(dtype_);
  for (int64_t layer = 0; layer < num_layers_with(config_, Mixer::mla); ++layer)
    copy_bytes(at(latents_, layer * room_ * row), at(other.latents_, layer * other.room_ * row), length_ * row,
               stream_);
}

TensorView SequenceCache::of_kda(int64_t layer, int64_t offset, DType dtype, const Shape& shape) const {
  const int64_t each = state_bytes(config_, dtype_) + tail_bytes(config_, dtype_);
  return {at(states_, place_[static_cast<size_t>(layer)] * each + offset), dtype, shape, stream_.device()};
}

TensorView SequenceCache::kda_state(int64_t layer) const {
  const int64_t head = config_.linear_head_dim;
  return of_kda(layer, 0, accumulation_dtype(dtype_), {config_.linear_num_heads, head, head});
}

TensorView SequenceCache::conv_tail(int64_t layer) const {
  return of_kda(layer, state_bytes(config_, dtype_), dtype_,
                {config_.short_conv_kernel_size - 1, 3 * width_of(config_)});
}

TensorView SequenceCache::latents(int64_t layer) const {
  const int64_t width = latent_width(config_);
  return {at(latents_, place_[static_cast<size_t>(layer)] * room_ * width * size_of(dtype_)),
          dtype_,
          {room_, width},
          stream_.device()};
}

int64_t SequenceCache::fixed_bytes(const ModelConfig& config, DType dtype) {
  return num_layers_with(config, Mixer::kda) * (state_bytes(config, dtype) + tail_bytes(config, dtype));
}

int64_t SequenceCache::bytes_per_token(const ModelConfig& config, DType dtype) {
  return num_layers_with(config, Mixer::mla) * latent_width(config) * size_of(dtype);
}

}  // namespace lamina::model
