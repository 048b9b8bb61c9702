#include "inference/generator.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/model/model_support.h"

namespace lamina::inference {
namespace {

// A model over bytes, with weights that make it write anything.
class Writer {
 public:
  Writer()
      : config_(config()),
        model_(config_, DType::f32, Recompute::none, 1, 8),
        tokenizer_(make_tokenizer("bytes")),
        decoder_(config_, model_.parameters, {}) {}

  Request request(const std::string& prompt, uint64_t seed = 1) const {
    Request request;
    request.tokens = {tokenizer_->end_of_document()};
    tokenizer_->encode(prompt, request.tokens);
    request.seed = seed;
    request.max_tokens = 20;
    request.sampling = {1.0, 0, 1.0};
    return request;
  }
  Generator generator(int64_t prompt_tokens_per_pass = 512) { return {decoder_, *tokenizer_, prompt_tokens_per_pass}; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  Decoder& decoder() { return decoder_; }

 private:
  static ModelConfig config() {
    ModelConfig c = model::hybrid_config(Residual::block_attnres, 4, 2, false);
    c.vocab_size = 260;  // three rows pad it
    return c;
  }

  ModelConfig config_;
  model::SmallModel model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Decoder decoder_;
};

using Key = std::pair<int64_t, int>;  // request, sample
std::map<Key, std::vector<TokenEvent>> run(Generator& generator) {
  std::map<Key, std::vector<TokenEvent>> out;
  while (!generator.idle())
    for (const TokenEvent& event : generator.step()) out[{event.request, event.sample}].push_back(event);
  return out;
}
std::vector<int32_t> tokens_of(const std::vector<TokenEvent>& events) {
  std::vector<int32_t> out;
  for (const TokenEvent& event : events) out.push_back(event.token);
  return out;
}
std::string text_of(const std::vector<TokenEvent>& events) {
  std::string out;
  for (const TokenEvent& event : events) out += event.text;
  return out;
}

TEST(Generator, TheSameRequestGivesTheSameText) {
  Writer writer;
  std::vector<std::vector<int32_t>> found;
  for (const uint64_t seed : {1, 1, 2}) {
    Generator generator = writer.generator();
    generator.add(writer.request("abc", seed));
    found.push_back(tokens_of(run(generator).begin()->second));
  }
  EXPECT_EQ(found[0], found[1]);
  EXPECT_NE(found[0], found[2]);
}

// Others at the same time, prompts in pieces, and several samples change nothing.
TEST(Generator, RequestsDoNotSeeEachOther) {
  Writer writer;
  std::vector<Request> requests = {writer.request("the first", 1), writer.request("another and longer one", 2),
                                   writer.request("", 3)};
  requests[1].num_samples = 3;
  std::vector<std::vector<int32_t>> alone;
  for (Request request : requests) {
    request.num_samples = 1;
    Generator generator = writer.generator();
    generator.add(request);
    alone.push_back(tokens_of(run(generator).begin()->second));
  }
  for (const int64_t prompt_tokens : {1, 5, 512}) {
    Generator generator = writer.generator(prompt_tokens);
    for (const Request& request : requests) generator.add(request);
    const auto together = run(generator);
    EXPECT_EQ(together.size(), 5u);
    for (int64_t i = 0; i < 3; ++i)
      EXPECT_EQ(tokens_of(together.at({i, 0})), alone[static_cast<size_t>(i)]) << prompt_tokens;
    EXPECT_NE(tokens_of(together.at({1, 1})), tokens_of(together.at({1, 0})));
    EXPECT_NE(tokens_of(together.at({1, 1})), tokens_of(together.at({1, 2})));
  }
}

// Against the decoder alone: the likeliest token each time, and its log-probability over the tokenizer's vocabulary.
TEST(Generator, GreedyTakesTheLikeliest) {
  Writer writer;
  Request request = writer.request("greedy");
  request.sampling.temperature = 0;
  request.num_likeliest = 2;
  Generator generator = writer.generator();
  generator.add(request);
  const auto events = run(generator).begin()->second;
  Sequence sequence = writer.decoder().make_sequence();
  std::vector<int32_t> next = request.tokens;
  for (const TokenEvent& event : events) {
    const Decoder::Feed feed{&sequence, next};
    const TensorView logits = writer.decoder().feed({&feed, 1});
    int32_t best = 0;
    double sum = 0;
    for (int32_t i = 0; i < 257; ++i) {
      if (model::get(logits, i) > model::get(logits, best)) best = i;
      sum += std::exp(model::get(logits, i));
    }
    EXPECT_EQ(event.token, best);
    EXPECT_NEAR(event.log_probability, model::get(logits, best) - std::log(sum), 1e-4);
    ASSERT_EQ(event.likeliest.size(), 2u);
    EXPECT_EQ(event.likeliest[0].first, best);
    next = {event.token};
  }
  EXPECT_EQ(events.back().finish == Finish::length, events.back().token != 256);
}

TEST(Generator, EndsAtAStopText) {
  Writer writer;
  Request request = writer.request("stop");
  Generator without = writer.generator();
  without.add(request);
  const std::string whole = text_of(run(without).begin()->second);
  ASSERT_GT(whole.size(), 8u);
  request.stop = {"never in it, since it is so long", whole.substr(4, 3)};
  const size_t at = whole.find(request.stop[1]);
  Generator generator = writer.generator();
  generator.add(request);
  const auto events = run(generator).begin()->second;
  EXPECT_EQ(text_of(events), whole.substr(0, at));
  EXPECT_EQ(events.back().finish, Finish::stop_text);
  EXPECT_LT(events.size(), 20u);
}

TEST(Generator, CancelledRequestsAreGone) {
  Writer writer;
  Generator generator = writer.generator(2);
  const int64_t first = generator.add(writer.request("one")),
                second = generator.add(writer.request("two, which is longer"));
  for (int i = 0; i < 4; ++i) generator.step();
  generator.cancel(first);
  for (const auto& [key, events] : run(generator)) EXPECT_EQ(key.first, second);
  generator.add(writer.request("three"));
  generator.cancel(second + 1);
  EXPECT_TRUE(generator.idle());
}

TEST(StopFilter, HoldsBackWhatMayBecomeAStop) {
  StopFilter filter({"\n\n", "END"});
  bool found = false;
  EXPECT_EQ(filter.add("a\n", found), "a");
  EXPECT_EQ(filter.add("b E", found), "\nb ");
  EXPECT_EQ(filter.add("N", found), "");
  EXPECT_EQ(filter.add("d", found), "ENd");
  EXPECT_FALSE(found);
  EXPECT_EQ(filter.add("x\n\ny", found), "x");
  EXPECT_TRUE(found);
  EXPECT_EQ(filter.finish(), "");
  StopFilter open({"END"});
  EXPECT_EQ(open.add("EN", found), "");
  EXPECT_EQ(open.finish(), "EN");
}

}  // namespace
}  // namespace lamina::inference
