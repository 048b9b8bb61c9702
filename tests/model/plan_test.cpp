#include "model/plan.h"

#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "model/plan_pipeline.h"

namespace lamina::model {
namespace {

const std::filesystem::path root = LAMINA_SOURCE_DIR;

PlanInputs inputs_of(const std::string& config, int num_ranks, const std::vector<std::string>& overrides = {}) {
  PlanInputs inputs;
  inputs.config = load_config((root / "configs" / config).string(), overrides);
  if (inputs.config.model.vocab_size == 0) inputs.config.model.vocab_size = 259;  // the byte tokenizer's
  inputs.num_ranks = num_ranks;
  return inputs;
}

double sum_over_ranks(const Plan& plan, double RankPlan::*field) {
  double sum = 0;
  for (const RankPlan& rank : plan.ranks) sum += rank.*field;
  return sum;
}

// After a change: LAMINA_UPDATE_GOLDEN=1 tests_model --gtest_filter='Plan.*'
void expect_golden(const std::string& name, const std::string& text) {
  const std::filesystem::path file = root / "tests/golden" / name;
  if (std::getenv("LAMINA_UPDATE_GOLDEN")) std::ofstream(file, std::ios::binary) << text;
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream golden;
  golden << stream.rdbuf();
  EXPECT_EQ(text, golden.str()) << file;
}

TEST(Plan, PrintsThe48B) {
  for (const int ranks : {8, 64, 256, 1024}) {
    const PlanInputs inputs =
        inputs_of("kimi_linear_48b.yaml", ranks, {ranks == 8 ? "parallel.expert=2" : "parallel.expert=8"});
    expect_golden(fmt::format("plan_48b_{}.txt", ranks),
                  to_text(make_plan(inputs), inputs) + "\n" + to_text(search_layouts(inputs), inputs));
  }
}

TEST(Plan, PrintsTiny) {
  const PlanInputs one = inputs_of("tiny.yaml", 1);
  const PlanInputs four = inputs_of("tiny.yaml", 4, {"parallel.pipeline=2", "parallel.virtual_stages=2"});
  expect_golden("plan_tiny.txt", to_text(make_plan(one), one) + "\n" + to_text(make_plan(four), four) + "\n" +
                                     to_text(search_layouts(four), four));
}

TEST(Plan, EightGpusOf80GiBAreTooSmallForThe48BAnd139GiBAreNot) {
  // 14 bytes per parameter, all of them shared out or held by one of eight ranks: 80 GiB on average.
  PlanInputs inputs = inputs_of("kimi_linear_48b.yaml", 8, {"parallel.expert=2"});
  EXPECT_FALSE(make_plan(inputs).fits(inputs.device));
  EXPECT_FALSE(search_layouts(inputs).front().fits(inputs.device));
  EXPECT_THAT(to_text(make_plan(inputs), inputs), testing::HasSubstr("DOES NOT FIT"));
  inputs.device.memory_gib = 139;
  const Plan best = search_layouts(inputs).front();
  EXPECT_TRUE(best.fits(inputs.device));
  EXPECT_GT(best.peak_bytes(), 49122935168 * 14.0 / 8);
}

TEST(Plan, ShowsTheFormulaOfTheOperations) {
  const PlanInputs large = inputs_of("kimi_linear_48b.yaml", 64, {"parallel.expert=8"});
  const std::string text = to_text(make_plan(large), large);
  for (const char* part :
       {"49122935168 parameters in 20603 tensors", "active 3107225984", "= 19.765 GFLOP per token at T = 4096",
        "N_mm       3106750464", "7 x 32 x 4096 (192 + 128)", "20 x 32, K = 128",
        "Muon: 48366501888 elements, AdamW: 756426624, buffers: 6656; Newton-Schulz 1.24 PFLOP per step (0.19 %)"})
    EXPECT_THAT(text, testing::HasSubstr(part));
  const PlanInputs tiny = inputs_of("tiny.yaml", 1);
  EXPECT_THAT(to_text(make_plan(tiny), tiny), testing::Not(testing::HasSubstr("KDA")));
}

// The published counts of the ladders' active parameters: AttnRes without embedding and head, Kimi Linear with the head.
TEST(Plan, LaddersHaveTheirActiveParameters) {
  struct Published {
    const char* file;
    double active;
  };
  const auto active = [](const std::string& file, bool with_head) {
    const ModelConfig model = load_config((root / "configs/ladders" / file).string(), {}).model;
    return static_cast<double>(active_parameters(model) - (with_head ? 0 : model.vocab_size * model.hidden_size));
  };
  for (const auto& [file, published] :
       {Published{"attnres/attnres_194m.yaml", 194e6}, Published{"attnres/attnres_241m.yaml", 241e6},
        Published{"attnres/attnres_296m.yaml", 296e6}, Published{"attnres/attnres_436m.yaml", 436e6},
        Published{"attnres/attnres_528m.yaml", 528e6}})
    EXPECT_NEAR(active(file, false), published, 0.02 * published) << file;
  for (const auto& [file, published] :
       {Published{"kimi_linear/kimi_linear_653m.yaml", 653e6}, Published{"kimi_linear/kimi_linear_878m.yaml", 878e6},
        Published{"kimi_linear/kimi_linear_1100m.yaml", 1.1e9}, Published{"kimi_linear/kimi_linear_1400m.yaml", 1.4e9},
        Published{"kimi_linear/kimi_linear_1700m.yaml", 1.7e9}})
    EXPECT_NEAR(active(file, true), published, 0.02 * published) << file;
  for (const auto& [file, wanted] : {Published{"cpu/cpu_500k.yaml", 0.5e6}, Published{"cpu/cpu_1m.yaml", 1e6},
                                     Published{"cpu/cpu_2m.yaml", 2e6}, Published{"cpu/cpu_4m.yaml", 4e6}})
    EXPECT_NEAR(active(file, false), wanted, 0.15 * wanted) << file;
}

TEST(Plan, EveryConfigurationOfTheProjectHasALayout) {
  int count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root / "configs")) {
    const std::string folder = entry.path().parent_path().filename();
    if (entry.path().extension() != ".yaml" || folder == "sweeps" || folder == "devices") continue;
    const std::string file = std::filesystem::relative(entry.path(), root / "configs").string();
    const Config config = load_config(entry.path().string());
    const PlanInputs inputs = inputs_of(file, config.parallel.pipeline);
    EXPECT_GT(make_plan(inputs).step_seconds(), 0) << file;
    ++count;
  }
  EXPECT_GE(count, 17);
}

