// A rank that dies at any step of the schedule ends the job at once, and the message names it. And what the two transports
// of block summaries have in common.
#include <gmock/gmock.h>

#include <chrono>
#include <tuple>

#include "configs/schema/decode.h"
#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Config two_by_two(int data) {
  Config c = tiny_config(Residual::block_attnres, 4, 1);
  c.model.tie_word_embeddings = true;
  c.parallel.pipeline = 2;
  c.parallel.virtual_stages = 2;
  c.parallel.data = data;
  c.train.global_batch_size = 3 * data;
  return c;
}

std::string failure_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::exception& failure) {
    return failure.what();
  }
  return "";
}

// Every step of every rank, sends and receives too: 2 x 2 with one and with two pipelines side by side.
TEST(PipelineFaults, ARankThatDiesAtAnyStepEndsTheJobWithItsName) {
  for (const auto& [schedule, data] : {std::tuple{ScheduleName::interleaved_1f1b, 1},
                                       {ScheduleName::zero_bubble, 1},
                                       {ScheduleName::interleaved_1f1b, 2}}) {
    Config c = two_by_two(data);
    c.parallel.schedule = schedule;
    const int num_ranks = 2 * data;
    int deaths = 0;
    for (int victim = 0; victim < num_ranks; ++victim) {
      for (int moment = 0;; ++moment) {
        int steps = 0;  // of the victim, written by its thread alone
        std::string last;
        const auto start = std::chrono::steady_clock::now();
        const std::string message = failure_of([&] {
          run_step(c, num_ranks, [&](Engine& engine) {
            if (engine.world().rank() != victim) return;
            engine.before_step = [&](const pipeline::Step& step) {
              last = to_string(step);
              if (steps++ == moment) throw Error("died before {}", last);
            };
          });
        });
        if (message.empty()) {  // the moment is after the last step
          EXPECT_EQ(steps, moment);
          EXPECT_GT(moment, 20);
          break;
        }
        ++deaths;
        EXPECT_THAT(message, StartsWith(fmt::format("rank {}: died before {}", victim, last)));
        EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
        if (steps <= moment || ::testing::Test::HasFailure()) return;
      }
    }
    EXPECT_GT(deaths, 20 * num_ranks);
  }
}

// One that fails inside its compute, with an error of its own kind.
TEST(PipelineFaults, AnInternalErrorNamesTheRankToo) {
  const Config c = two_by_two(1);
  const std::string message = failure_of([&] {
    run_step(c, 2, [&](Engine& engine) {
      if (engine.world().rank() == 1)
        engine.before_step = [](const pipeline::Step& step) { LAMINA_CHECK(step.action.microbatch < 2, "seen"); };
    });
  });
  EXPECT_THAT(message, ContainsRegex("rank 1: .*check failed: step.action.microbatch < 2: seen"));
}

// Norm of the difference over the norm, of all tensors as one vector.
double whole_difference(const Tensors& found, const Tensors& expected) {
  double difference = 0, norm = 0;
  for (const auto& [name, values] : expected)
    for (size_t i = 0; i < values.size(); ++i) {
      difference += std::pow(found.at(name)[i] - values[i], 2);
      norm += values[i] * values[i];
    }
  return std::sqrt(difference / norm);
}

// Cached and full differ in what is sent, and in the order in which gradients of a summary are added up.
TEST(PipelineTransports, CachedAndFullAgree) {
  for (const auto& [pipeline, virtual_stages, block_size] :
       {std::tuple{2, 2, 1}, {2, 3, 2}, {3, 2, 1}, {4, 2, 1}, {4, 1, 3}, {3, 3, 3}}) {
    for (const Residual residual : {Residual::block_attnres, Residual::full_attnres}) {
      for (const auto& [precision, tolerance] : {std::pair{Precision::fp32, 1e-6}, {Precision::fp64, 1e-13}}) {
        // Larger than elsewhere: in fp32 the gradients of a few tokens cancel to some units of 1e-6 of their tensor.
        Config c = tiny_config(residual, pipeline * virtual_stages + 1, block_size);
        c.model.hidden_size = 32;
        c.model.vocab_size = 61;
        c.model.kv_lora_rank = 12;
        c.model.intermediate_size = 40;
        c.model.initializer_range = 0.15;
        c.data.seq_len = 16;
        c.parallel.pipeline = pipeline;
        c.parallel.virtual_stages = virtual_stages;
        c.parallel.data = 1;
        c.train.precision = precision;
        c.train.global_batch_size = pipeline + 1;
        const StepResult cached = run_step(c, pipeline);
        c.parallel.block_transport = BlockTransport::full;
        const StepResult full = run_step(c, pipeline);
        const auto [difference, name] = worst_difference(cached.gradients, full.gradients);
        // A norm's weights sum over tokens what cancels to a twentieth: some roundings more than the whole has.
        EXPECT_LE(difference, 5 * tolerance)
            << name << " at " << pipeline << " x " << virtual_stages << ", block " << block_size;
        EXPECT_LE(whole_difference(cached.gradients, full.gradients), tolerance);
        EXPECT_EQ(cached.loss, full.loss) << "the forward pass is the same to the bit";
        EXPECT_LE(cached.summary_bytes, full.summary_bytes);
        if (virtual_stages > 1) {
          EXPECT_LT(cached.summary_bytes, full.summary_bytes);
        }
        EXPECT_EQ(cached.stream_bytes, full.stream_bytes);
      }
    }
  }
}

// The published counts, one block per chunk: measured in bytes on the real hops.
TEST(PipelineTransports, BytesOfThePublishedLayouts) {
  for (const auto& [pipeline, virtual_stages, cached, full] :
       {std::tuple{4, 2, 14, 28}, {3, 3, 9, 36}, {4, 4, 30, 120}, {2, 2, 1, 6}}) {
    for (const BlockTransport transport : {BlockTransport::cached, BlockTransport::full}) {
      Config c = tiny_config(Residual::block_attnres, pipeline * virtual_stages, 1);
      c.parallel.pipeline = pipeline;
      c.parallel.virtual_stages = virtual_stages;
      c.parallel.data = 1;
      c.parallel.split.assign(static_cast<size_t>(pipeline * virtual_stages), 1);
      c.parallel.block_transport = transport;
      c.train.global_batch_size = 5;
      const int64_t message = c.data.seq_len * c.model.hidden_size * 8, both_ways = 2 * 5 * message;
      const StepResult found = run_step(c, pipeline);
      EXPECT_EQ(found.summary_bytes, both_ways * (transport == BlockTransport::cached ? cached : full))
          << pipeline << " x " << virtual_stages;
      EXPECT_EQ(found.stream_bytes, both_ways * (pipeline * virtual_stages - 1));
    }
  }
}

// The same layout again gives the same bits, whichever thread comes first.
TEST(PipelineTransports, TheSameLayoutGivesTheSameBits) {
  for (const ScheduleName schedule : {ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble}) {
    Config c = two_by_two(2);
    c.parallel.schedule = schedule;
    for (const Precision precision : {Precision::fp32, Precision::bf16}) {
      c.train.precision = precision;
      const StepResult first = run_step(c, 4);
      for (int repeat = 0; repeat < 4; ++repeat) {
        const StepResult again = run_step(c, 4);
        EXPECT_EQ(again.gradients, first.gradients);
        EXPECT_EQ(again.loss, first.loss);
      }
    }
  }
}

}  // namespace
}  // namespace lamina
