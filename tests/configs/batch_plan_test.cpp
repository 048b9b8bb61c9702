#include "configs/schema/batch_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "configs/schema/decode.h"
#include "core/base/error.h"

namespace lamina {
namespace {

constexpr const char* base = R"(
model: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, kv_lora_rank: 4, qk_nope_head_dim: 4, v_head_dim: 4, intermediate_size: 8}
data:
  seq_len: 16
  train:
    - {path: a, weight: 1}
    - {path: b, weight: 3}
train: {num_steps: 100, global_batch_size: 24, micro_batch_size: 2, optimizer: {lr: 0.01}}
)";

Config with(const std::vector<std::string>& overrides) {
  return parse_config(base, "a.yaml", overrides);
}

std::string message_of(const std::vector<std::string>& overrides) {
  try {
    resolve_data_parallel(with(overrides), 1);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// What the words of docs/configuration.md say, batch by batch.
TEST(BatchPlan, RampAndStagesAreThoseOfAWalkOverTheBatches) {
  const Config config = with({"train.batch_ramp={from: 8, steps: 30, increment: 4}",
                              "stages=[{from_step: 17, seq_len: 8}, {from_step: 31, micro_batch_size: 4}, "
                              "{from_step: 40, global_batch_size: 12, weights: [1, 0]}, "
                              "{from_step: 60, seq_len: 32, lr_factor: 0.5}]"});
  const BatchPlan plan(config);
  int64_t sequences = 0, tokens = 0;
  for (int64_t batch = 1; batch <= 130; ++batch) {
    const BatchStage& stage = plan.at(batch);
    const int64_t rises = 4;  // (24 - 8) / 4
    const int64_t expected = batch >= 40 ? 12 : batch > 30 ? 24 : 8 + 4 * ((batch - 1) * rises / 30);
    ASSERT_EQ(stage.global_batch_size, expected) << batch;
    ASSERT_EQ(stage.seq_len, batch >= 60 ? 32 : batch >= 17 ? 8 : 16) << batch;
    ASSERT_EQ(stage.micro_batch_size, batch >= 31 ? 4 : 2) << batch;
    ASSERT_EQ(stage.lr_factor, batch >= 60 ? 0.5 : 1.0) << batch;
    ASSERT_EQ(stage.weights, (batch >= 40 ? std::vector<double>{1, 0} : std::vector<double>{1, 3})) << batch;
    ASSERT_EQ(stage.piece_len, 32);
    ASSERT_FALSE(stage.begins_epoch);
    sequences += stage.global_batch_size;
    tokens += stage.tokens_per_batch();
    ASSERT_EQ(plan.num_sequences(1, batch), sequences);
    ASSERT_EQ(plan.num_tokens(1, batch), tokens);
    ASSERT_EQ(plan.num_tokens(batch, batch), stage.tokens_per_batch());
  }
  EXPECT_EQ(plan.num_tokens(5, 4), 0);
  EXPECT_EQ(plan.max_microbatch_tokens(), 4 * 32);
  EXPECT_EQ(steps_text(plan, plan.stages().size() - 1, 100), "60-100");
  EXPECT_EQ(with({}).stages.size(), 0u);
  EXPECT_EQ(BatchPlan(with({})).stages().size(), 1u);
}

TEST(BatchPlan, IsWrittenAndReadBack) {
  const Config config =
      with({"train.batch_ramp={from: 8, steps: 30, increment: 4}", "data.piece_len=64",
            "stages=[{from_step: 17, seq_len: 8, weights: [0.5, 2]}, {from_step: 31, lr_factor: 2}]"});
  const std::string yaml = to_yaml(config);
  const Config again = parse_config(yaml, "again.yaml");
  EXPECT_EQ(to_yaml(again), yaml);
  EXPECT_TRUE(BatchPlan(again).has_same_batches(BatchPlan(config), std::numeric_limits<int64_t>::max()));
  EXPECT_THAT(yaml, ::testing::HasSubstr("weights: [0.5, 2]"));
}

TEST(BatchPlan, WhatIsToComeMayChange) {
  const auto plan = [](const std::vector<std::string>& overrides) { return BatchPlan(with(overrides)); };
  const BatchPlan whole = plan({"stages=[{from_step: 10, seq_len: 8}, {from_step: 20, global_batch_size: 12}]"});
  const BatchPlan later = plan({"stages=[{from_step: 10, seq_len: 8}, {from_step: 30, global_batch_size: 12}]"});
  EXPECT_TRUE(whole.has_same_batches(later, 19));
  EXPECT_FALSE(whole.has_same_batches(later, 20));
  EXPECT_FALSE(later.has_same_batches(whole, 20));
  // The rate, micro-batches, and the weights' size are not what a batch is made of.
  EXPECT_TRUE(plan({"stages=[{from_step: 10, lr_factor: 2, micro_batch_size: 4, weights: [2, 6]}]"})
                  .has_same_batches(plan({}), 50));
  // Longer sequences make longer pieces, unless they are told not to.
  const BatchPlan longer = plan({"stages=[{from_step: 10, seq_len: 32}]"});
  EXPECT_FALSE(longer.has_same_batches(plan({}), 9));
  const BatchPlan cut = plan({"stages=[{from_step: 10, seq_len: 32}]", "data.piece_len=16"});
  EXPECT_TRUE(cut.has_same_batches(plan({}), 9));
  EXPECT_TRUE(cut.stages()[1].begins_epoch);
  EXPECT_EQ(cut.stages()[1].piece_len, 32);
  // A source at the end of the list that nobody has read yet.
  const BatchPlan more = plan({"data.train=[{path: a, weight: 1}, {path: b, weight: 3}, {path: c, weight: 0}]",
                               "stages=[{from_step: 10, weights: [0, 0, 1]}]"});
  EXPECT_TRUE(more.has_same_batches(plan({}), 9));
  EXPECT_FALSE(more.has_same_batches(plan({}), 10));
}

TEST(BatchPlan, WhatAModelWasTrainedOn) {
  const Config config = with({"stages=[{from_step: 10, seq_len: 64}, {from_step: 20, seq_len: 8}]"});
  EXPECT_EQ(trained_config(config, 9).data.seq_len, 16);
  EXPECT_EQ(trained_config(config, 10).data.seq_len, 64);
  EXPECT_EQ(trained_config(config, 25).data.seq_len, 64);
  EXPECT_TRUE(trained_config(config, 25).stages.empty());
}

TEST(BatchPlan, Mistakes) {
  const std::string place = "command line: stages=";
  const std::pair<const char*, const char*> stages[] = {
      {"[{seq_len: 8}]",
       "stages[0].from_step: required key is missing, expected an integer at least 2 and at most 1000000000"},
      {"[{from_step: 1, seq_len: 8}]", "stages[0].from_step: found 1, expected at least 2 and at most 1000000000"},
      {"[{from_step: 5}]",
       "stages[0]: found a from_step only, expected a global_batch_size, micro_batch_size, seq_len, weights or "
       "lr_factor"},
      {"[{from_step: 5, seq_len: 8}, {from_step: 5, seq_len: 4}]",
       "stages[1].from_step: found 5, expected above 5, where the stage before begins"},
      {"[{from_step: 5, weight: 8}]", "stages[0].weight: unknown key, did you mean weights?"},
      {"[{from_step: 5, weights: [1]}]", "stages[0].weights: found 1, expected 2: one for each of data.train"},
      {"[{from_step: 5, weights: [0, 0]}]", "stages[0].weights: found zeros only, expected one above 0"},
      {"[{from_step: 5, weights: [1, -1]}]", "stages[0].weights[1]: found -1, expected at least 0"},
      {"[{from_step: 5, weights: 3}]", "stages[0].weights: found '3', expected a list with at least one item"},
      {"[{from_step: 5, lr_factor: -1}]", "stages[0].lr_factor: found -1, expected at least 0"},
      {"[{from_step: 5, global_batch_size: 7}]",
       "stages[0]: found 7 sequences from step 5 on, expected a multiple of micro_batch_size (2)"},
      {"[{from_step: 5, seq_len: 24}]",
       "data.seq_len: found 16, expected a divisor of 24, the longest: sequences of every length are cut from the same "
       "pieces of text"},
      {"[{from_step: 5, seq_len: 12}]",
       "stages[0].seq_len: found 12, expected a divisor of 16, the longest: sequences of every length are cut from the "
       "same "
       "pieces of text"},
      {"8", "stages: found '8', expected a list with at least one item"},
  };
  for (const auto& [value, message] : stages)
    EXPECT_THAT(message_of({std::string("stages=") + value}), ::testing::EndsWith(message)) << value;
  EXPECT_THAT(message_of({std::string("stages=") + stages[0].first}), ::testing::StartsWith(place));
  const std::pair<std::vector<std::string>, const char*> others[] = {
      {{"train.batch_ramp={from: 8}"},
       "train.batch_ramp.steps: required key is missing, expected an integer at least 1"},
      {{"train.batch_ramp={steps: 8}"},
       "train.batch_ramp.steps has no effect without train.batch_ramp.from; remove it (train.batch_ramp.steps=null on "
       "the "
       "command line)"},
      {{"train.batch_ramp={from: 24, steps: 10, increment: 4}"},
       "train.batch_ramp.from: found 24, expected below train.global_batch_size (24)"},
      {{"train.batch_ramp={from: 8, steps: 10, increment: 3}"},
       "train.batch_ramp.increment: found 3, expected a divisor of train.global_batch_size (24) - from (8) = 16"},
      {{"train.batch_ramp={from: 8, steps: 3, increment: 4}"},
       "train.batch_ramp.steps: found 3 for 4 rises of 4, expected at least one step for each"},
      {{"train.batch_ramp={from: 9, steps: 10, increment: 5}"},
       "train.batch_ramp: found 9 sequences from step 1 on, expected a multiple of micro_batch_size (2)"},
      {{"train.batch_ramp={from: 8, steps: 10, increment: 4}", "stages=[{from_step: 10, global_batch_size: 2}]"},
       "stages[0].global_batch_size: found one from step 10 on, expected none before step 11: until then "
       "train.batch_ramp "
       "says it"},
      {{"data.train.0.weight=0"},
       "data.train[0].weight: found 0, expected above 0, here or in the weights of one of `stages`"},
      {{"data.piece_len=24"}, "data.seq_len: found 16, expected a divisor of 24, data.piece_len"},
      {{"data.piece_len=16", "stages=[{from_step: 5, seq_len: 24}]"},
       "stages[0].seq_len: found 24, expected a multiple of data.seq_len (16): it is longer than data.piece_len"},
      {{"parallel.data=1", "stages=[{from_step: 5, micro_batch_size: 3}]", "train.micro_batch_size=4"}, "no error"},
  };
  for (const auto& [overrides, message] : others)
    EXPECT_THAT(message_of(overrides), ::testing::EndsWith(message)) << overrides.front();
  const Config two = with({"stages=[{from_step: 5, global_batch_size: 6}]"});
  try {
    resolve_data_parallel(two, 2);
    ADD_FAILURE() << "6 sequences on two ranks with micro-batches of 2";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(),
                ::testing::StartsWith("stages[0]: the batch from step 5 on: found 6, expected a multiple of 4"));
  }
  EXPECT_THAT(with({"stages=[{from_step: 101, seq_len: 8}]"}).notes,
              ::testing::ElementsAre("stages[0] begins with step 101, after the last one (train.num_steps: 100)"));
}

}  // namespace
}  // namespace lamina