TEST(Plan, EveryParameterIsOnOneRank) {
  for (const char* tied : {"false", "true"}) {
    const PlanInputs inputs = inputs_of(
        "tiny.yaml", 4,
        {"parallel.pipeline=4", "parallel.virtual_stages=2", fmt::format("model.tie_word_embeddings={}", tied)});
    const Plan plan = make_plan(inputs);
    int64_t total = 0, of_chunks = 0;
    for (const RankPlan& rank : plan.ranks) {
      total += rank.parameters.total();
      for (const ChunkPlan& chunk : rank.chunks) of_chunks += chunk.parameters;
    }
    EXPECT_EQ(of_chunks, plan.num_parameters);
    const int64_t copy = inputs.config.model.tie_word_embeddings ? int64_t{259} * 256 : 0;  // on the last rank
    EXPECT_EQ(total, plan.num_parameters + copy);
  }
}

TEST(Plan, StateIs18BytesPerParameterAndShardedOverData) {
  const Plan one = make_plan(inputs_of("tiny.yaml", 1));
  const MemoryPlan& memory = one.ranks.at(0).memory;
  const ParameterCount count = model_parameters(inputs_of("tiny.yaml", 1).config.model);
  const auto matrices = static_cast<double>(count.matrices), vectors = static_cast<double>(count.vectors);
  EXPECT_EQ(memory.parameters, 2 * matrices + 4 * vectors);
  EXPECT_EQ(memory.gradients, 4 * (matrices + vectors));
  EXPECT_EQ(memory.optimizer, 12 * matrices + 8 * vectors);  // vectors are their own masters
  const Plan four = make_plan(inputs_of("tiny.yaml", 4));
  EXPECT_EQ(four.ranks.at(0).memory.optimizer, memory.optimizer / 4);
  EXPECT_EQ(four.ranks.at(0).data_bytes, (6 * matrices + 8 * vectors) * 3 / 4);
  const Plan fp32 = make_plan(inputs_of("tiny.yaml", 1, {"train.precision=fp32"}));
  EXPECT_EQ(fp32.ranks.at(0).memory.optimizer, 8 * (matrices + vectors));
  // Experts: one eighth held, their optimizer over the ranks that hold the same.
  const PlanInputs wide = inputs_of("kimi_linear_48b.yaml", 64, {"parallel.expert=8"});
  const RankPlan rank = make_plan(wide).ranks.at(1);
  const auto experts = static_cast<double>(rank.parameters.experts),
             dense = static_cast<double>(rank.parameters.matrices);
  const auto linear = static_cast<double>(rank.parameters.linear);
  // Muon: a momentum beside the master; AdamW for the rest of the matrices, which rank 1 has none of.
  EXPECT_EQ(linear, dense);
  EXPECT_EQ(rank.memory.optimizer,
            8 * experts / 2 + 8 * dense / 16 + 8 * static_cast<double>(rank.parameters.vectors) / 16);
  const RankPlan last = make_plan(wide).ranks.at(3);
  EXPECT_EQ(last.parameters.matrices - last.parameters.linear, 163840 * 2304);  // the head
  const PlanInputs adamw =
      inputs_of("kimi_linear_48b.yaml", 64, {"parallel.expert=8", "train.optimizer={name: adamw, lr: 1e-3}"});
  EXPECT_EQ(make_plan(adamw).ranks.at(1).memory.optimizer - rank.memory.optimizer, 4 * (experts / 2 + dense / 16));
  EXPECT_EQ(rank.data_bytes,
            6 * experts / 2 + (6 * dense + 8 * static_cast<double>(rank.parameters.vectors)) * 15 / 16);
}

