// A sequence computed piece by piece against the pass that training makes, in any precision, on any device.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/ops/matmul/matmul.h"
#include "inference/decoder.h"
#include "tests/model/model_support.h"

namespace lamina::inference {

using model::hybrid_config;
using model::small_config;
using model::SmallModel;

struct Case {
  std::string name;
  ModelConfig config;
};

// Every residual scheme with every option that a mixer, an MLP or the ends of the model have, each at least once beside each scheme.
// Hyper-connections are the CPU's alone.
inline std::vector<Case> cases(DeviceKind device = DeviceKind::cpu) {
  std::vector<Case> out;
  for (const auto& [name, residual] : {std::pair{"standard", Residual::standard},
                                       {"block", Residual::block_attnres},
                                       {"full", Residual::full_attnres},
                                       {"mhc", Residual::mhc}}) {
    if (residual == Residual::mhc && device != DeviceKind::cpu) continue;
    const auto add = [&, residual = residual, name = name](
                         const std::string& what, const std::function<void(ModelConfig&)>& change, bool hybrid) {
      ModelConfig c =
          hybrid ? hybrid_config(residual, 5, 2, false) : small_config(residual, 5, 2);  // the last block is short
      change(c);
      out.push_back({fmt::format("{}, {}", name, what), c});
    };
    add(
        "MLA", [](ModelConfig&) {}, false);
    add(
        "MLA, q_lora, tied", [](ModelConfig& c) { c.q_lora_rank = 7, c.tie_word_embeddings = true; }, false);
    add(
        "MLA without a shared key", [](ModelConfig& c) { c.qk_rope_head_dim = 0; }, false);
    add(
        "KDA and MLA, experts", [](ModelConfig&) {}, true);
    add(
        "KDA and MLA, bounded gate, no shared expert",
        [](ModelConfig& c) { c.gate_lower_bound = -5, c.num_shared_experts = 0, c.moe_renormalize = false; }, true);
    add(
        "KDA alone, dense",
        [](ModelConfig& c) { c.mixers = {Mixer::kda}, c.num_experts = 0, c.short_conv_kernel_size = 3; }, true);
    add(
        "KDA with odd heads, tied",
        [](ModelConfig& c) {
          c.linear_head_dim = 9, c.linear_num_heads = 3, c.tie_word_embeddings = true, c.short_conv_kernel_size = 1;
        },
        true);
  }
  return out;
}

inline std::vector<int32_t> some_tokens(size_t count, uint64_t stream, int64_t vocab_size) {
  const CounterRng rng(stream, "decoder");
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(vocab_size)));
  return tokens;
}

// Logits of every token [tokens][vocab_size], by the pass that training makes.
inline std::vector<std::vector<double>> whole(SmallModel& model, const ModelConfig& config,
                                              const std::vector<int32_t>& tokens,
                                              const std::vector<int32_t>& document_starts = {}) {
  const auto count = static_cast<int64_t>(tokens.size());
  const ArenaScope scope(model.ctx.scratch);
  const auto bring = [&](const std::vector<int32_t>& values, const Shape& shape) {
    const TensorView there = model.ctx.scratch.take(DType::i32, shape);
    upload(values.data(), there, model.ctx.stream);
    return there;
  };
  model::Batch batch{1, count};
  if (!document_starts.empty()) batch.document_starts = bring(document_starts, {1, count});
  const TensorView hidden = model.stage.forward_hidden(model.ctx, batch, bring(tokens, {count}));
  const TensorView room = model.ctx.scratch.take(accumulation_dtype(hidden.dtype), {count, config.vocab_size});
  ops::linear(model.ctx, hidden, model.stage.head_weight(), room);
  const HostCopy copy(room, model.ctx.stream);
  const TensorView& logits = copy.view();
  std::vector<std::vector<double>> out(tokens.size());
  for (int64_t i = 0; i < logits.num_elements(); ++i)
    out[static_cast<size_t>(i / config.vocab_size)].push_back(model::get(logits, i));
  return out;
}

inline std::vector<double> row(const TensorView& logits, int64_t index) {
  std::vector<double> out;
  for (int64_t i = 0; i < logits.size(1); ++i) out.push_back(model::get(logits, index * logits.size(1) + i));
  return out;
}

inline DecoderOptions with_pass_of(int64_t tokens) {
  DecoderOptions options;
  options.tokens_per_pass = tokens;
  return options;
}

// The same parameters, in double, on the CPU.
inline void copy_parameters(const model::Parameters& from, model::Parameters& to) {
  for (size_t p = 0; p < from.specs().size(); ++p) {
    const HostCopy source(from.value(static_cast<int>(p)));
    const TensorView target = to.value(static_cast<int>(p));
    for (int64_t i = 0; i < target.num_elements(); ++i) model::set(target, i, model::get(source.view(), i));
  }
}

struct Texts {
  // Tokens of each, and how many of them come at once as a prompt.
  std::vector<std::vector<int32_t>> tokens;
  std::vector<size_t> prompts = {9, 1, 70};
  explicit Texts(int64_t vocab_size) {
    for (const size_t length : {16, 9, 75}) tokens.push_back(some_tokens(length, length, vocab_size));
  }
};

