#include "model/operations.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "configs/schema/decode.h"
#include "model/plan.h"
#include "parallel/pipeline/block_routes.h"
#include "tests/model/model_support.h"

namespace lamina::model {
namespace {

struct Case {
  ModelConfig config;
  std::vector<int64_t> layers_per_chunk;
};

std::vector<Case> cases() {
  std::vector<Case> all = {{small_config(Residual::standard, 3), {3}},
                           {small_config(Residual::full_attnres, 2), {2}},
                           {small_config(Residual::block_attnres, 5, 2), {5}},
                           {small_config(Residual::block_attnres, 5, 2), {1, 2, 2}},  // cut inside a block
                           {small_config(Residual::block_attnres, 3, 3), {0, 3, 0}},
                           {small_config(Residual::standard, 2), {0, 1, 1}},
                           {hybrid_config(Residual::block_attnres, 4, 2, false), {4}},
                           {hybrid_config(Residual::standard, 4, 1, true), {3, 1}}};
  all[0].config.q_lora_rank = 7;
  all[1].config.qk_rope_head_dim = 0;
  all[7].config.num_shared_experts = 0;
  all[7].config.first_k_dense_replace = 0;
  all[7].config.aux_loss_alpha = 0;
  return all;
}

constexpr int64_t num_sequences = 2, seq_len = 7, num_tokens = num_sequences * seq_len;

std::vector<Operation> operations_of(const Case& c, const ElementSizes& sizes, Recompute recompute,
                                     bool defers_weights = false) {
  std::vector<Operation> all;
  int64_t layer = 0;
  for (size_t i = 0; i < c.layers_per_chunk.size(); ++i) {
    ChunkPass pass;
    pass.range.begin = static_cast<int>(2 * layer);
    layer += c.layers_per_chunk[i];
    pass.range.end = static_cast<int>(2 * layer);
    pass.range.is_last = i + 1 == c.layers_per_chunk.size();
    pass.is_first = i == 0;
    pass.tokens = num_tokens;
    pass.seq_len = seq_len;
    pass.sizes = sizes;
    pass.recompute = recompute;
    pass.defers_weights = defers_weights;
    for (Operation& operation : chunk_operations(c.config, pass)) all.push_back(std::move(operation));
  }
  return all;
}

double flops_of(const std::vector<Operation>& operations, std::initializer_list<Phase> phases) {
  double flops = 0;
  for (const Operation& operation : operations)
    for (const Phase phase : phases)
      if (operation.phase == phase) flops += operation.calls * operation.work.flops;
  return flops;
}

// The operations' sums are the cost model's totals, and what only the operations count.
TEST(Operations, HaveTheFlopsOfTheCostModel) {
  for (const Case& c : cases()) {
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      const ModelConfig& m = c.config;
      const std::vector<Operation> operations = operations_of(c, {2, 4}, recompute);
      double forward = 0, again = 0, scores_and_states = 0;
      for (int64_t layer = 0; layer < m.num_hidden_layers; ++layer) {
        forward += layer_forward_flops(m, layer, seq_len).total() + residual_flops(m, layer);
        again += recompute_flops(m, layer, seq_len, recompute);
        // The kernel of attention's backward has 4 products with keys' width and 3 with values'; the model 2 and 2 per one of forward.
        if (m.mixer(layer) == Mixer::mla)
          scores_and_states += static_cast<double>(m.num_attention_heads * seq_len *
                                                   (2 * (m.qk_nope_head_dim + m.qk_rope_head_dim) + m.v_head_dim));
        else
          scores_and_states += layer_forward_flops(m, layer, seq_len).core;
      }
      if (m.has_depth_reads()) {
        const pipeline::BlockLayout blocks = pipeline::make_block_layout(m);
        const auto d = static_cast<double>(m.hidden_size);
        const int last = blocks.num_blocks() - 1;
        // The first read has one source and is none; the output's is of no layer.
        const double first = 4 * d, output = 4 * d * (blocks.num_blocks() + 1);
        forward += output - first;
        if (recompute != Recompute::none) {
          // Made again but for the pass over the last block's summaries, which the forward pass has just left: all that the last chunk
          // reads in that block.
          const int64_t in_last_chunk = 2 * c.layers_per_chunk.back(), sublayers = 2 * m.num_hidden_layers;
          const int64_t begin =
              std::max<int64_t>({blocks.begin[static_cast<size_t>(last)], sublayers - in_last_chunk, 1});
          again += output - first - 4 * d * (last + 1) * static_cast<double>(sublayers - begin + 1);
        }
      }
      const double head = 3 * head_forward_flops(m).total();
      EXPECT_DOUBLE_EQ(flops_of(operations, {Phase::forward}), num_tokens * (forward + head));
      EXPECT_DOUBLE_EQ(flops_of(operations, {Phase::again}), num_tokens * again);
      EXPECT_DOUBLE_EQ(flops_of(operations, {Phase::backward}), num_tokens * (2 * forward + scores_and_states));
    }
  }
}

struct Found {
  double calls = 0;
  Work work;
};
Found find(const std::vector<Operation>& operations, const std::string& name, const std::string& op, Phase phase) {
  Found found;
  for (const Operation& operation : operations) {
    if (operation.name != name || operation.op != op || operation.phase != phase) continue;
    found.calls += operation.calls;
    found.work += operation.calls * operation.work;
  }
  return found;
}

// One micro-batch of 4,096 tokens of Kimi Linear 48B in bf16, on one of four expert ranks, counted by hand.
TEST(Operations, OfThe48BByHand) {
  const ModelConfig c = load_config(LAMINA_SOURCE_DIR "/configs/kimi_linear_48b.yaml").model;
  ChunkPass pass;
  pass.range = {0, 54, true};
  pass.tokens = 4096;
  pass.seq_len = 4096;
  pass.sizes = {2, 4};
  pass.recompute = Recompute::selective;
  pass.expert_ranks = 4;
  const std::vector<Operation> all = chunk_operations(c, pass);
  const auto expect = [&](const char* name, const char* op, Phase phase, double calls, const Work& each) {
    const Found found = find(all, name, op, phase);
    EXPECT_EQ(found.calls, calls) << name << " " << op;
    EXPECT_DOUBLE_EQ(found.work.flops, calls * each.flops) << name << " " << op;
    EXPECT_DOUBLE_EQ(found.work.bytes, calls * each.bytes) << name << " " << op;
    EXPECT_DOUBLE_EQ(found.work.launches, calls * each.launches) << name << " " << op;
  };
  const double t = 4096, d = 2304, width = 32 * 128;
  // 7 layers of MLA, heads of 192 and 128.
  expect("MLA: attention", "attention_forward", Phase::forward, 7,
         {t * t * 32 * 320, t * 32 * 2 * (2 * 192 + 2 * 128), 1});
  expect("MLA: attention", "attention_backward", Phase::backward, 7,
         {t * t * 32 * (4 * 192 + 3 * 128), t * 32 * 2 * (6 * 192 + 7 * 128), 3});
  expect("MLA: kv_b", "matmul", Phase::again, 7, {2 * t * 512 * 8192, 2 * (t * (512 + 8192) + 512 * 8192), 1});
  expect("MLA: packed keys", "pack_shared_keys", Phase::again, 7, {0, 2 * t * (32 * (128 + 192) + 64), 1});
  expect("MLA: packed keys", "unpack_shared_keys", Phase::backward, 7, {0, 2 * t * (32 * (128 + 192) + 64), 2});
  // 20 layers of KDA; projections of 3 x 4,096 + 2 x 128 + 32.
  expect("KDA: q, k, v, f_a, g_a, beta", "matmul", Phase::forward, 20,
         {2 * t * d * 12576, 2 * (t * (d + 12576) + d * 12576), 1});
  expect("KDA: convolution", "short_conv_forward", Phase::again, 20, {2 * t * 3 * width * 4, 2 * t * 3 * width * 2, 1});
  expect("KDA: recurrence", "kda_forward", Phase::forward, 20, {t * 32 * 126976, t * width * (8 + 4 + 16), 2});
  expect("KDA: recurrence", "kda_backward", Phase::backward, 20, {3 * t * 32 * 126976, t * width * (68 + 12), 4});
  expect("KDA: gated norm", "gated_rms_norm_backward", Phase::backward, 20, {0, 2 * t * width * 6, 2});
  // 26 layers of experts: 8 pairs a token, 64 of 256 experts here; each token's row goes to 4 (1 - 0.75^8) ranks.
  const double pairs = 8 * t, rows = t * 4 * (1 - std::pow(0.75, 8));
  expect("experts: gate, up", "grouped_linear", Phase::forward, 26,
         {2 * pairs * d * 2048, 2 * (pairs * (d + 2048) + 64 * d * 2048), 2});
  expect("experts: down", "grouped_linear_weight_gradient", Phase::backward, 26,
         {2 * pairs * d * 1024, 2 * pairs * (d + 1024) + 8 * 64 * d * 1024, 1});
  expect("experts: order", "group_rows", Phase::forward, 26, {0, 4 * 5 * 8 * rows, 4});
  EXPECT_DOUBLE_EQ(find(all, "experts: rows in order", "gather_rows", Phase::backward).work.bytes,
                   26 * 2 * d * (t + rows + 2 * (rows + pairs)));
  expect("router", "matmul", Phase::forward, 26, {2 * t * d * 256, 2 * (t * d + d * 256) + 4 * t * 256, 1});
  // Nine blocks of six sublayers. The first read is none; the last block's part has the output's too, and overwrites the summaries'
  // gradients.
  double read = 0, read_backward = 0;
  for (int block = 0; block < 9; ++block) {
    const double sources = block + 1, queries = block == 0 ? 5 : block == 8 ? 7 : 6;
    read += 2 * (sources + queries);
    read_backward += 2 * (sources + queries) + sources * (block == 8 ? 4 : 8);
  }
  EXPECT_DOUBLE_EQ(find(all, "depth read", "attn_res_phase1_forward", Phase::forward).work.bytes, t * d * read);
  EXPECT_DOUBLE_EQ(find(all, "depth read", "attn_res_phase1_backward", Phase::backward).work.bytes,
                   t * d * read_backward);
  EXPECT_DOUBLE_EQ(find(all, "depth read", "attn_res_phase1_forward", Phase::forward).work.launches, 9 * 2);
  // 256 MiB of logits are 409 tokens: eleven pieces. Each reads and writes the weight's gradient.
  expect("head: logits", "matmul", Phase::forward, 11,
         {2 * t / 11 * d * 163840, 2 * (t / 11 * d + d * 163840) + 4 * t / 11 * 163840, 1});
  EXPECT_DOUBLE_EQ(find(all, "head: gradients", "matmul", Phase::forward).work.bytes,
                   2 * 2 * t * (d + 163840) + 11 * (2 + 8) * d * 163840);
}

TEST(Operations, OfTheUpdate) {
  Config config = load_config(LAMINA_SOURCE_DIR "/configs/kimi_linear_48b.yaml");
  config.model.num_hidden_layers = 5;
  config.model.num_experts = 16;
  const std::vector<Operation> all = update_operations(config, 1), eighth = update_operations(config, 8);
  std::map<OptimizerName, OptimizerCount> counts = optimizer_counts(config);
  const OptimizerCount adamw = counts[OptimizerName::adamw], muon = counts[OptimizerName::muon];
  const double parameters = static_cast<double>(model_parameters(config.model).total());
  EXPECT_DOUBLE_EQ(find(all, "gradient's norm", "sum_squares", Phase::update).work.bytes, 4 * parameters);
  EXPECT_DOUBLE_EQ(find(all, "AdamW", "adamw", Phase::update).work.bytes,
                   (28 + 2) * static_cast<double>(adamw.elements));
  EXPECT_DOUBLE_EQ(find(all, "Muon: momentum", "muon_momentum", Phase::update).work.bytes,
                   16 * static_cast<double>(muon.elements));
  EXPECT_DOUBLE_EQ(flops_of(all, {Phase::update}), muon.flops);
  EXPECT_DOUBLE_EQ(flops_of(eighth, {Phase::update}), muon.flops / 8);
}

// ---- Predicted times ----

PlanInputs on_two_stages() {
  PlanInputs inputs;
  inputs.config.model = small_config(Residual::block_attnres, 4, 1);
  inputs.config.data.seq_len = 8;
  inputs.config.train.micro_batch_size = 2;
  inputs.config.train.global_batch_size = 12;
  inputs.config.train.precision = Precision::bf16;
  inputs.config.parallel.pipeline = 2;
  inputs.num_ranks = 4;
  PlanDevice& device = inputs.device;
  device.tflops = device.experts_tflops = device.attention_tflops = device.kda_tflops = 1e-3;  // 10^9 FLOP a second
  device.memory_gbps = 1e12;
  device.node_gbps = device.bandwidth_gbps = 1e12;
  device.launch_us = 1e-12;
  return inputs;
}

double total(const PlanInputs& inputs, double OperationTime::*part) {
  const Plan plan = make_plan(inputs);
  double sum = 0;
  for (const RankPlan& rank : plan.ranks)
    for (const OperationTime& time : predict_operations(inputs, plan, rank)) sum += time.*part;
  return sum;
}

// With a memory and messages that take no time a step takes its FLOPs: the plan's own, and those that HaveTheFlopsOfTheCostModel names.
TEST(PredictedOperations, TakeTheirFlops) {
  const PlanInputs inputs = on_two_stages();
  const Plan plan = make_plan(inputs);
  double flops = 0;
  for (const RankPlan& rank : plan.ranks) flops += rank.flops;
  // Of three micro-batches of 16 tokens: scores that attention's backward makes again in four layers; the output's read has 5 sources,
  // the first one none.
  const double tokens = 3 * 16, scores = 4 * 3 * 8 * (2 * 10 + 5), reads = 3 * 4 * 24 * (5 - 1);
  EXPECT_NEAR(total(inputs, &OperationTime::compute), 1e-9 * (flops + tokens * (scores + reads)), 1e-12);
}

TEST(PredictedOperations, TakeTheirBytesLaunchesAndMessages) {
  PlanInputs inputs = on_two_stages();
  const Plan plan = make_plan(inputs);
  PlanDevice& device = inputs.device;
  device.tflops = device.experts_tflops = device.attention_tflops = device.kda_tflops = 1e12;
  device.memory_gbps = 2;
  device.launch_us = 3;
  device.bandwidth_gbps = 5;
  device.node_gbps = 7;
  device.ranks_per_node = 2;  // the pipeline crosses nodes, two data-parallel ranks share one
  for (const RankPlan& rank : plan.ranks) {
    double bytes = 0, launches = 0, memory_seconds = 0, launch_seconds = 0, network_seconds = 0;
    for (const OperationTime& time : predict_operations(inputs, plan, rank)) {
      const bool is_sent = std::string_view(time.pass) == "sent";
      EXPECT_EQ(is_sent, std::string_view(time.op).empty()) << time.name;
      bytes += is_sent ? 0 : time.work.bytes;
      launches += time.work.launches;
      memory_seconds += time.memory, launch_seconds += time.launches, network_seconds += time.network;
    }
    EXPECT_GT(bytes, 0);
    EXPECT_DOUBLE_EQ(memory_seconds, bytes / 2e9);
    EXPECT_DOUBLE_EQ(launch_seconds, launches * 3e-6);
    EXPECT_DOUBLE_EQ(network_seconds,
                     (rank.pipeline_hidden_bytes + rank.pipeline_block_bytes) / 5e9 + rank.data_bytes / 7e9);
  }
}

TEST(PredictedOperations, SayWhatBoundsThem) {
  OperationTime time;
  time.compute = 2;
  EXPECT_STREQ(time.bound_by(), "compute");
  time.memory = 3;
  EXPECT_STREQ(time.bound_by(), "memory");
  time.launches = 4;
  EXPECT_STREQ(time.bound_by(), "launches");
  time.network = 5;
  EXPECT_STREQ(time.bound_by(), "network");
  EXPECT_EQ(time.seconds(), 14);
}

TEST(PredictedOperations, OfADeviceFile) {
  const PlanDevice device = plan_device(load_device(LAMINA_SOURCE_DIR "/configs/devices/h200.yaml"));
  EXPECT_DOUBLE_EQ(device.tflops, 0.8 * 989.5);
  EXPECT_DOUBLE_EQ(device.experts_tflops, 0.6 * 989.5);
  EXPECT_DOUBLE_EQ(device.attention_tflops, 0.27 * 989.5);
  EXPECT_DOUBLE_EQ(device.kda_tflops, 0.075 * 989.5);
  EXPECT_EQ(device.peak_tflops, 989.5);
  EXPECT_DOUBLE_EQ(device.memory_gbps, 4320);
  EXPECT_DOUBLE_EQ(device.memory_gib, 133);
  EXPECT_DOUBLE_EQ(device.node_gbps, 360);
  EXPECT_DOUBLE_EQ(device.bandwidth_gbps, 45);
  EXPECT_EQ(device.launch_us, 3);
}

}  // namespace
}  // namespace lamina::model