// One block per chunk: 14 summaries cached and 28 in full per micro-batch and direction on 4 x 2 chunks.
TEST(Plan, MessagesAreThoseOfTheRoutes) {
  for (const auto& [transport, summaries] : {std::pair{"cached", 14}, std::pair{"full", 28}}) {
    const Plan plan =
        make_plan(inputs_of("tiny.yaml", 8,
                            {"parallel.pipeline=4", "parallel.virtual_stages=2", "model.attn_res_block_size=1",
                             "parallel.split=[1,1,1,1,1,1,1,1]", "train.global_batch_size=64",
                             fmt::format("parallel.block_transport={}", transport)}));
    EXPECT_EQ(plan.num_microbatches, 8);
    EXPECT_EQ(plan.stream_message_bytes, 4 * 256 * 256 * 2.0);  // 4 sequences of 256 tokens, 256 channels, bf16
    EXPECT_EQ(sum_over_ranks(plan, &RankPlan::pipeline_hidden_bytes), 2 * 7 * 8 * plan.stream_message_bytes);
    EXPECT_EQ(sum_over_ranks(plan, &RankPlan::pipeline_block_bytes), 2.0 * summaries * 8 * plan.summary_message_bytes);
  }
  const Plan one = make_plan(inputs_of("tiny.yaml", 1));
  EXPECT_EQ(one.ranks.at(0).pipeline_hidden_bytes + one.ranks.at(0).pipeline_block_bytes, 0);
  EXPECT_EQ(one.ranks.at(0).data_bytes, 0);
  EXPECT_NEAR(one.bubble, 0, 1e-12);
  const Plan standard = make_plan(
      inputs_of("tiny.yaml", 2, {"parallel.pipeline=2", "model.residual=standard", "model.attn_res_block_size=null"}));
  EXPECT_EQ(sum_over_ranks(standard, &RankPlan::pipeline_block_bytes), 0);
  EXPECT_EQ(standard.ranks.at(0).peak_summaries, 0);
}

TEST(Plan, OperationsAddUp) {
  // Without recomputation and depth reads, the ranks of all replicas do what the model needs, once.
  const Plan plan = make_plan(
      inputs_of("tiny.yaml", 4, {"parallel.pipeline=2", "model.residual=standard", "model.attn_res_block_size=null"}));
  EXPECT_NEAR(sum_over_ranks(plan, &RankPlan::flops) * plan.parallel.data / plan.flops_per_step, 1, 1e-12);
  // A device that only multiplies, at a rate that fills a second per operation of the step.
  PlanInputs inputs = inputs_of("tiny.yaml", 1, {"model.residual=standard", "model.attn_res_block_size=null"});
  inputs.device.memory_gbps = 1e9;
  const Plan fast = make_plan(inputs);
  EXPECT_NEAR(fast.mfu, 1, 1e-3);
  EXPECT_GT(make_plan(inputs_of("tiny.yaml", 1)).ranks.at(0).flops, plan.flops_per_step);
}

