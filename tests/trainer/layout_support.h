// A training step of the engine at any layout, in threads: the loss and every gradient, gathered from their owners.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "core/tensor/host_copy.h"
#include "parallel/comm/staged.h"
#include "parallel/comm/thread.h"
#include "trainer/step/engine.h"
#include "trainer/verify/verify.h"

namespace lamina {

inline Config tiny_config(Residual residual, int64_t layers, int64_t block_size) {
  Config c;
  c.run.seed = 3;
  c.model.vocab_size = 13;
  c.model.hidden_size = 8;
  c.model.num_hidden_layers = layers;
  c.model.residual = residual;
  c.model.attn_res_block_size = block_size;
  c.model.num_attention_heads = 2;
  c.model.kv_lora_rank = 4;
  c.model.qk_nope_head_dim = 3;
  c.model.qk_rope_head_dim = 2;
  c.model.v_head_dim = 3;
  c.model.intermediate_size = 8;
  c.model.initializer_range = 0.3;
  c.data.seq_len = 4;
  c.train.micro_batch_size = 1;
  c.train.global_batch_size = 1;
  c.train.precision = Precision::fp64;
  c.train.optimizer.lr = 1e-2;
  return c;
}

// Kimi Linear at its smallest: both mixers, a dense layer, then experts with a shared one and a balance loss.
inline Config tiny_kimi_config(Residual residual, int64_t layers, int64_t block_size) {
  Config c = tiny_config(residual, layers, block_size);
  c.model.mixers = {Mixer::kda, Mixer::mla, Mixer::kda};
  c.model.linear_num_heads = 2;
  c.model.linear_head_dim = 16;
  c.model.num_experts = 4;
  c.model.num_experts_per_token = 2;
  c.model.moe_intermediate_size = 6;
  c.model.initializer_range = 0.15;
  c.model.routed_scaling_factor = 1.5;
  c.model.aux_loss_alpha = 0.1;
  return c;
}

// What carries a GPU's memory between ranks that are threads; null where the ranks compute on the CPU.
inline std::unique_ptr<comm::Communicator> staged_for(const Config& c, comm::Communicator& host) {
  return c.run.device == "cuda" ? comm::make_staged_communicator(host, nullptr) : nullptr;
}

using Tensors = std::map<std::string, std::vector<double>>;

struct StepResult {
  double loss = 0, forward_loss = 0;  // mean over tokens, of the training step and of a forward-only pass
  Tensors gradients;
  int64_t stream_bytes = 0, summary_bytes = 0;  // sent, over all ranks
  std::vector<int> peak_summaries;              // [world rank]
  pipeline::Schedule schedule;
  double aux_loss = 0;                             // of all layers
  std::vector<std::vector<double>> expert_counts;  // [sublayer]; empty where there are no experts
  std::vector<std::vector<int32_t>> choices;       // [sublayer]: of all tokens, [tokens * k]
  int64_t expert_row_bytes = 0;                    // sent, over all ranks
};

inline std::vector<int32_t> random_tokens(const Config& c, const char* stream) {
  const CounterRng rng(9, stream);
  std::vector<int32_t> tokens(static_cast<size_t>(c.train.global_batch_size * c.data.seq_len));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(c.model.vocab_size)));
  return tokens;
}

// Observations are the same on all data-parallel ranks; choices are each rank's own tokens'.
inline void collect_observations(Engine& engine, StepResult& result) {
  const StepObservations& seen = engine.observations();
  const size_t data = static_cast<size_t>(engine.mesh().data), dp_rank = static_cast<size_t>(engine.place().dp_rank);
  result.choices.resize(seen.sublayers.size());
  result.expert_counts.resize(seen.sublayers.size());
  for (size_t s = 0; s < seen.sublayers.size(); ++s) {
    const model::SublayerStats& stats = seen.sublayers[s];
    if (stats.expert_counts.empty()) continue;
    EXPECT_TRUE(result.expert_counts[s].empty() || result.expert_counts[s] == stats.expert_counts);
    result.expert_counts[s] = stats.expert_counts;
    result.choices[s].resize(stats.choices.size() * data, -1);
    std::copy(stats.choices.begin(), stats.choices.end(),
              result.choices[s].begin() + static_cast<int64_t>(dp_rank * stats.choices.size()));
  }
  if (dp_rank == 0) result.aux_loss += seen.aux_loss;
}

