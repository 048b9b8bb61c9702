#include "trainer/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"

namespace lamina {
namespace {

// Uses per parameter of one group, in the group's order.
std::vector<int> group_uses(const model::ParameterGroup& group, const std::vector<int>& uses) {
  std::vector<int> out;
  for (int spec : group.spec_of) out.push_back(uses[static_cast<size_t>(spec)]);
  return out;
}

template <class T>
bool all_finite(const TensorView& x) {
  const T* data = x.as<T>();
  return std::all_of(data, data + x.num_elements(), [](T value) { return std::isfinite(value); });
}

}  // namespace

DType compute_dtype(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return DType::f32;
    case Precision::bf16:
      return DType::bf16;
    case Precision::fp64:
      return DType::f64;
  }
  return DType::f32;
}

Engine::Engine(const Config& config, comm::Communicator& comm, MemoryLedger* ledger)
    : config_(config),
      dtype_(compute_dtype(config.train.precision)),
      stream_(device_),
      scratch_(device_, ledger, "scratch"),
      ctx_{stream_, scratch_, refusals_, ops::Backend::fastest},
      parameters_(config.model, dtype_, comm.size(), device_, ledger),
      stage_({config_.model, dtype_, config.train.recompute, device_, ledger}, parameters_),
      optimizer_(config.train.optimizer, parameters_, comm.rank(), ledger),
      matrix_reducer_(comm, parameters_.matrices().shards, parameters_.matrices().all_gradients(), stream_,
                      group_uses(parameters_.matrices(), stage_.uses_per_parameter())),
      vector_reducer_(comm, parameters_.vectors().shards, parameters_.vectors().all_gradients(), stream_,
                      group_uses(parameters_.vectors(), stage_.uses_per_parameter())),
      matrix_gatherer_(comm, parameters_.matrices().shards, parameters_.matrices().all_values(), stream_),
      vector_gatherer_(comm, parameters_.vectors().shards, parameters_.vectors().all_values(), stream_),
      ledger_(ledger) {
  LAMINA_CHECK(config.model.vocab_size > 0);
  reserve_batch(config.train.micro_batch_size);
}

void Engine::reserve_batch(int64_t num_sequences) {
  if (num_sequences <= reserved_sequences_) return;
  const int64_t tokens = num_sequences * config_.data.seq_len;
  tokens_ = Buffer(tokens * size_of(DType::i32), device_, ledger_, "batch");
  targets_ = Buffer(tokens * size_of(DType::i32), device_, ledger_, "batch");
  token_loss_ = Buffer(tokens * size_of(accumulation_dtype(dtype_)), device_, ledger_, "batch");
  reserved_sequences_ = num_sequences;
}

void Engine::initialise() {
  parameters_.initialise(config_.run.seed, config_.model.initializer_range);
  optimizer_.initialise_masters(config_.run.seed, config_.model.initializer_range);
}

void Engine::publish() {
  optimizer_.publish_masters(ctx_);
  matrix_gatherer_.start();
  vector_gatherer_.start();
  matrix_gatherer_.finish();
  vector_gatherer_.finish();
}

model::Stage::Batch Engine::stage_batch(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                                        int64_t num_sequences, double grad_scale) {
  const int64_t count = num_sequences * config_.data.seq_len;
  LAMINA_CHECK(static_cast<int64_t>(tokens.size()) == count && tokens.size() == targets.size(),
               "{} tokens, {} targets, {} sequences", tokens.size(), targets.size(), num_sequences);
  std::memcpy(tokens_.data(), tokens.data(), tokens.size_bytes());
  std::memcpy(targets_.data(), targets.data(), targets.size_bytes());
  return {{num_sequences, config_.data.seq_len},
          TensorView(tokens_.data(), DType::i32, {count}, device_),
          TensorView(targets_.data(), DType::i32, {count}, device_),
          TensorView(token_loss_.data(), accumulation_dtype(dtype_), {count}, device_),
          grad_scale};
}

double Engine::sum_token_loss(const model::Stage::Batch& batch, std::span<double> out) const {
  double sum = 0;
  for (int64_t i = 0; i < batch.token_loss.num_elements(); ++i) {
    const double loss = batch.token_loss.dtype == DType::f64
                            ? static_cast<const double*>(batch.token_loss.data)[i]
                            : static_cast<double>(static_cast<const float*>(batch.token_loss.data)[i]);
    sum += loss;
    if (!out.empty()) out[static_cast<size_t>(i)] = loss;
  }
  return sum;
}

