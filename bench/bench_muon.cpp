// The optimizer's share of a training step: Muon against AdamW, on the ladder's largest size, the two taken in turn.
// Usage: bench_muon [--config FILE] [--threads N] [--repeats N]
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
#include "model/cost_model.h"
#include "parallel/comm/thread.h"
#include "trainer/step/bf16_choice.h"
#include "trainer/step/engine.h"
#include "trainer/step/peak_rate.h"

namespace lamina {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Run {
 public:
  explicit Run(const Config& config) : comm_(comm::make_self_communicator()), engine_(config, *comm_, nullptr) {
    engine_.initialise();
    choose_bf16_products(engine_, nullptr);
    const CounterRng rng(1, "bench");
    tokens_.resize(static_cast<size_t>(config.train.global_batch_size * config.data.seq_len));
    for (size_t i = 0; i < tokens_.size(); ++i)
      tokens_[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(config.model.vocab_size)));
  }
  void step() {
    const double start = now();
    engine_.accumulate_gradients(tokens_, tokens_, 1.0 / static_cast<double>(tokens_.size()));
    const double middle = now();
    engine_.update(++step_, 1e-4, 1.0);
    update_.push_back(now() - middle);
    whole_.push_back(now() - start);
  }
  double update() const { return median(update_); }
  double whole() const { return median(whole_); }
  size_t num_tokens() const { return tokens_.size(); }
  double peak_gflops(Precision precision) {
    return measure_peak_gflops(precision, engine_.context().stream, engine_.context().bf16_products);
  }

 private:
  std::unique_ptr<comm::Communicator> comm_;
  Engine engine_;
  std::vector<int32_t> tokens_;
  std::vector<double> update_, whole_;
  int64_t step_ = 0;
};

void run(const std::string& file, int threads, int repeats) {
  cpu::set_num_threads(threads);
  std::vector<std::unique_ptr<Run>> runs;
  double newton_schulz = 0, peak = 0;
  for (const char* name : {"muon", "adamw"}) {
    Config config = load_config(file);
    config.train.optimizer.name = name == std::string("muon") ? OptimizerName::muon : OptimizerName::adamw;
    config.model.vocab_size = 257;  // bytes
    newton_schulz += model::optimizer_counts(config)[OptimizerName::muon].flops;
    runs.push_back(std::make_unique<Run>(config));
    peak = runs.back()->peak_gflops(config.train.precision);
  }
  for (int i = 0; i < repeats; ++i)
    for (auto& each : runs) each->step();
  std::printf("%s, %zu tokens per step, %d thread(s)\n%-7s %10s %12s %10s\n", file.c_str(), runs[0]->num_tokens(),
              threads, "", "step ms", "update ms", "share");
  for (size_t i = 0; i < runs.size(); ++i)
    std::printf("%-7s %10.1f %12.2f %10.3f\n", i == 0 ? "muon" : "adamw", 1e3 * runs[i]->whole(),
                1e3 * runs[i]->update(), runs[i]->update() / runs[i]->whole());
  const double rate = newton_schulz / 1e9 / (runs[0]->update() - runs[1]->update());
  std::printf("Newton-Schulz %.2f GFLOP; at %.1f GFLOP/s, %.2f of a large product's %.1f\n", newton_schulz / 1e9, rate,
              rate / peak, peak);
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  std::string file = "configs/ladders/cpu/cpu_4m.yaml";
  int threads = lamina::cpu::num_threads(), repeats = 5;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--config") {
      file = argv[i + 1];
    } else if (option == "--threads") {
      threads = std::stoi(argv[i + 1]);
    } else if (option == "--repeats") {
      repeats = std::stoi(argv[i + 1]);
    } else {
      std::fprintf(stderr, "unknown option %s, expected --config, --threads or --repeats\n", argv[i]);
      return 1;
    }
  }
  lamina::run(file, threads, repeats);
  return 0;
}