// How ranks that are threads reach each other. `connect` makes a rank's communicator; each rank then has a GPU of its own.
struct RankOptions {
  std::function<std::unique_ptr<comm::Communicator>(comm::Communicator&)> connect;
  MemoryLedger* ledger = nullptr;  // of all ranks
};

// `each_rank`, when given, is called with the engine before the step.
inline StepResult run_step(const Config& c, int num_ranks, const std::function<void(Engine&)>& each_rank = {},
                           const RankOptions& options = {}) {
  const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
  StepResult result;
  result.peak_summaries.resize(static_cast<size_t>(num_ranks));
  std::mutex mutex;
  comm::run_threads(num_ranks, [&](comm::Communicator& host) {
    const std::unique_ptr<comm::Communicator> own = options.connect ? options.connect(host) : staged_for(c, host);
    comm::Communicator& comm = own ? *own : host;
    Engine engine(c, comm, options.ledger, options.connect ? host.rank() : 0);
    engine.initialise();
    move_depth_queries(engine);
    if (each_rank) each_rank(engine);
    engine.keep_choices = true;
    if (c.data.document_mask) engine.set_end_of_document(0);
    const auto data = static_cast<size_t>(engine.mesh().data), dp_rank = static_cast<size_t>(engine.place().dp_rank);
    const size_t share = tokens.size() / data;
    const double loss = engine.accumulate_gradients(std::span(tokens).subspan(share * dp_rank, share),
                                                    std::span(targets).subspan(share * dp_rank, share),
                                                    1.0 / static_cast<double>(tokens.size()));
    const auto execution = engine.last_execution();
    const int peak = engine.stage().peak_summaries();
    const int64_t row_bytes = engine.take_expert_row_bytes();  // the forward pass below sends more
    const double forward_loss = engine.loss(std::span(tokens).subspan(share * dp_rank, share),
                                            std::span(targets).subspan(share * dp_rank, share));
    engine.context().stream.synchronize();
    const std::lock_guard lock(mutex);
    result.forward_loss += forward_loss / static_cast<double>(tokens.size());
    result.loss += loss / static_cast<double>(tokens.size());
    result.stream_bytes += execution.stream_bytes_sent;
    result.summary_bytes += execution.summary_bytes_sent;
    result.expert_row_bytes += row_bytes;
    collect_observations(engine, result);
    result.schedule = engine.schedule();
    result.peak_summaries[static_cast<size_t>(comm.rank())] = peak;
    for (const OwnedSlice& slice : engine.optimizer().owned()) {
      if (!engine.parameters().is_primary(slice.parameter)) continue;
      const auto& spec = engine.parameters().specs()[static_cast<size_t>(slice.parameter)];
      std::vector<double>& values = result.gradients[spec.name];
      values.resize(static_cast<size_t>(spec.shape.num_elements()), std::nan(""));
      const HostCopy gradient(slice.gradient);
      for (int64_t i = slice.begin; i < slice.end; ++i)
        values[static_cast<size_t>(i)] = element_of(gradient.view(), i - slice.begin);
    }
  });
  return result;
}

// Norm of the difference over the norm, of the worst tensor; its name too. Infinite when a tensor is missing or not finite.
inline std::pair<double, std::string> worst_difference(const Tensors& found, const Tensors& expected) {
  std::pair<double, std::string> worst{0, ""};
  for (const auto& [name, values] : expected) {
    double difference = 0, norm = 0;
    const auto at = found.find(name);
    if (at == found.end() || at->second.size() != values.size()) return {INFINITY, name};
    for (size_t i = 0; i < values.size(); ++i) {
      difference += std::pow(at->second[i] - values[i], 2);
      norm += values[i] * values[i];
    }
    // A_log's gradient adds up over a head's channels what dt_bias's is per channel, with both signs: it may cancel, its rounding not.
    if (name.ends_with("A_log")) {
      const auto per_channel = expected.find(name.substr(0, name.size() - 5) + "dt_bias");
      double terms = 0;
      if (per_channel != expected.end())
        for (const double value : per_channel->second) terms += value * value;
      norm = std::max(norm, terms);
    }
    // The query of a read with one source has a gradient of exactly zero.
    const double relative = norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
    if (!(relative <= worst.first)) worst = {std::isnan(relative) ? INFINITY : relative, name};
  }
  return worst;
}

}  // namespace lamina
