// What a step sees besides gradients, and the updates that follow from it: the experts' selection biases and QK-Clip.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/ops/elementwise/elementwise.h"
#include "core/tensor/host_copy.h"
#include "model/optimizers/optimizer.h"
#include "trainer/step/engine.h"

namespace lamina {
namespace {

void reduce(comm::Communicator& comm, std::vector<double>& values, comm::ReduceOp op, Stream& stream) {
  if (values.empty()) return;
  comm.all_reduce(TensorView(values.data(), DType::f64, {static_cast<int64_t>(values.size())}), op, stream).wait();
}

double sign(double x) {
  return static_cast<double>((x > 0) - (x < 0));
}

}  // namespace

bool Engine::clips_query_keys() const {
  const OptimizerConfig& optimizer = config_.train.optimizer;
  return model::optimizer_of(optimizer.name).facts().clips_query_keys && optimizer.qk_clip > 0;
}

// Over the data-parallel ranks, which have the same layers.
void Engine::share_observations(bool detailed) {
  std::vector<double> sums, maxima;
  for (const model::SublayerStats& stats : observations_.sublayers) {
    maxima.insert(maxima.end(), stats.max_logits.begin(), stats.max_logits.end());
    if (stats.expert_counts.empty()) continue;
    sums.insert(sums.end(), stats.expert_counts.begin(), stats.expert_counts.end());
    sums.push_back(stats.balance_loss);
    if (detailed) sums.push_back(stats.entropy);
  }
  reduce(*data_, sums, comm::ReduceOp::sum, stream_);
  reduce(*data_, maxima, comm::ReduceOp::max, stream_);
  size_t at = 0, maximum = 0;
  for (model::SublayerStats& stats : observations_.sublayers) {
    for (double& logit : stats.max_logits) {
      logit = maxima[maximum++];
      observations_.max_logit = std::max(observations_.max_logit, logit);
    }
    if (stats.expert_counts.empty()) continue;
    for (double& count : stats.expert_counts) count = sums[at++];
    stats.balance_loss = sums[at++] / static_cast<double>(batch_.global_batch_size);
    if (detailed) stats.entropy = sums[at++];
    observations_.aux_loss += config_.model.aux_loss_alpha * stats.balance_loss;
  }
}

// Moonlight's rule (arXiv 2502.16982, appendix C): up for experts with fewer tokens than the mean, down for the others, the
// biases' mean unchanged. Every rank that holds a bias computes the same.
void Engine::update_selection_biases(double rate) {
  for (size_t sublayer = 0; sublayer < observations_.sublayers.size(); ++sublayer) {
    const std::vector<double>& counts = observations_.sublayers[sublayer].expert_counts;
    if (counts.empty()) continue;
    double mean_sign = 0;
    // Counts add up exactly, so an expert that has the mean is seen to have it.
    const double mean = std::accumulate(counts.begin(), counts.end(), 0.0) / static_cast<double>(counts.size());
    for (double count : counts) mean_sign += sign(mean - count) / static_cast<double>(counts.size());
    const TensorView bias =
        parameters_.value(fmt::format("model.layers.{}.block_sparse_moe.gate.e_score_correction_bias", sublayer / 2));
    const ArenaScope scope(scratch_);
    const TensorView change = scratch_.take(bias.dtype, bias.shape);
    HostRoom room(change, stream_);
    for (size_t e = 0; e < counts.size(); ++e)
      set_element(room.view(), static_cast<int64_t>(e), rate * (sign(mean - counts[e]) - mean_sign));
    room.upload();
    ops::add(ctx_, {bias, change, bias});
  }
}

// MuonClip (Kimi K2, algorithm 1): a head whose largest logit exceeded the threshold gets its query and key weights scaled so
// that the same activations would reach the threshold.
void Engine::clip_query_keys() {
  if (!clips_query_keys()) return;
  const double limit = config_.train.optimizer.qk_clip;
  for (size_t sublayer = 0; sublayer < observations_.sublayers.size(); ++sublayer) {
    const std::vector<double>& logits = observations_.sublayers[sublayer].max_logits;
    for (size_t head = 0; head < logits.size(); ++head) {
      if (!(logits[head] > limit)) continue;
      clip_head(static_cast<int64_t>(sublayer / 2), static_cast<int64_t>(head), limit / logits[head]);
      ++observations_.clipped_heads;
    }
  }
}

// The logit is <q_nope, k_nope> + <q_shared, k_shared>. The shared key belongs to all heads, so its query takes the factor alone.
void Engine::clip_head(int64_t layer, int64_t head, double factor) {
  const ModelConfig& c = config_.model;
  const int64_t d_qk = c.qk_nope_head_dim + c.qk_rope_head_dim, d_kv = c.qk_nope_head_dim + c.v_head_dim;
  const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
  const int q = parameters_.index_of(prefix + (c.q_lora_rank ? "q_b_proj.weight" : "q_proj.weight"));
  const int kv = parameters_.index_of(prefix + "kv_b_proj.weight");
  const double root = std::sqrt(factor);
  const int64_t q_row = head * d_qk, kv_row = head * d_kv;
  optimizer().scale_rows(ctx_, q, q_row, q_row + c.qk_nope_head_dim, root);
  optimizer().scale_rows(ctx_, q, q_row + c.qk_nope_head_dim, q_row + d_qk, factor);
  optimizer().scale_rows(ctx_, kv, kv_row, kv_row + c.qk_nope_head_dim, root);
}

}  // namespace lamina
