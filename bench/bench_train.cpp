// Training speed as ratios taken in one run:
//   - fraction of the machine's own oneDNN matmul rate, hidden 512 x 8 layers, sequence 512, fp32 and bf16, 1 and 2 threads
//   - step time of Block and Full AttnRes over the standard residual, the three taken in turn
//   - a GPT-2-124M-sized model at batch 4, sequence 64, on all threads, in tokens/s
//   - CPU time of a bf16 step over an fp32 step's, with bf16 products as they are chosen, all native and all through fp32, one
//     thread, taken in turn; DNNL_MAX_CPU_ISA=AVX512_CORE_VNNI or AVX2 in the environment makes of this processor an older one
//   - single steps on request, for programs that take turns with it (bench/torch_dense.py)
// Usage: bench_train [--threads N] [--repeats N] [--only rate|attnres|gpt2|precision|steps]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/bf16_products.h"
#include "core/ops/matmul/matmul.h"
#include "model/cost_model.h"
#include "parallel/comm/thread.h"
#include "trainer/step/bf16_choice.h"
#include "trainer/step/engine.h"

namespace lamina {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The best rate of one large product of this dtype: what the machine gives, with this library and these threads.
double matmul_rate(DType dtype, int64_t tokens = 2048, double (*clock)() = now) {
  Stream stream;
  MemoryLedger ledger;
  Arena scratch({}, &ledger, "scratch"), data({}, &ledger, "data");
  ops::RefusalLog refusals;
  ops::OpContext ctx{stream, scratch, refusals};
  double best = 0;
  for (const auto& [n, k] :
       std::vector<std::pair<int64_t, int64_t>>{{2048, 512}, {512, 1408}, {1024, 1024}, {2816, 512}}) {
    data.reset();
    const TensorView a = data.take(dtype, {tokens, k}), b = data.take(dtype, {n, k}), c = data.take(dtype, {tokens, n});
    std::memset(a.data, 0, static_cast<size_t>(a.num_bytes()));
    std::memset(b.data, 0, static_cast<size_t>(b.num_bytes()));
    for (int i = 0; i < 12; ++i) {
      const double start = clock();
      ops::linear(ctx, a, b, c);
      const double rate = 2.0 * static_cast<double>(tokens * n * k) / (clock() - start);
      if (i > 1) best = std::max(best, rate);
    }
  }
  return best;
}

Config base_config(Residual residual, Precision precision) {
  Config c;
  c.model.vocab_size = 4096;
  c.model.hidden_size = 512;
  c.model.num_hidden_layers = 8;
  c.model.residual = residual;
  c.model.attn_res_block_size = 2;
  c.model.num_attention_heads = 8;
  c.model.kv_lora_rank = 128;
  c.model.qk_nope_head_dim = 64;
  c.model.qk_rope_head_dim = 32;
  c.model.v_head_dim = 64;
  c.model.intermediate_size = 1408;
  c.data.seq_len = 512;
  c.train.micro_batch_size = 4;
  c.train.global_batch_size = 8;
  c.train.precision = precision;
  c.train.optimizer.lr = 1e-4;
  return c;
}

Config gpt2_config(Precision precision) {
  Config c = base_config(Residual::standard, precision);
  c.model.vocab_size = 50257;
  c.model.hidden_size = 768;
  c.model.num_hidden_layers = 12;
  c.model.num_attention_heads = 12;
  c.model.kv_lora_rank = 512;
  c.model.qk_nope_head_dim = 48;
  c.model.qk_rope_head_dim = 16;
  c.model.v_head_dim = 64;
  c.model.intermediate_size = 2048;
  c.model.tie_word_embeddings = true;
  c.data.seq_len = 64;
  c.train.micro_batch_size = 4;
  c.train.global_batch_size = 4;
  return c;
}

class Run {
 public:
  explicit Run(const Config& config)
      : config_(config), comm_(comm::make_self_communicator()), engine_(config, *comm_, &ledger_) {
    engine_.initialise();
    choose_bf16_products(engine_, nullptr);
    const CounterRng rng(1, "bench");
    tokens_.resize(static_cast<size_t>(config.train.global_batch_size * config.data.seq_len));
    targets_ = tokens_;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      tokens_[i] = static_cast<int32_t>(rng.below(2 * i, static_cast<uint64_t>(config.model.vocab_size)));
      targets_[i] = static_cast<int32_t>(rng.below(2 * i + 1, static_cast<uint64_t>(config.model.vocab_size)));
    }
  }

