// Batched scores against one forward pass in float64 per request, at several layouts.
#include "evaluation/score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "core/base/rng.h"
#include "evaluation/perplexity.h"
#include "evaluation/tasks.h"
#include "parallel/comm/thread.h"
#include "trainer/step/evaluate.h"
#include "trainer/verify/verify.h"

namespace lamina::evaluation {
namespace {

constexpr int32_t end_of_document = 12;

Config small(Precision precision) {
  Config c;
  c.run.seed = 3;
  c.model.vocab_size = 13;
  c.model.hidden_size = 16;
  c.model.num_hidden_layers = 4;
  c.model.residual = Residual::block_attnres;
  c.model.attn_res_block_size = 2;
  c.model.mixers = {Mixer::kda, Mixer::mla};
  c.model.linear_num_heads = 2;
  c.model.linear_head_dim = 16;
  c.model.num_attention_heads = 2;
  c.model.kv_lora_rank = 8;
  c.model.qk_nope_head_dim = 4;
  c.model.qk_rope_head_dim = 4;
  c.model.v_head_dim = 8;
  c.model.intermediate_size = 24;
  c.model.num_experts = 4;
  c.model.num_experts_per_token = 2;
  c.model.moe_intermediate_size = 8;
  c.model.initializer_range = 0.3;
  c.data.seq_len = 30;
  c.train.micro_batch_size = 2;
  c.train.global_batch_size = 2;
  c.train.precision = precision;
  c.train.optimizer.lr = 1e-2;
  return c;
}

// Of all lengths from 1 to 30 inputs, some twice.
std::vector<Request> some_requests() {
  const CounterRng rng(5, "requests");
  std::vector<Request> requests;
  uint64_t next = 0;
  for (size_t n = 0; n < 40; ++n) {
    Request request;
    const size_t length = 2 + (n * 7) % 30;
    for (size_t i = 0; i < length; ++i) request.tokens.push_back(static_cast<int32_t>(rng.below(next++, 13)));
    request.first = 1 + static_cast<size_t>(rng.below(next++, length - 1));
    requests.push_back(std::move(request));
  }
  return requests;
}

// On `num_ranks` threads; every rank must get the same.
std::vector<double> scores(const Config& config, int num_ranks, std::span<const Request> requests, int64_t max_tokens) {
  std::vector<double> all;
  std::mutex mutex;
  comm::run_threads(num_ranks, [&](comm::Communicator& comm) {
    Engine engine(config, comm, nullptr);
    engine.initialise();
    move_depth_queries(engine);
    engine.set_end_of_document(end_of_document);
    const auto found = score(requests, evaluation_model(engine, comm, end_of_document, max_tokens, {}));
    const std::lock_guard lock(mutex);
    ASSERT_TRUE(found);
    if (!all.empty()) {
      EXPECT_EQ(*found, all);
    }
    all = *found;
  });
  return all;
}

// A whole pass in float64 over each request alone, without padding, from the logits of every prefix.
std::vector<double> one_by_one(const Config& asked, std::span<const Request> requests) {
  Config config = asked;
  config.train.precision = Precision::fp64;
  config.parallel = {};
  config.train.global_batch_size = config.train.micro_batch_size;
  const auto self = comm::make_self_communicator();
  Engine engine(config, *self, nullptr);
  engine.initialise();
  move_depth_queries(engine);
  engine.set_end_of_document(end_of_document);
  std::vector<double> sums;
  for (const Request& request : requests) {
    const std::span<const int32_t> tokens(request.tokens);
    std::vector<double> losses(tokens.size() - 1);
    engine.token_losses(tokens.first(losses.size()), tokens.subspan(1), static_cast<int64_t>(losses.size()), losses);
    double sum = 0;
    for (size_t i = request.first; i < tokens.size(); ++i) sum -= losses[i - 1];
    sums.push_back(sum);
  }
  // The losses themselves, against logits: of the last token, whose row is the only one that next_token_logits() gives.
  for (size_t n = 0; n < requests.size(); n += 7) {
    const std::span<const int32_t> tokens(requests[n].tokens);
    const std::vector<float> logits = engine.next_token_logits(tokens.first(tokens.size() - 1));
    double total = 0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit));
    std::vector<double> losses(tokens.size() - 1);
    engine.token_losses(tokens.first(losses.size()), tokens.subspan(1), static_cast<int64_t>(losses.size()), losses);
    EXPECT_NEAR(losses.back(), std::log(total) - static_cast<double>(logits[static_cast<size_t>(tokens.back())]), 1e-5);
  }
  return sums;
}

