// Going on with a text, as ratios taken in one run:
//   - time per token at contexts of 16 to 4,096 tokens over that at 16, with Kimi Delta Attention alone, with one MLA layer in four, with
//     MLA alone; each model once per round
//   - the whole context computed again for each token, as a program without a cache would, over one token of this, at 256 tokens
//   - Block and Full AttnRes over the standard residual, 27 layers in blocks of 3, hidden 512: one token of 1 and of 16 sequences, and a
//     prompt of 2,048 tokens; the three taken in turn, medians of the pairwise ratios
// Times are CPU seconds of one thread, which tell nothing of who else uses the cores; with more threads they are wall-clock times.
// Usage: bench_decode [--threads N] [--repeats N] [--precision fp32|bf16] [--only context|recompute|attnres|prompt]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/matmul/matmul.h"
#include "inference/decoder.h"

namespace lamina::inference {
namespace {

struct Options {
  int threads = 1, repeats = 15;
  DType dtype = DType::f32;
  std::string only;
  bool wants(const std::string& part) const { return only.empty() || only == part; }
};

double now(const Options& options) {
  if (options.threads > 1)
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

ModelConfig model_config(int64_t layers, std::vector<Mixer> mixers, Residual residual) {
  ModelConfig c;
  c.vocab_size = 4096;
  c.hidden_size = 512;
  c.num_hidden_layers = layers;
  c.residual = residual;
  c.attn_res_block_size = 3;
  c.mixers = std::move(mixers);
  c.num_attention_heads = 8;
  c.kv_lora_rank = 128;
  c.qk_nope_head_dim = 64;
  c.qk_rope_head_dim = 32;
  c.v_head_dim = 64;
  c.linear_num_heads = 8;
  c.linear_head_dim = 64;
  c.intermediate_size = 1408;
  return c;
}

// A model with sequences at some context each.
class Model {
 public:
  Model(ModelConfig config, const Options& options)
      : config_(std::move(config)),
        parameters_(config_, options.dtype, 1, Device{}, nullptr),
        decoder_(config_, initialised(), {{}, ops::Backend::fastest, std::nullopt, 512}),
        options_(options) {}

  // `count` new sequences of `context` tokens, after which feed() adds one token to each of them.
  void begin(size_t count, int64_t context) {
    sequences_.clear();
    for (size_t i = 0; i < count; ++i) sequences_.push_back(decoder_.make_sequence());
    feed(context);
  }
  // Seconds for `tokens` more of each sequence.
  double feed(int64_t tokens) {
    const CounterRng rng(3, "bench");
    std::vector<int32_t> text;
    for (int64_t i = 0; i < tokens; ++i)
      text.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(num_fed_ + i), 4096)));
    num_fed_ += tokens;
    std::vector<Decoder::Feed> feeds;
    for (Sequence& sequence : sequences_) feeds.push_back({&sequence, text});
    const double start = now(options_);
    decoder_.feed(feeds);
    return now(options_) - start;
  }

  const ModelConfig& config() const { return config_; }
  model::Parameters& parameters() { return parameters_; }

 private:
  model::Parameters& initialised() {
    parameters_.initialise(1, 0.02);
    return parameters_;
  }

  ModelConfig config_;
  model::Parameters parameters_;
  Decoder decoder_;
  const Options& options_;
  std::vector<Sequence> sequences_;
  int64_t num_fed_ = 0;
};

void show_contexts(const Options& options) {
  struct Column {
    const char* name;
    std::vector<Mixer> mixers;
  };
  const std::vector<Column> columns = {{"KDA", {Mixer::kda}},
                                       {"3 KDA : 1 MLA", {Mixer::kda, Mixer::kda, Mixer::kda, Mixer::mla}},
                                       {"MLA", {Mixer::mla}}};
  const std::vector<int64_t> contexts = {16, 64, 256, 1024, 4096};
  std::cout << fmt::format("ms per token, and over that at 16; 8 layers, {} threads\n{:>8}", options.threads,
                           "context");
  for (const Column& column : columns) std::cout << fmt::format("{:>24}", column.name);
  std::cout << "\n";
  std::vector<std::unique_ptr<Model>> models;
  for (const Column& column : columns)
    models.push_back(std::make_unique<Model>(model_config(8, column.mixers, Residual::block_attnres), options));
  std::vector<std::vector<double>> seconds(contexts.size(), std::vector<double>(columns.size()));
  for (size_t i = 0; i < contexts.size(); ++i) {
    for (const auto& model : models) model->begin(1, contexts[i] - 8);
    std::vector<std::vector<double>> times(columns.size());
    for (int round = 0; round < 4 * options.repeats; ++round)
      for (size_t m = 0; m < models.size(); ++m) times[m].push_back(models[m]->feed(1));
    std::cout << fmt::format("{:>8}", contexts[i]);
    for (size_t m = 0; m < models.size(); ++m) {
      seconds[i][m] = median(times[m]);
      std::cout << fmt::format("{:>16.3f}  {:>5.2f}x", 1e3 * seconds[i][m], seconds[i][m] / seconds[0][m]);
    }
    std::cout << std::endl;
  }
}