double Engine::accumulate_gradients(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                                    double grad_scale, std::vector<model::LayerSums>* sums,
                                    std::span<double> token_losses) {
  const auto micro_tokens = static_cast<size_t>(config_.train.micro_batch_size * config_.data.seq_len);
  LAMINA_CHECK(!tokens.empty() && tokens.size() % micro_tokens == 0, "{} tokens in micro-batches of {}", tokens.size(),
               micro_tokens);
  parameters_.zero_gradients();
  matrix_reducer_.begin_step();
  vector_reducer_.begin_step();
  const auto ready = [this](int parameter) {
    const bool is_matrix = parameters_.specs()[static_cast<size_t>(parameter)].is_matrix;
    (is_matrix ? matrix_reducer_ : vector_reducer_).parameter_ready(parameters_.index_in_group(parameter));
    matrix_reducer_.progress();
  };
  double sum = 0;
  for (size_t at = 0; at < tokens.size(); at += micro_tokens) {
    const auto batch = stage_batch(tokens.subspan(at, micro_tokens), targets.subspan(at, micro_tokens),
                                   config_.train.micro_batch_size, grad_scale);
    stage_.forward(ctx_, batch, true, sums);
    sum += sum_token_loss(batch, token_losses.empty() ? token_losses : token_losses.subspan(at, micro_tokens));
    const bool last = at + micro_tokens == tokens.size();
    stage_.backward(ctx_, batch, last ? std::function<void(int)>(ready) : nullptr, sums);
  }
  scratch_.reset();
  matrix_reducer_.finish();
  vector_reducer_.finish();
  return sum;
}

double Engine::owned_gradient_square() {
  double sum = 0;
  for (const OwnedSlice& slice : optimizer_.owned()) {
    double square = 0;
    ops::sum_squares(ctx_, {slice.gradient, &square});
    sum += square;
  }
  return sum;
}

std::string Engine::first_non_finite_gradient() {
  const OwnedSlice* first = nullptr;
  for (const OwnedSlice& slice : optimizer_.owned()) {
    const bool finite =
        slice.gradient.dtype == DType::f64 ? all_finite<double>(slice.gradient) : all_finite<float>(slice.gradient);
    if (!finite && (first == nullptr || slice.parameter < first->parameter)) first = &slice;
  }
  return first == nullptr ? "" : parameters_.specs()[static_cast<size_t>(first->parameter)].name;
}

void Engine::update(int64_t step, double lr, double grad_scale) {
  optimizer_.step(ctx_, step, lr, grad_scale);
  matrix_gatherer_.start();
  vector_gatherer_.start();
  matrix_gatherer_.finish();
  vector_gatherer_.finish();
}

double Engine::loss(std::span<const int32_t> tokens, std::span<const int32_t> targets) {
  const int64_t seq_len = config_.data.seq_len;
  const int64_t num_sequences = static_cast<int64_t>(tokens.size()) / seq_len;
  double sum = 0;
  for (int64_t at = 0; at < num_sequences; at += config_.train.micro_batch_size) {
    const int64_t count = std::min(config_.train.micro_batch_size, num_sequences - at);
    const auto from = static_cast<size_t>(at * seq_len), size = static_cast<size_t>(count * seq_len);
    const auto batch = stage_batch(tokens.subspan(from, size), targets.subspan(from, size), count, 0.0);
    stage_.forward(ctx_, batch, false);
    sum += sum_token_loss(batch, {});
  }
  return sum;
}

std::vector<float> Engine::next_token_logits(std::span<const int32_t> tokens) {
  const auto length = static_cast<int64_t>(tokens.size());
  LAMINA_CHECK(length > 0 && length <= config_.data.seq_len, "{} tokens", length);
  std::memcpy(tokens_.data(), tokens.data(), tokens.size_bytes());
  const TensorView hidden = stage_.forward_hidden(ctx_, {1, length}, {tokens_.data(), DType::i32, {length}, device_});
  const ArenaScope scope(scratch_);
  const TensorView last = hidden.slice(0, length - 1, length);
  const TensorView logits = scratch_.take(accumulation_dtype(dtype_), {1, config_.model.vocab_size});
  ops::linear(ctx_, last, stage_.head_weight(), logits);
  std::vector<float> out(static_cast<size_t>(config_.model.vocab_size));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = logits.dtype == DType::f64 ? static_cast<float>(static_cast<double*>(logits.data)[i])
                                        : static_cast<float*>(logits.data)[i];
  return out;
}

}  // namespace lamina