  double step() {  // seconds
    const double start = now();
    engine_.accumulate_gradients(tokens_, targets_, 1.0 / static_cast<double>(tokens_.size()));
    engine_.owned_gradient_square();
    engine_.update(++step_, 1e-4, 1.0);
    return now() - start;
  }
  double cpu_seconds_of_step() {
    const double start = thread_cpu_seconds();
    step();
    return thread_cpu_seconds() - start;
  }
  void multiply_bf16(const ops::Bf16Products& products) { engine_.context().bf16_products = products; }
  double tokens() const { return static_cast<double>(tokens_.size()); }
  double flops() const {
    return model::training_flops_per_token(config_.model, config_.data.seq_len).total() * tokens();
  }
  const MemoryLedger& ledger() const { return ledger_; }

 private:
  Config config_;
  std::unique_ptr<comm::Communicator> comm_;
  MemoryLedger ledger_;
  Engine engine_;
  std::vector<int32_t> tokens_, targets_;
  int64_t step_ = 0;
};

void bench_rate(int max_threads, int repeats) {
  std::printf("\nhidden 512 x 8 layers, sequence 512, micro-batch 4, Block AttnRes (2 layers per block)\n");
  std::printf("%-6s %8s %12s %12s %14s %10s\n", "dtype", "threads", "tokens/s", "GFLOP/s", "matmul GFLOP/s",
              "fraction");
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    for (int threads = 1; threads <= max_threads; ++threads) {
      cpu::set_num_threads(threads);
      Run run(base_config(Residual::block_attnres, precision));
      run.step();
      std::vector<double> seconds, rates;
      for (int i = 0; i < repeats; ++i) {
        rates.push_back(matmul_rate(compute_dtype(precision)));
        seconds.push_back(run.step());
      }
      const double time = median(seconds), rate = median(rates);
      std::printf("%-6s %8d %12.0f %12.1f %14.1f %10.3f\n", std::string(name_of(compute_dtype(precision))).c_str(),
                  threads, run.tokens() / time, run.flops() / time / 1e9, rate / 1e9, run.flops() / time / rate);
      if (threads == max_threads) std::printf("%s", run.ledger().report().c_str());
    }
  }
}

void bench_attn_res(int threads, int repeats) {
  std::printf("\nstep time over the standard residual's, the three taken in turn, %d thread(s)\n", threads);
  std::printf("%-6s %14s %14s\n", "dtype", "block_attnres", "full_attnres");
  cpu::set_num_threads(threads);
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    Run standard(base_config(Residual::standard, precision)), block(base_config(Residual::block_attnres, precision)),
        full(base_config(Residual::full_attnres, precision));
    std::vector<double> block_ratio, full_ratio;
    for (int i = 0; i <= 2 * repeats; ++i) {
      const double s = standard.step(), b = block.step(), f = full.step();
      if (i == 0) continue;  // warm-up
      block_ratio.push_back(b / s);
      full_ratio.push_back(f / s);
    }
    std::printf("%-6s %14.3f %14.3f\n", std::string(name_of(compute_dtype(precision))).c_str(), median(block_ratio),
                median(full_ratio));
  }
}

void bench_gpt2(int threads, int repeats) {
  std::printf(
      "\nGPT-2-124M-sized dense model, batch 4, sequence 64, %d thread(s); llm.c's CPU trainer does 85 tokens/s on two "
      "Zen 5 cores\n",
      threads);
  std::printf("%-6s %12s %12s %14s %10s\n", "dtype", "tokens/s", "GFLOP/s", "matmul GFLOP/s", "fraction");
  cpu::set_num_threads(threads);
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    Run run(gpt2_config(precision));
    run.step();
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) seconds.push_back(run.step());
    const double time = median(seconds), rate = matmul_rate(compute_dtype(precision));
    std::printf("%-6s %12.1f %12.1f %14.1f %10.3f\n", std::string(name_of(compute_dtype(precision))).c_str(),
                run.tokens() / time, run.flops() / time / 1e9, rate / 1e9, run.flops() / time / rate);
    std::printf("%s", run.ledger().report().c_str());
  }
}