void show_recomputation(const Options& options) {
  Model model(model_config(8, {Mixer::kda, Mixer::kda, Mixer::kda, Mixer::mla}, Residual::block_attnres), options);
  const int64_t tokens = 256;
  const ModelConfig& config = model.config();
  const auto plan =
      model::make_stage_plan(config, std::vector<int64_t>{config.num_hidden_layers}, 1, BlockTransport::cached);
  Stream stream;
  Arena scratch({}, nullptr, "scratch");
  ops::RefusalLog refusals;
  ops::OpContext ctx{stream, scratch, refusals};
  model::Stage stage({config, options.dtype, Recompute::none, Device{}}, plan, 0, tokens, model.parameters());
  std::vector<int32_t> text(static_cast<size_t>(tokens), 7);
  const auto recompute = [&] {
    const double start = now(options);
    const TensorView hidden = stage.forward_hidden(ctx, {1, tokens}, {text.data(), DType::i32, {tokens}});
    const ArenaScope scope(scratch);
    const TensorView logits = scratch.take(accumulation_dtype(options.dtype), {1, config.vocab_size});
    ops::linear(ctx, hidden.slice(0, tokens - 1, tokens), stage.head_weight(), logits);
    return now(options) - start;
  };
  model.begin(1, tokens - 1);
  recompute();
  std::vector<double> ratios, again;
  for (int round = 0; round < options.repeats; ++round) {
    const double whole = recompute();
    std::vector<double> one;
    for (int i = 0; i < 5; ++i) one.push_back(model.feed(1));
    again.push_back(whole);
    ratios.push_back(whole / median(one));
  }
  std::cout << fmt::format(
      "one token at {} tokens: {:.1f} ms with the whole context computed again, {:.1f} times as long as without\n",
      tokens, 1e3 * median(again), median(ratios));
}

void show_residuals(const Options& options) {
  const std::vector<Mixer> mixers = {Mixer::kda, Mixer::kda, Mixer::kda, Mixer::mla};
  const std::vector<Residual> residuals = {Residual::standard, Residual::block_attnres, Residual::full_attnres};
  std::vector<std::unique_ptr<Model>> models;
  for (const Residual residual : residuals)
    models.push_back(std::make_unique<Model>(model_config(27, mixers, residual), options));
  const auto compare = [&](const std::string& what, const std::function<double(Model&)>& measure, int rounds) {
    std::vector<double> base, block, full;
    for (int round = 0; round < rounds; ++round) {
      double seconds[3];
      // The order changes, so that none always comes after the same.
      for (size_t i = 0; i < 3; ++i) {
        const size_t m = (i + static_cast<size_t>(round)) % 3;
        seconds[m] = measure(*models[m]);
      }
      base.push_back(seconds[0]);
      block.push_back(seconds[1] / seconds[0]);
      full.push_back(seconds[2] / seconds[0]);
    }
    std::cout << fmt::format("{:<28}{:>10.2f} ms{:>10.3f}x{:>10.3f}x", what, 1e3 * median(base), median(block),
                             median(full))
              << std::endl;
  };
  std::cout << fmt::format("{:<28}{:>13}{:>11}{:>11}\n", "27 layers", "standard", "block", "full");
  for (const size_t sequences : {1, 16}) {
    if (!options.wants("attnres")) break;
    for (const auto& model : models) model->begin(sequences, 64);
    compare(
        fmt::format("one token of {}", sequences), [](Model& model) { return model.feed(1); }, 4 * options.repeats);
  }
  if (!options.wants("prompt")) return;
  const int64_t prompt = 2048;
  compare(
      fmt::format("a prompt of {}", prompt),
      [](Model& model) {
        model.begin(1, 1);
        return model.feed(prompt);
      },
      std::max(3, options.repeats / 3));
}

int run(const Options& options) {
  cpu::set_num_threads(options.threads);
  if (options.wants("context")) show_contexts(options);
  if (options.wants("recompute")) show_recomputation(options);
  if (options.wants("attnres") || options.wants("prompt")) show_residuals(options);
  return 0;
}

}  // namespace
}  // namespace lamina::inference

int main(int argc, char** argv) {
  lamina::inference::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--threads") options.threads = std::stoi(value);
    if (key == "--repeats") options.repeats = std::stoi(value);
    if (key == "--precision") options.dtype = value == "bf16" ? lamina::DType::bf16 : lamina::DType::f32;
    if (key == "--only") options.only = value;
  }
  return lamina::inference::run(options);
}
