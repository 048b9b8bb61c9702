#include "model/sequence_cache.h"

#include <algorithm>
#include <cstring>

#include "core/base/error.h"

namespace lamina::model {
namespace {

int64_t width_of(const ModelConfig& c) {
  return c.linear_num_heads * c.linear_head_dim;
}
int64_t state_bytes(const ModelConfig& c, DType dtype) {
  return width_of(c) * c.linear_head_dim * size_of(accumulation_dtype(dtype));
}
int64_t tail_bytes(const ModelConfig& c, DType dtype) {
  return (c.short_conv_kernel_size - 1) * 3 * width_of(c) * size_of(dtype);
}
int64_t latent_width(const ModelConfig& c) {
  return c.kv_lora_rank + c.qk_rope_head_dim;
}
int64_t num_layers_with(const ModelConfig& c, Mixer mixer) {
  int64_t count = 0;
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) count += c.mixer(layer) == mixer ? 1 : 0;
  return count;
}

void zero(const Buffer& buffer) {
  if (buffer.num_bytes() > 0) std::memset(buffer.data(), 0, static_cast<size_t>(buffer.num_bytes()));
}
void copy_bytes(const Buffer& from, const Buffer& to, int64_t count) {
  if (count > 0) std::memcpy(to.data(), from.data(), static_cast<size_t>(count));
}

}  // namespace

SequenceCache::SequenceCache(const ModelConfig& config, DType dtype, Device device, MemoryLedger* ledger)
    : config_(config), dtype_(dtype), device_(device), ledger_(ledger) {
  LAMINA_CHECK(device.kind == DeviceKind::cpu, "sequences are kept in the host's memory");
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    layers_.emplace_back();
    if (config.mixer(layer) != Mixer::kda) continue;
    layers_.back().state = Buffer(state_bytes(config, dtype), device, ledger, "sequence states");
    layers_.back().tail = Buffer(tail_bytes(config, dtype), device, ledger, "sequence states");
  }
}

void SequenceCache::reserve(int64_t tokens) {
  if (tokens <= room_) return;
  const int64_t room = std::max({tokens, room_ + room_ / 2, int64_t{64}}),
                row = latent_width(config_) * size_of(dtype_);
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    if (config_.mixer(layer) != Mixer::mla) continue;
    Buffer larger(room * row, device_, ledger_, "sequence latents");
    Buffer& latents = layers_[static_cast<size_t>(layer)].latents;
    copy_bytes(latents, larger, length_ * row);
    latents = std::move(larger);
  }
  room_ = room;
}

void SequenceCache::advance(int64_t tokens) {
  LAMINA_CHECK(tokens >= 0 && length_ + tokens <= room_, "{} tokens behind {}, room for {}", tokens, length_, room_);
  length_ += tokens;
}

void SequenceCache::clear() {
  length_ = 0;
  for (const Layer& layer : layers_) {
    zero(layer.state);
    zero(layer.tail);
  }
}

void SequenceCache::assign(const SequenceCache& other) {
  clear();
  reserve(other.length_);
  length_ = other.length_;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer &from = other.layers_[i], &to = layers_[i];
    copy_bytes(from.state, to.state, from.state.num_bytes());
    copy_bytes(from.tail, to.tail, from.tail.num_bytes());
    if (to.latents.num_bytes() > 0)
      copy_bytes(from.latents, to.latents, length_ * latent_width(config_) * size_of(dtype_));
  }
}

TensorView SequenceCache::kda_state(int64_t layer) const {
  const int64_t head = config_.linear_head_dim;
  return {of(layer).state.data(), accumulation_dtype(dtype_), {config_.linear_num_heads, head, head}, device_};
}

TensorView SequenceCache::conv_tail(int64_t layer) const {
  return {of(layer).tail.data(), dtype_, {config_.short_conv_kernel_size - 1, 3 * width_of(config_)}, device_};
}

TensorView SequenceCache::latents(int64_t layer) const {
  return {of(layer).latents.data(), dtype_, {room_, latent_width(config_)}, device_};
}

int64_t SequenceCache::fixed_bytes(const ModelConfig& config, DType dtype) {
  return num_layers_with(config, Mixer::kda) * (state_bytes(config, dtype) + tail_bytes(config, dtype));
}

int64_t SequenceCache::bytes_per_token(const ModelConfig& config, DType dtype) {
  return num_layers_with(config, Mixer::mla) * latent_width(config) * size_of(dtype);
}

void copy_rows(const TensorView& from, const TensorView& to) {
  LAMINA_CHECK(from.shape == to.shape && from.dtype == to.dtype && from.rank() == 2, "{} to {}", from.to_string(),
               to.to_string());
  const int64_t line = from.size(1) * size_of(from.dtype);
  for (int64_t r = 0; r < from.size(0); ++r) {
    std::memcpy(static_cast<char*>(to.data) + r * to.stride(0) * size_of(to.dtype),
                static_cast<const char*>(from.data) + r * from.stride(0) * size_of(from.dtype),
                static_cast<size_t>(line));
  }
}

}  // namespace lamina::model