// User and system time of all threads.
double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The fp32 model of bench_rate, step by step. For each line on standard input one on standard output: "step" gives seconds and
// CPU seconds of a step, "rate" the rate of a large product in FLOP per second and per CPU second.
void serve_steps(int threads) {
  cpu::set_num_threads(threads);
  Run run(base_config(Residual::block_attnres, Precision::fp32));
  run.step();
  std::printf("ready %.0f tokens %.0f flops\n", run.tokens(), run.flops());
  std::fflush(stdout);
  std::string request;
  while (std::getline(std::cin, request)) {
    if (request == "step") {
      const double cpu = cpu_seconds(), seconds = run.step();
      std::printf("%.6f %.6f\n", seconds, cpu_seconds() - cpu);
    } else if (request == "rate") {
      std::printf("%.6e %.6e\n", matmul_rate(DType::f32), matmul_rate(DType::f32, 2048, cpu_seconds));
    } else {
      std::printf("unknown request %s, expected step or rate\n", request.c_str());
    }
    std::fflush(stdout);
  }
}

// Small enough that four of them in turn take minutes.
Config dense_config(Precision precision) {
  Config c = base_config(Residual::block_attnres, precision);
  c.model.num_hidden_layers = 4;
  c.train.micro_batch_size = 2;
  c.train.global_batch_size = 2;
  return c;
}

// Experts, Kimi Delta Attention, Muon: the other classes of products.
Config kimi_config(Precision precision) {
  Config c = dense_config(precision);
  c.model.hidden_size = 256;
  c.model.num_hidden_layers = 4;
  c.model.mixers = {Mixer::kda, Mixer::kda, Mixer::kda, Mixer::mla};
  c.model.linear_num_heads = 4;
  c.model.linear_head_dim = 64;
  c.model.num_attention_heads = 4;
  c.model.intermediate_size = 704;
  c.model.num_experts = 16;
  c.model.num_experts_per_token = 4;
  c.model.moe_intermediate_size = 256;
  c.train.optimizer.name = OptimizerName::muon;
  return c;
}

void bench_precision_of(const char* name, Config (*config)(Precision), int repeats) {
  Run fp32(config(Precision::fp32)), chosen(config(Precision::bf16)), native(config(Precision::bf16)),
      widened(config(Precision::bf16));
  const bool has_native = ops::has_native_bf16_products();
  native.multiply_bf16(ops::Bf16Products());
  widened.multiply_bf16(ops::Bf16Products::through_fp32());
  std::vector<double> seconds, chosen_ratio, native_ratio, widened_ratio;
  for (int i = 0; i <= 2 * repeats; ++i) {
    const double base = fp32.cpu_seconds_of_step(), a = chosen.cpu_seconds_of_step();
    const double b = has_native ? native.cpu_seconds_of_step() : 0, c = widened.cpu_seconds_of_step();
    if (i == 0) continue;  // warm-up
    seconds.push_back(base);
    chosen_ratio.push_back(a / base);
    native_ratio.push_back(b / base);
    widened_ratio.push_back(c / base);
  }
  std::printf("%-10s %12.3f %10.3f %10s %14.3f\n", name, median(seconds), median(chosen_ratio),
              has_native ? fmt::format("{:.3f}", median(native_ratio)).c_str() : "none", median(widened_ratio));
  std::fflush(stdout);
}

void bench_precision(int repeats) {
  cpu::set_num_threads(1);
  std::printf("\nCPU time of a bf16 step over an fp32 step's, one thread, taken in turn, on %s\n",
              ops::product_processor().c_str());
  std::printf("bf16 products: native are %s\n", ops::to_text(ops::quicker_products(ops::bf16_timings())).c_str());
  if (ops::has_native_bf16_products()) std::printf("%s\n", ops::describe(ops::bf16_timings()).c_str());
  std::printf("%-10s %12s %10s %10s %14s\n", "model", "fp32 [s]", "bf16", "native", "through fp32");
  bench_precision_of("dense", dense_config, repeats);
  bench_precision_of("kimi", kimi_config, repeats);
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  int threads = lamina::cpu::num_threads(), repeats = 5;
  std::string only;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--threads") {
      threads = std::stoi(argv[i + 1]);
    } else if (option == "--repeats") {
      repeats = std::stoi(argv[i + 1]);
    } else if (option == "--only") {
      only = argv[i + 1];
    } else {
      std::fprintf(stderr, "unknown option %s, expected --threads, --repeats or --only\n", argv[i]);
      return 1;
    }
  }
  if (only.empty() || only == "rate") lamina::bench_rate(threads, repeats);
  if (only.empty() || only == "attnres") lamina::bench_attn_res(threads, repeats);
  if (only.empty() || only == "gpt2") lamina::bench_gpt2(threads, repeats);
  if (only.empty() || only == "precision") lamina::bench_precision(repeats);
  if (only == "steps") lamina::serve_steps(threads);
  return 0;
}
