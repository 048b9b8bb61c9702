#include "parallel/zero/shard_map.h"

#include <algorithm>

#include "core/base/error.h"

namespace lamina::zero {

namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

Interval ShardMap::owned(int bucket, int dp_rank) const {
  LAMINA_CHECK(bucket >= 0 && bucket < static_cast<int>(buckets.size()), "bucket {} of {}", bucket, buckets.size());
  LAMINA_CHECK(dp_rank >= 0 && dp_rank < dp_size, "dp_rank {} of {}", dp_rank, dp_size);
  const Interval all = buckets[static_cast<size_t>(bucket)].elements;
  const int64_t part = all.size() / dp_size;
  return {all.begin + part * dp_rank, all.begin + part * (dp_rank + 1)};
}

int ShardMap::bucket_of(int parameter) const {
  LAMINA_CHECK(parameter >= 0 && parameter < static_cast<int>(offsets.size()), "parameter {} of {}", parameter,
               offsets.size());
  const auto after = std::upper_bound(buckets.begin(), buckets.end(), parameter,
                                      [](int p, const Bucket& bucket) { return p < bucket.end_parameter; });
  return static_cast<int>(after - buckets.begin());
}

std::vector<OwnedPart> ShardMap::owned_parts(std::span<const FlatParameter> parameters, int dp_rank) const {
  LAMINA_CHECK(parameters.size() == offsets.size(), "{} parameters, {} in the map", parameters.size(), offsets.size());
  std::vector<OwnedPart> parts;
  for (size_t b = 0; b < buckets.size(); ++b) {
    const Interval mine = owned(static_cast<int>(b), dp_rank);
    for (int p = buckets[b].first_parameter; p < buckets[b].end_parameter; ++p) {
      const int64_t offset = offsets[static_cast<size_t>(p)];
      const int64_t begin = std::max(mine.begin, offset);
      const int64_t end = std::min(mine.end, offset + parameters[static_cast<size_t>(p)].num_elements);
      if (begin < end) parts.push_back({p, begin - offset, end - offset, begin});
    }
  }
  return parts;
}

std::string ShardMap::to_string(std::span<const FlatParameter> parameters) const {
  LAMINA_CHECK(parameters.size() == offsets.size(), "{} parameters, {} in the map", parameters.size(), offsets.size());
  std::string text = fmt::format("{} elements in {} parameters, {} with padding, {} buckets over {} ranks\n",
                                 num_elements, parameters.size(), num_padded, buckets.size(), dp_size);
  for (size_t b = 0; b < buckets.size(); ++b) {
    const Bucket& bucket = buckets[b];
    text += fmt::format("bucket {}  [{}, {})  {} per rank\n", b, bucket.elements.begin, bucket.elements.end,
                        bucket.elements.size() / dp_size);
    for (int p = bucket.first_parameter; p < bucket.end_parameter; ++p) {
      const FlatParameter& parameter = parameters[static_cast<size_t>(p)];
      const int64_t offset = offsets[static_cast<size_t>(p)];
      text += fmt::format("  {} [{}, {})  {}\n", parameter.joined_with_previous ? '+' : ' ', offset,
                          offset + parameter.num_elements, parameter.name);
    }
  }
  return text;
}

ShardMap make_shard_map(std::span<const FlatParameter> parameters, int dp_size, int64_t bucket_elements) {
  LAMINA_CHECK(dp_size >= 1, "dp_size {}", dp_size);
  LAMINA_CHECK(bucket_elements >= 1, "bucket_elements {}", bucket_elements);
  ShardMap map;
  map.dp_size = dp_size;
  const size_t count = parameters.size();
  int64_t end = 0;  // of what the open bucket holds
  const auto close_bucket = [&](size_t end_parameter) {
    Bucket& bucket = map.buckets.back();
    bucket.end_parameter = static_cast<int>(end_parameter);
    bucket.elements.end = bucket.elements.begin + round_up(end - bucket.elements.begin, dp_size * shard_alignment);
    end = bucket.elements.end;
  };
  for (size_t first = 0; first < count;) {
    LAMINA_CHECK(first > 0 || !parameters[0].joined_with_previous, "{} has no predecessor to join", parameters[0].name);
    // Joined parameters move as one.
    size_t next = first;
    int64_t run = 0;
    do {
      LAMINA_CHECK(parameters[next].num_elements >= 1, "{} has {} elements", parameters[next].name,
                   parameters[next].num_elements);
      run += parameters[next++].num_elements;
    } while (next < count && parameters[next].joined_with_previous);

    const bool opens_bucket =
        map.buckets.empty() ||
        round_up(end, shard_alignment) + run - map.buckets.back().elements.begin > bucket_elements;
    if (opens_bucket) {
      if (!map.buckets.empty()) close_bucket(first);
      map.buckets.push_back({{end, end}, static_cast<int>(first), static_cast<int>(first)});
    }
    end = round_up(end, shard_alignment);
    for (; first < next; ++first) {
      map.offsets.push_back(end);
      end += parameters[first].num_elements;
    }
    map.num_elements += run;
  }
  if (!map.buckets.empty()) close_bucket(count);
  map.num_padded = end;
  return map;
}

}  // namespace lamina::zero
