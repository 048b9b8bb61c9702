#include "parallel/zero/shard_map.h"

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/base/rng.h"

namespace lamina::zero {
namespace {

std::vector<FlatParameter> random_parameters(uint64_t seed) {
  const CounterRng rng(seed, "parameters");
  std::vector<FlatParameter> parameters;
  const uint64_t count = 1 + rng.below(0, 40);
  for (uint64_t p = 0; p < count; ++p) {
    const auto size = static_cast<int64_t>(1 + rng.below(3 * p + 1, rng.below(3 * p + 2, 4) == 0 ? 5000 : 70));
    parameters.push_back({fmt::format("p{}", p), size, p > 0 && rng.below(3 * p + 3, 3) == 0});
  }
  return parameters;
}

void check_properties(const std::vector<FlatParameter>& parameters, int dp_size, int64_t bucket_elements) {
  const ShardMap map = make_shard_map(parameters, dp_size, bucket_elements);
  SCOPED_TRACE(map.to_string(parameters));
  ASSERT_EQ(map.offsets.size(), parameters.size());

  // Buckets tile the buffer and the parameters, and split evenly.
  int64_t at = 0, num_elements = 0;
  int next_parameter = 0;
  for (size_t b = 0; b < map.buckets.size(); ++b) {
    const Bucket& bucket = map.buckets[b];
    EXPECT_EQ(bucket.elements.begin, at);
    EXPECT_EQ(bucket.first_parameter, next_parameter);
    EXPECT_GT(bucket.end_parameter, bucket.first_parameter);
    EXPECT_EQ(bucket.elements.size() % (dp_size * shard_alignment), 0);
    EXPECT_FALSE(parameters[static_cast<size_t>(bucket.first_parameter)].joined_with_previous);
    at = bucket.elements.end;
    next_parameter = bucket.end_parameter;
    for (int r = 0; r < dp_size; ++r) {
      const Interval mine = map.owned(static_cast<int>(b), r);
      EXPECT_EQ(mine.begin, r == 0 ? bucket.elements.begin : map.owned(static_cast<int>(b), r - 1).end);
      EXPECT_EQ(mine.size(), bucket.elements.size() / dp_size);
    }
    EXPECT_EQ(map.owned(static_cast<int>(b), dp_size - 1).end, bucket.elements.end);
    // More than bucket_elements only when the bucket is a single run of joined parameters.
    int runs = 0;
    for (int p = bucket.first_parameter; p < bucket.end_parameter; ++p) {
      EXPECT_EQ(map.bucket_of(p), static_cast<int>(b));
      runs += parameters[static_cast<size_t>(p)].joined_with_previous ? 0 : 1;
    }
    if (runs > 1) {
      EXPECT_LT(bucket.elements.size(), bucket_elements + dp_size * shard_alignment);
    }
  }
  EXPECT_EQ(at, map.num_padded);
  EXPECT_EQ(next_parameter, static_cast<int>(parameters.size()));

  for (size_t p = 0; p < parameters.size(); ++p) {
    num_elements += parameters[p].num_elements;
    const Bucket& bucket = map.buckets[static_cast<size_t>(map.bucket_of(static_cast<int>(p)))];
    EXPECT_GE(map.offsets[p], bucket.elements.begin);
    EXPECT_LE(map.offsets[p] + parameters[p].num_elements, bucket.elements.end);
    const int64_t previous_end = p == 0 ? 0 : map.offsets[p - 1] + parameters[p - 1].num_elements;
    if (parameters[p].joined_with_previous) {
      EXPECT_EQ(map.offsets[p], previous_end);
    } else {
      EXPECT_EQ(map.offsets[p] % shard_alignment, 0);
      EXPECT_GE(map.offsets[p], previous_end);
    }
  }
  EXPECT_EQ(map.num_elements, num_elements);

  // Every element of every parameter belongs to exactly one rank, where the map says that it lies.
  std::vector<std::vector<int>> owners;
  for (const FlatParameter& parameter : parameters) owners.emplace_back(parameter.num_elements, 0);
  for (int r = 0; r < dp_size; ++r) {
    int64_t last = -1;
    for (const OwnedPart& part : map.owned_parts(parameters, r)) {
      EXPECT_LT(part.begin, part.end);
      EXPECT_EQ(part.flat_offset, map.offsets[static_cast<size_t>(part.parameter)] + part.begin);
      EXPECT_GT(part.flat_offset, last);
      last = part.flat_offset;
      const Interval mine = map.owned(map.bucket_of(part.parameter), r);
      EXPECT_TRUE(mine.begin <= part.flat_offset && part.flat_offset + part.end - part.begin <= mine.end);
      for (int64_t e = part.begin; e < part.end; ++e)
        ++owners[static_cast<size_t>(part.parameter)][static_cast<size_t>(e)];
    }
  }
  for (const auto& parameter : owners)
    for (int count : parameter) ASSERT_EQ(count, 1);
}

TEST(ShardMap, PropertiesOverRandomParameters) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const auto parameters = random_parameters(seed);
    for (int dp_size : {1, 2, 3, 8, 512})
      for (int64_t bucket_elements : {int64_t{1}, int64_t{1000}, int64_t{1} << 40})
        check_properties(parameters, dp_size, bucket_elements);
  }
}

TEST(ShardMap, PrintsAsText) {
  const std::vector<FlatParameter> parameters{
      {"norm", 20, false}, {"gate", 30, false}, {"up", 30, true}, {"down", 200, false}, {"last", 1, false}};
  EXPECT_EQ(make_shard_map(parameters, 3, 100).to_string(parameters),
            "281 elements in 5 parameters, 384 with padding, 3 buckets over 3 ranks\n"
            "bucket 0  [0, 96)  32 per rank\n"
            "    [0, 20)  norm\n"
            "    [32, 62)  gate\n"
            "  + [62, 92)  up\n"
            "bucket 1  [96, 336)  80 per rank\n"
            "    [96, 296)  down\n"
            "bucket 2  [336, 384)  16 per rank\n"
            "    [336, 337)  last\n");
}

TEST(ShardMap, NoParametersAreAnEmptyBuffer) {
  const ShardMap map = make_shard_map({}, 4, 100);
  EXPECT_EQ(map.num_padded, 0);
  EXPECT_TRUE(map.buckets.empty());
  EXPECT_TRUE(map.owned_parts({}, 3).empty());
}

TEST(ShardMap, WrongArgumentsAreBugs) {
  const std::vector<FlatParameter> one{{"a", 5, false}};
  EXPECT_THROW(make_shard_map(one, 0, 100), InternalError);
  EXPECT_THROW(make_shard_map(one, 1, 0), InternalError);
  EXPECT_THROW(make_shard_map(std::vector<FlatParameter>{{"a", 0, false}}, 1, 100), InternalError);
  EXPECT_THROW(make_shard_map(std::vector<FlatParameter>{{"a", 5, true}}, 1, 100), InternalError);
  const ShardMap map = make_shard_map(one, 2, 100);
  EXPECT_THROW(map.owned(1, 0), InternalError);
  EXPECT_THROW(map.owned(0, 2), InternalError);
  EXPECT_THROW(map.owned(-1, 0), InternalError);
  EXPECT_THROW(map.bucket_of(1), InternalError);
  EXPECT_THROW(map.owned_parts({}, 0), InternalError);
  EXPECT_THROW((void)map.to_string({}), InternalError);
}

}  // namespace
}  // namespace lamina::zero