TEST(Plan, RefusesLayoutsWithTheReason) {
  const auto reason = [](int ranks, const std::vector<std::string>& overrides) -> std::string {
    try {
      make_plan(inputs_of("tiny.yaml", ranks, overrides));
    } catch (const Error& failure) {
      return failure.what();
    }
    return "no error";
  };
  EXPECT_EQ(reason(4, {"parallel.pipeline=2"}), "no error");
  EXPECT_THAT(reason(3, {"parallel.pipeline=2"}), testing::HasSubstr("expected a divisor of the number of ranks"));
  EXPECT_THAT(reason(3, {}), testing::HasSubstr("the nearest are 12 and 24"));
}

TEST(Plan, SearchFindsEachLayoutOnceAndTheQuickestFirst) {
  const PlanInputs inputs = inputs_of("tiny.yaml", 8);
  const std::vector<Plan> plans = search_layouts(inputs);
  ASSERT_FALSE(plans.empty());
  std::vector<std::string> seen;
  for (size_t i = 0; i < plans.size(); ++i) {
    const Plan& plan = plans[i];
    EXPECT_EQ(plan.parallel.pipeline * plan.parallel.data, 8);
    EXPECT_TRUE(plan.fits(inputs.device));
    EXPECT_LE(plans[i == 0 ? 0 : i - 1].step_seconds(), plan.step_seconds());
    seen.push_back(fmt::format("{} {} {} {}", plan.parallel.pipeline, plan.parallel.virtual_stages,
                               plan.parallel.expert, static_cast<int>(plan.recompute)));
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
  // 16 sequences in micro-batches of 4 allow at most 4 data-parallel ranks: pipeline 2 (1 to 4 stages), 4 (1, 2) and 8 (1).
  EXPECT_EQ(plans.size(), 3u * (4 + 2 + 1));
}

TEST(Plan, SplitsForEqualRanksOrEqualChunks) {
  pipeline::LayerCosts costs;
  costs.layer.assign(16, 1.0);
  ParallelConfig parallel;
  EXPECT_EQ(choose_split(costs, parallel), (std::vector<int64_t>{16}));
  parallel.pipeline = 4;
  EXPECT_EQ(choose_split(costs, parallel), (std::vector<int64_t>{4, 4, 4, 4}));
  parallel.virtual_stages = 2;
  EXPECT_EQ(choose_split(costs, parallel), (std::vector<int64_t>{2, 2, 2, 2, 2, 2, 2, 2}));
  costs.head = 2;  // as much as two layers: the last chunk has fewer
  EXPECT_LE(choose_split(costs, parallel).back(), 1);
  // The layers of the 48B with experts elsewhere cost their exchange too.
  const PlanInputs alone = inputs_of("kimi_linear_48b.yaml", 64),
                   exchanging = inputs_of("kimi_linear_48b.yaml", 64, {"parallel.expert=8"});
  EXPECT_GT(device_costs(exchanging).layer[5], device_costs(alone).layer[5]);
  EXPECT_EQ(device_costs(exchanging).layer[0], device_costs(alone).layer[0]);  // dense
  EXPECT_EQ(device_costs(exchanging).head, device_costs(alone).head);
}

TEST(Plan, ComparesSchedulesOfOneLayout) {
  const auto rows = [](const PlanInputs& inputs) {
    std::vector<std::string> names;
    for (const Plan& plan : compare_schedules(inputs))
      names.push_back(fmt::format("{}{}", static_cast<int>(plan.parallel.schedule),
                                  plan.parallel.block_transport == BlockTransport::full ? " full" : ""));
    return names;
  };
  EXPECT_THAT(rows(inputs_of("tiny.yaml", 4, {"parallel.pipeline=2"})),
              testing::ElementsAre("0", "0 full", "1", "1 full", "3", "3 full"));
  EXPECT_THAT(rows(inputs_of("tiny.yaml", 4, {"parallel.pipeline=2", "parallel.virtual_stages=2"})),
              testing::ElementsAre("0", "0 full", "2", "2 full", "3", "3 full"));
  EXPECT_THAT(rows(inputs_of("tiny.yaml", 1)), testing::ElementsAre("0", "1", "3"));
  const std::vector<Plan> plans = compare_schedules(
      inputs_of("tiny.yaml", 4, {"parallel.pipeline=4", "train.global_batch_size=128", "parallel.virtual_stages=2"}));
  // Both transports compute alike; the cached one sends less. GPipe holds every micro-batch.
  EXPECT_LT(plans[2].ranks[1].pipeline_block_bytes, plans[3].ranks[1].pipeline_block_bytes);
  EXPECT_EQ(plans[2].ranks[1].pipeline_hidden_bytes, plans[3].ranks[1].pipeline_hidden_bytes);
  EXPECT_EQ(plans[0].ranks[0].chunks[0].peak_microbatches, 32);
  EXPECT_LT(plans[2].ranks[0].chunks[0].peak_microbatches, 32);
  EXPECT_GT(plans[0].ranks[0].memory.activations, plans[2].ranks[0].memory.activations);
}

TEST(Plan, ZeroBubbleIsNeverBehindOnTheDefaultDevice) {
  for (const char* pipeline : {"2", "4", "8"})
    for (const char* stages : {"1", "2", "3"}) {
      const PlanInputs inputs =
          inputs_of("kimi_linear_48b.yaml", 64,
                    {"parallel.expert=8", fmt::format("parallel.pipeline={}", pipeline),
                     fmt::format("parallel.virtual_stages={}", stages), "train.global_batch_size=2048"});
      const std::vector<Plan> plans = compare_schedules(inputs);
      ASSERT_EQ(plans.size(), 6u);
      for (const auto transport : {0u, 1u})
        EXPECT_LE(plans[4 + transport].pipeline_seconds, plans[2 + transport].pipeline_seconds * (1 + 1e-6))
            << pipeline << " x " << stages;
    }
}

// A run knows nothing of the device that it is planned for: the order is the same, the times are not.
TEST(Plan, OfARunWithStagesIsThatOfTheFullest) {
  const std::vector<std::string> layout = {"parallel.pipeline=2", "parallel.virtual_stages=2", "train.num_steps=100"};
  std::vector<std::string> staged = layout, alone = layout;
  staged.push_back(
      "stages=[{from_step: 11, global_batch_size: 64}, {from_step: 41, seq_len: 1024, global_batch_size: 16, "
      "micro_batch_size: 2}, {from_step: 61, seq_len: 64}, {from_step: 101, seq_len: 2048}]");
  const PlanInputs run = inputs_of("tiny.yaml", 2, staged);
  const int64_t seq_len = run.config.data.seq_len, batch = run.config.train.global_batch_size;
  alone.insert(alone.end(), {"data.seq_len=1024", "train.global_batch_size=16", "train.micro_batch_size=2",
                             fmt::format("parallel.split=[{}]", fmt::join(resolve_split(run.config), ", "))});
  const Plan plan = make_plan(run), expected = make_plan(inputs_of("tiny.yaml", 2, alone));
  EXPECT_EQ(plan.batch.first, 41);
  EXPECT_EQ(plan.peak_bytes(), expected.peak_bytes());
  EXPECT_EQ(plan.flops_per_step, expected.flops_per_step);
  EXPECT_THAT(to_text(plan, run), testing::HasSubstr("of the one that needs most memory: steps 41-60"));
  const auto flops = [&](int64_t length, int64_t steps, int64_t sequences) {
    return training_flops_per_token(run.config.model, length).total() * static_cast<double>(steps * sequences * length);
  };
  EXPECT_DOUBLE_EQ(training_flops(run.config, 100),
                   flops(seq_len, 10, batch) + flops(seq_len, 30, 64) + flops(1024, 20, 16) + flops(64, 40, 16));
  // 6 sequences with micro-batches of 2 can't be shared by two data-parallel ranks.
  const PlanInputs odd =
      inputs_of("tiny.yaml", 2, {"stages=[{from_step: 5, global_batch_size: 6, micro_batch_size: 2}]"});
  for (const Plan& possible : search_layouts(odd)) EXPECT_EQ(possible.parallel.data, 1);
}

TEST(Plan, SchedulesAreMadeForTheDefaultDevice) {
  PlanInputs inputs = inputs_of("kimi_linear_48b.yaml", 64, {"parallel.expert=8"});
  const std::vector<int64_t> split = resolve_split(inputs.config);
  const pipeline::ChunkCosts plain = chunk_costs(inputs, split), made_for = schedule_costs(inputs.config, 64, split);
  EXPECT_EQ(plain.forward, made_for.forward);
  EXPECT_EQ(plain.hop_backward, made_for.hop_backward);
  EXPECT_EQ(plain.hop_forward.size(), split.size() - 1);
  inputs.device.tflops /= 2;
  inputs.device.bandwidth_gbps /= 4;
  const pipeline::ChunkCosts slow = chunk_costs(inputs, split);
  for (size_t c = 0; c < split.size(); ++c) EXPECT_GT(slow.backward_weight[c] + slow.forward[c], plain.forward[c]);
  EXPECT_DOUBLE_EQ(slow.hop_forward[0], 4 * plain.hop_forward[0]);
  EXPECT_TRUE(chunk_costs(inputs_of("tiny.yaml", 1), {4}).hop_forward.empty());
}

// ---- Extrapolation ----

TEST(PlanPipeline, TheRestOfTheMicrobatchesFollowsExactly) {
  std::mt19937_64 random(11);
  std::uniform_real_distribution<double> cost(0.5, 1.5);
  int shortened = 0;
  for (const ScheduleName schedule :
       {ScheduleName::gpipe, ScheduleName::one_f_one_b, ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble})
    for (const int ranks : {1, 2, 3, 4})
      for (const int stages : {1, 2, 3})
        for (const int64_t microbatches : {3, 40, 61, 150}) {
          if (schedule == ScheduleName::one_f_one_b && stages > 1) continue;
          const auto num_chunks = static_cast<size_t>(ranks * stages);
          pipeline::ChunkCosts costs;
          for (size_t c = 0; c < num_chunks; ++c) {
            costs.forward.push_back(cost(random));
            costs.backward_input.push_back(cost(random));
            costs.backward_weight.push_back(cost(random));
            if (ranks > 1 && c + 1 < num_chunks) {
              costs.hop_forward.push_back(0.1 * cost(random));
              costs.hop_backward.push_back(0.1 * cost(random));
            }
          }
          ModelConfig model;
          model.num_hidden_layers = static_cast<int64_t>(num_chunks);
          model.attn_res_block_size = 2;
          const std::vector<int64_t> split(num_chunks, 1);
          const pipeline::BlockRoutes routes = make_block_routes(
              pipeline::make_chunk_split(split), pipeline::make_block_layout(model), ranks, BlockTransport::cached);
          const PipelineShape shape{schedule, ranks, microbatches, costs};
          const PipelineRun quick = run_pipeline(shape, costs, routes);
          const PipelineRun whole = run_whole_pipeline(shape, costs, routes);
          const auto where = fmt::format("schedule {}, {} x {}, {} micro-batches", static_cast<int>(schedule), ranks,
                                         stages, microbatches);
          EXPECT_NEAR(quick.makespan, whole.makespan, 1e-9 * whole.makespan) << where;
          EXPECT_THAT(quick.peak_microbatches, testing::Pointwise(testing::DoubleNear(1e-9), whole.peak_microbatches))
              << where;
          EXPECT_EQ(quick.peak_summaries, whole.peak_summaries) << where;
          EXPECT_EQ(quick.peak_summary_gradients, whole.peak_summary_gradients) << where;
          shortened += microbatches == 150 ? 1 : 0;
        }
  EXPECT_GT(shortened, 0);
}

TEST(PlanPipeline, AccumulatorsLiveFromTheFirstDepositToTheLast) {
  // 2 ranks, one chunk each of one block of one layer: rank 1 reads the embedding and block 0; rank 0 the embedding alone.
  ModelConfig model;
  model.num_hidden_layers = 2;
  model.attn_res_block_size = 1;
  const std::vector<int64_t> split = {1, 1};
  const pipeline::BlockRoutes routes = make_block_routes(pipeline::make_chunk_split(split),
                                                         pipeline::make_block_layout(model), 2, BlockTransport::cached);
  const pipeline::Schedule schedule = pipeline::make_schedule(ScheduleName::one_f_one_b, 2, 2, 4);
  EXPECT_EQ(peak_summary_gradients(routes, schedule), (std::vector<int>{1, 2}));
}

}  // namespace
}  // namespace lamina::model