void expect_near(const std::vector<double>& found, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i)
    EXPECT_NEAR(found[i], expected[i], tolerance * (1 + std::abs(expected[i]))) << "request " << i;
}

TEST(Score, BatchesEqualOneByOne) {
  const std::vector<Request> requests = some_requests();
  for (const bool masked : {false, true}) {
    Config config = small(Precision::fp64);
    config.data.document_mask = masked;
    const std::vector<double> expected = one_by_one(config, requests);
    expect_near(scores(config, 1, requests, 60), expected, 1e-12);
    expect_near(scores(config, 1, requests, 31), expected, 1e-12);
    config.train.precision = Precision::fp32;
    expect_near(scores(config, 1, requests, 60), expected, 1e-5);
  }
}

TEST(Score, LayoutsEqualOneRank) {
  const std::vector<Request> requests = some_requests();
  Config config = small(Precision::fp64);
  const std::vector<double> expected = scores(config, 1, requests, 60);
  config.train.global_batch_size = 6;
  EXPECT_EQ(scores(config, 3, requests, 60), expected);  // data
  config.train.global_batch_size = 4;
  config.parallel.pipeline = 2;
  expect_near(scores(config, 2, requests, 60), expected, 1e-12);
  config.parallel.virtual_stages = 2;
  expect_near(scores(config, 4, requests, 60), expected, 1e-12);  // and data 2
  config.parallel = {};
  config.parallel.expert = 2;
  expect_near(scores(config, 2, requests, 60), expected, 1e-12);
  // Fewer batches than ranks: the others run along.
  const std::span<const Request> few = std::span(requests).first(1);
  expect_near(scores(config, 2, few, 60), {expected[0]}, 1e-12);
}

TEST(Score, BatchesAreOfSimilarLength) {
  const std::vector<Request> requests = some_requests();
  std::vector<int> seen(requests.size());
  int64_t before = 1000;
  for (const Batch& batch : make_batches(requests, 60)) {
    EXPECT_LE(static_cast<int64_t>(batch.requests.size()) * batch.seq_len, 60);
    EXPECT_LE(batch.seq_len, before);
    before = batch.seq_len;
    EXPECT_EQ(batch.seq_len, requests[batch.requests.front()].num_inputs());
    for (const size_t request : batch.requests) {
      ++seen[request];
      EXPECT_LE(requests[request].num_inputs(), batch.seq_len);
    }
  }
  EXPECT_EQ(seen, std::vector<int>(requests.size(), 1));
  EXPECT_THROW(make_batches(requests, 29), InternalError);
  EXPECT_TRUE(make_batches({}, 29).empty());
}

TEST(Score, StopsBetweenPasses) {
  const std::vector<Request> requests = some_requests();
  Model model;
  int passes = 0;
  model.token_losses = [&](auto, auto, int64_t, auto) { ++passes; };
  model.max_tokens = 30;
  model.stop_agreed = [&] { return passes == 3; };
  EXPECT_FALSE(score(requests, model));
  EXPECT_EQ(passes, 3);
}

// A model that gives every token the probability 1/4: two bits per byte, perplexity 4, whatever the context's length.
TEST(Perplexity, OfAUniformModel) {
  Model model;
  model.token_losses = [](auto, auto, int64_t, std::span<double> losses) {
    std::fill(losses.begin(), losses.end(), std::log(4.0));
  };
  model.max_tokens = 16;
  const auto bytes = make_tokenizer("bytes");
  for (const int64_t length : {1, 5, 16}) {
    const Text text = make_text("a", {"abc", "defghij"}, *bytes, length);
    const auto found = evaluate_text(text, model);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->num_tokens, 10);
    EXPECT_EQ(found->num_bytes, 10);
    EXPECT_NEAR(found->loss, std::log(4.0), 1e-12);
    EXPECT_NEAR(found->perplexity, 4, 1e-12);
    EXPECT_NEAR(found->bits_per_byte, 2, 1e-12);
  }
}

}  // namespace
}  // namespace lamina::evaluation
