#include "model/observations.h"

#include <algorithm>
#include <limits>

#include "core/device/cuda_device.h"
#include "core/tensor/host_copy.h"

namespace lamina::model {

void Observer::lay_out() {
  constexpr int64_t alignment = 64;
  places_.assign(static_cast<size_t>(2 * config_.num_hidden_layers), {});
  num_bytes_ = 0;
  const auto take = [&](DType dtype, int64_t count) {
    const int64_t offset = num_bytes_;
    num_bytes_ += (count * size_of(dtype) + alignment - 1) / alignment * alignment;
    return offset;
  };
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    Place& mixer = places_[static_cast<size_t>(2 * layer)];
    Place& mlp = places_[static_cast<size_t>(2 * layer + 1)];
    if (wanted_.max_logits && config_.mixer(layer) == Mixer::mla)
      mixer.max_logits = take(acc_, num_sequences_ * config_.num_attention_heads);
    if (!wanted_.experts || !config_.is_moe(layer)) continue;
    mlp.expert_counts = take(DType::i32, config_.num_experts);
    if (wanted_.entropy) mlp.entropy = take(DType::f64, 1);
    if (config_.aux_loss_alpha > 0) mlp.balance = take(acc_, num_sequences_);
  }
}

void Observer::begin(const Wanted& wanted, int64_t num_sequences, Stream& stream) {
  wanted_ = wanted;
  num_sequences_ = num_sequences;
  lay_out();
  if (memory_.num_bytes() < num_bytes_) memory_ = Buffer(num_bytes_, device_, ledger_, "observations");
  if (device_.kind == DeviceKind::cuda)
    cuda::fill_zero(memory_.data(), num_bytes_, stream);
  else
    std::fill_n(static_cast<char*>(memory_.data()), num_bytes_, char{0});
}

TensorView Observer::view(int64_t offset, DType dtype, const Shape& shape) const {
  if (offset < 0) return {};
  return {static_cast<char*>(memory_.data()) + offset, dtype, shape, device_};
}

SublayerProbes Observer::probes(int sublayer, int64_t first_sequence, int64_t num_sequences) {
  LAMINA_CHECK(first_sequence >= 0 && first_sequence + num_sequences <= num_sequences_, "sequences {} to {} of {}",
               first_sequence, first_sequence + num_sequences, num_sequences_);
  Place& place = places_.at(static_cast<size_t>(sublayer));
  const int64_t end = first_sequence + num_sequences;
  const auto part = [&](const TensorView& all) { return all ? all.slice(0, first_sequence, end) : all; };
  place.seen = true;
  SublayerProbes probes;
  probes.expert_counts = view(place.expert_counts, DType::i32, {config_.num_experts});
  probes.entropy = view(place.entropy, DType::f64, {1});
  probes.balance = part(view(place.balance, acc_, {num_sequences_}));
  probes.max_logits = part(view(place.max_logits, acc_, {num_sequences_, config_.num_attention_heads}));
  if (wanted_.choices && place.expert_counts >= 0) probes.choices = &place.choices;
  return probes;
}

std::vector<SublayerStats> Observer::collect(Stream& stream) {
  std::vector<SublayerStats> all(places_.size());
  const bool any = std::any_of(places_.begin(), places_.end(), [](const Place& place) { return place.seen; });
  if (!any || num_bytes_ == 0) return all;
  const HostCopy values(TensorView(memory_.data(), DType::i32, {num_bytes_ / size_of(DType::i32)}, device_), stream);
  const auto found = [&](int64_t offset, DType dtype, int64_t count) {
    return TensorView(static_cast<char*>(values->data) + offset, dtype, {count});
  };
  for (size_t s = 0; s < places_.size(); ++s) {
    Place& place = places_[s];
    if (!place.seen) continue;
    SublayerStats& stats = all[s];
    if (place.max_logits >= 0) {
      const int64_t heads = config_.num_attention_heads;
      const TensorView logits = found(place.max_logits, acc_, num_sequences_ * heads);
      stats.max_logits.resize(static_cast<size_t>(heads), -std::numeric_limits<double>::infinity());
      for (int64_t i = 0; i < num_sequences_ * heads; ++i) {
        double& largest = stats.max_logits[static_cast<size_t>(i % heads)];
        largest = std::max(largest, element_of(logits, i));
      }
    }
    if (place.expert_counts >= 0) {
      const int32_t* counts = found(place.expert_counts, DType::i32, config_.num_experts).as<int32_t>();
      stats.expert_counts.assign(counts, counts + config_.num_experts);
    }
    if (place.entropy >= 0) stats.entropy = element_of(found(place.entropy, DType::f64, 1), 0);
    if (place.balance >= 0) {
      const TensorView balance = found(place.balance, acc_, num_sequences_);
      for (int64_t i = 0; i < num_sequences_; ++i) stats.balance_loss += element_of(balance, i);
    }
    stats.choices = std::move(place.choices);
  }
  return all;
}

}  // namespace lamina::model