// The logits of each text from its prompt's last token on, one text after the other.
inline std::vector<double> in_passes(SmallModel& model, const ModelConfig& config, const Texts& texts) {
  std::vector<double> out;
  for (size_t s = 0; s < texts.tokens.size(); ++s) {
    const auto rows = whole(model, config, texts.tokens[s]);
    for (size_t i = texts.prompts[s] - 1; i < rows.size(); ++i) out.insert(out.end(), rows[i].begin(), rows[i].end());
  }
  return out;
}

// The same, with the prompts at once, in pieces of a pass, and then one token of each that is not through.
inline std::vector<double> incrementally(SmallModel& model, const ModelConfig& config, const Texts& texts,
                                         int64_t tokens_per_pass) {
  Decoder decoder(config, model.parameters, with_pass_of(tokens_per_pass));
  const size_t count = texts.tokens.size();
  std::vector<Sequence> sequences;
  for (size_t s = 0; s < count; ++s) sequences.push_back(decoder.make_sequence());
  std::vector<size_t> done(count, 0);
  std::vector<std::vector<double>> found(count);
  for (;;) {
    std::vector<Decoder::Feed> feeds;
    std::vector<size_t> fed;
    for (size_t s = 0; s < count; ++s) {
      if (done[s] == texts.tokens[s].size()) continue;
      const size_t more = done[s] == 0 ? texts.prompts[s] : 1;
      feeds.push_back({&sequences[s], std::span(texts.tokens[s]).subspan(done[s], more)});
      fed.push_back(s);
      done[s] += more;
    }
    if (feeds.empty()) break;
    const TensorView logits = decoder.feed(feeds);
    for (size_t i = 0; i < fed.size(); ++i) {
      const auto values = row(logits, static_cast<int64_t>(i));
      found[fed[i]].insert(found[fed[i]].end(), values.begin(), values.end());
    }
  }
  std::vector<double> out;
  for (size_t s = 0; s < count; ++s) {
    out.insert(out.end(), found[s].begin(), found[s].end());
    EXPECT_EQ(sequences[s].num_tokens(), static_cast<int64_t>(texts.tokens[s].size()));
  }
  return out;
}

// In low precision: as near to the model in double with the same parameters as the pass of training comes. Not as near to that pass
// itself: where two experts are about as good, their roundings may choose differently, so those models are judged together.
inline void expect_as_near_to_the_truth_as_training(const std::vector<Case>& cases, DType dtype, Device device) {
  double with_experts = 0, with_experts_in_training = 0;
  for (const Case& c : cases) {
    const Texts texts(c.config.vocab_size);
    SmallModel exact(c.config, DType::f64, Recompute::none, 1, 128);
    SmallModel model(c.config, dtype, Recompute::none, 1, 128, {}, device);
    copy_parameters(model.parameters, exact.parameters);
    const auto truth = in_passes(exact, c.config, texts);
    const double of_training = model::relative_error(in_passes(model, c.config, texts), truth);
    const double error = model::relative_error(incrementally(model, c.config, texts, 512), truth);
    if (c.config.num_experts > 0) {
      with_experts += error * error;
      with_experts_in_training += of_training * of_training;
    } else {
      EXPECT_LT(error, 2 * of_training) << c.name << ", " << name_of(dtype);
    }
  }
  EXPECT_LT(std::sqrt(with_experts), 2 * std::sqrt(with_experts_in_training)) << name_of(dtype);
}

inline void expect_pieces_equal_the_whole(Residual residual, int64_t tokens_per_pass, DType dtype, Device device,
                                          double tolerance) {
  const ModelConfig config = hybrid_config(residual, 5, 2, true);
  SmallModel model(config, dtype, Recompute::none, 1, 128, {}, device);
  const Texts texts(config.vocab_size);
  EXPECT_LT(
      model::relative_error(incrementally(model, config, texts, tokens_per_pass), in_passes(model, config, texts)),
      tolerance)
      << tokens_per_pass;
}

// With data.document_mask: what comes after the end of a document knows nothing of it.
inline void expect_documents_stay_apart(const std::vector<size_t>& prompts, DType dtype, Device device,
                                        double tolerance) {
  const ModelConfig config = hybrid_config(Residual::block_attnres, 4, 2, false);
  SmallModel model(config, dtype, Recompute::none, 1, 128, {}, device);
  constexpr int32_t end = 36;
  std::vector<int32_t> tokens = some_tokens(40, 5, end), starts;
  for (const size_t at : {size_t{0}, size_t{6}, size_t{7}, size_t{20}}) tokens[at] = end;
  for (size_t i = 0; i < tokens.size(); ++i)
    starts.push_back(i == 0 ? 0 : tokens[i - 1] == end ? static_cast<int32_t>(i) : starts.back());
  const auto expected = whole(model, config, tokens, starts);
  DecoderOptions options;
  options.document_end = end;
  for (const size_t prompt : prompts) {
    Decoder decoder(config, model.parameters, options);
    Sequence sequence = decoder.make_sequence();
    for (size_t done = 0; done < tokens.size();) {
      const size_t count = done == 0 ? prompt : 1;
      const Decoder::Feed feed{&sequence, std::span(tokens).subspan(done, count)};
      const auto got = row(decoder.feed({&feed, 1}), 0);
      done += count;
      ASSERT_LT(model::relative_error(got, expected[done - 1]), tolerance) << "prompt of " << prompt << ", at " << done;
    }
  }
}

}  // namespace lamina::inference
