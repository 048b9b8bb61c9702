// The pipeline on one machine, as ratios taken in one run: a pipeline of 2 ranks with a core each against one rank with both,
// schedules against each other and against their own bound, and block summaries sent once (cached) or every time (full).
//   speed      one rank's step time over the layout's, the layouts taken in turn
//   bound      1 - bubble of the schedule, simulated with the measured time of each chunk and free messages
//   efficiency simulated makespan over the measured one
// Ranks are threads of this process. Usage: bench_pipeline [--repeats N] [--microbatches N] [--layers N]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "parallel/comm/thread.h"
#include "trainer/record/pipeline_stats.h"
#include "trainer/step/engine.h"

namespace lamina {
namespace {

struct Options {
  int repeats = 3, microbatches = 8;
  int64_t layers = 8;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

Config base_config(const Options& options, Precision precision) {
  Config c;
  c.model.vocab_size = 4096;
  c.model.hidden_size = 512;
  c.model.num_hidden_layers = options.layers;
  c.model.attn_res_block_size = 1;  // as many summaries as chunks may have
  c.model.num_attention_heads = 8;
  c.model.kv_lora_rank = 128;
  c.model.qk_nope_head_dim = 64;
  c.model.qk_rope_head_dim = 32;
  c.model.v_head_dim = 64;
  c.model.intermediate_size = 1408;
  c.data.seq_len = 256;
  c.train.micro_batch_size = 1;
  c.train.global_batch_size = options.microbatches;
  c.train.precision = precision;
  c.train.optimizer.lr = 1e-4;
  return c;
}

struct Layout {
  std::string name;
  ScheduleName schedule;
  int virtual_stages;
  BlockTransport transport;
};

struct Measured {
  std::vector<double> seconds, speed, bubble, bound, efficiency;
  double stream_mb = 0, summary_mb = 0;  // sent in a step, both ranks
};

std::vector<int32_t> random_tokens(const Config& c, const char* stream) {
  const CounterRng rng(1, stream);
  std::vector<int32_t> tokens(static_cast<size_t>(c.train.global_batch_size * c.data.seq_len));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(c.model.vocab_size)));
  return tokens;
}

// Forward, backward and the wait for the last message: what the schedule is about.
double gradients(Engine& engine, const Config& c) {
  static thread_local std::vector<int32_t> tokens, targets;
  tokens = random_tokens(c, "tokens");
  targets = random_tokens(c, "targets");
  const double start = now();
  engine.accumulate_gradients(tokens, targets, 1.0 / static_cast<double>(tokens.size()));
  return now() - start;
}

void run_rank(comm::Communicator& comm, const Options& options, const std::vector<Layout>& layouts, Precision precision,
              std::vector<Measured>& results) {
  const Config base = base_config(options, precision);
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<Config> configs;
  for (const Layout& layout : layouts) {
    Config c = base;
    c.parallel.pipeline = comm.size();
    c.parallel.virtual_stages = layout.virtual_stages;
    c.parallel.schedule = layout.schedule;
    c.parallel.block_transport = layout.transport;
    configs.push_back(c);
    engines.push_back(std::make_unique<Engine>(c, comm, nullptr));
    engines.back()->initialise();
  }
  const auto self = comm::make_self_communicator();
  std::unique_ptr<Engine> alone;
  if (comm.rank() == 0) {
    alone = std::make_unique<Engine>(base, *self, nullptr);
    alone->initialise();
  }
  for (int i = 0; i <= options.repeats; ++i) {
    double one_rank = 0;
    for (size_t l = 0; l < layouts.size(); ++l) {
      if (l % 3 == 0) {  // close in time to what it is compared with
        comm.barrier();
        if (comm.rank() == 0) {
          cpu::set_num_threads(comm.size());
          one_rank = gradients(*alone, base);
        }
        cpu::set_num_threads(1);
        comm.barrier();
      }
      comm.barrier();
      const double seconds = gradients(*engines[l], configs[l]);
      const auto& execution = engines[l]->last_execution();
      const PipelineStats stats =
          pipeline_stats(comm, engines[l]->schedule(), execution, comm.rank(), engines[l]->plan().num_chunks(), 1);
      double sent[2] = {static_cast<double>(execution.stream_bytes_sent) / 1e6,
                        static_cast<double>(execution.summary_bytes_sent) / 1e6};
      Stream stream;
      comm.all_reduce(TensorView(sent, DType::f64, {2}), comm::ReduceOp::sum, stream).wait();
      if (i == 0 || comm.rank() != 0) continue;  // the first round is the warm-up
      Measured& m = results[l];
      m.seconds.push_back(seconds);
      m.speed.push_back(one_rank / seconds);
      m.bubble.push_back(stats.bubble);
      m.bound.push_back(1 - stats.bubble_bound);
      m.efficiency.push_back(stats.efficiency);
      m.stream_mb = sent[0];
      m.summary_mb = sent[1];
    }
  }
}

void bench(const Options& options, Precision precision) {
  const std::vector<Layout> layouts = {
      {"2 x 1 gpipe", ScheduleName::gpipe, 1, BlockTransport::cached},
      {"2 x 1 1f1b", ScheduleName::one_f_one_b, 1, BlockTransport::cached},
      {"2 x 1 zero_bubble", ScheduleName::zero_bubble, 1, BlockTransport::cached},
      {"2 x 2 interleaved_1f1b", ScheduleName::interleaved_1f1b, 2, BlockTransport::cached},
      {"2 x 2 zero_bubble", ScheduleName::zero_bubble, 2, BlockTransport::cached},
      {"2 x 2 interleaved_1f1b, full", ScheduleName::interleaved_1f1b, 2, BlockTransport::full},
      {"2 x 4 interleaved_1f1b", ScheduleName::interleaved_1f1b, 4, BlockTransport::cached},
      {"2 x 4 interleaved_1f1b, full", ScheduleName::interleaved_1f1b, 4, BlockTransport::full},
      {"2 x 4 zero_bubble", ScheduleName::zero_bubble, 4, BlockTransport::cached}};
  std::vector<Measured> results(layouts.size());
  comm::run_threads(2, [&](comm::Communicator& comm) { run_rank(comm, options, layouts, precision, results); });
  std::printf(
      "\n%s, hidden 512 x %lld layers, blocks of 1 layer, %d micro-batches of 256 tokens; one rank on 2 threads = 1\n",
      std::string(name_of(compute_dtype(precision))).c_str(), static_cast<long long>(options.layers),
      options.microbatches);
  std::printf("%-30s %9s %7s %7s %11s %8s %11s %9s %10s\n", "layout", "seconds", "speed", "bound", "speed/bound",
              "bubble", "efficiency", "MB hidden", "MB blocks");
  for (size_t l = 0; l < layouts.size(); ++l) {
    const Measured& m = results[l];
    std::printf("%-30s %9.3f %7.3f %7.3f %11.3f %8.3f %11.3f %9.1f %10.1f\n", layouts[l].name.c_str(),
                median(m.seconds), median(m.speed), median(m.bound), median(m.speed) / median(m.bound),
                median(m.bubble), median(m.efficiency), m.stream_mb, m.summary_mb);
  }
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  lamina::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const int value = std::atoi(argv[i + 1]);
    if (name == "--repeats" && value > 0) {
      options.repeats = value;
    } else if (name == "--microbatches" && value > 0) {
      options.microbatches = value;
    } else if (name == "--layers" && value > 0) {
      options.layers = value;
    } else {
      std::fprintf(stderr, "bench_pipeline: unexpected %s %s; see the file's head\n", argv[i], argv[i + 1]);
      return 2;
    }
  }
  bench(options, lamina::Precision::fp32);
  bench(options, lamina::Precision::bf16);
  return 0;
}
