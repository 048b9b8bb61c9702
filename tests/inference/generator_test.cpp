#include "inference/generator.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/inference/writer.h"

namespace lamina::inference {
namespace {

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

// The likelihood of a text that was written is the same when it comes as a prompt, in pieces or not.
TEST(Generator, ScoresAPromptAsItWasDrawn) {
  Writer writer;
  Request request = writer.request("score");
  request.num_likeliest = 2;
  Generator generator = writer.generator();
  generator.add(request);
  const auto drawn = run(generator).begin()->second;
  const size_t prompt = request.tokens.size();
  for (const TokenEvent& event : drawn) request.tokens.push_back(event.token);
  request.score_prompt = true;
  request.num_samples = 2;
  for (const int64_t max_tokens : {0, 1}) {
    for (const int64_t pieces : {3, 512}) {
      request.max_tokens = max_tokens;
      Generator scoring = writer.generator(pieces);
      scoring.add(request);
      const auto all = run(scoring);
      const auto& scored = all.at({0, TokenEvent::of_prompt});
      ASSERT_EQ(scored.size(), request.tokens.size() - 1);
      for (size_t i = 0; i < drawn.size(); ++i) {
        const TokenEvent& found = scored[prompt - 1 + i];
        EXPECT_EQ(found.token, drawn[i].token);
        EXPECT_NEAR(found.log_probability, drawn[i].log_probability, 1e-5);
        ASSERT_EQ(found.likeliest.size(), 2u);
        EXPECT_EQ(found.likeliest[0].first, drawn[i].likeliest[0].first);
      }
      for (const int sample : {0, 1}) {
        ASSERT_EQ(all.at({0, sample}).size(), 1u);
        EXPECT_EQ(all.at({0, sample})[0].finish, Finish::length);
        EXPECT_EQ(all.at({0, sample})[0].token < 0, max_tokens == 0);
      }
    }
  }
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
