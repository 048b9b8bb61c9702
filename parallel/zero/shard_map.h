// Where every parameter lies in a flat buffer, how the buffer is cut into buckets, and which rank owns what (ZeRO stage 1:
// Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC20). A pure plan.
//
//   flat buffer   | bucket 0                        | bucket 1                | ...
//   a bucket      | parameters and padding          |
//                 | rank 0    | rank 1   | rank 2   |     equal parts, multiples of shard_alignment elements
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lamina::zero {

// Elements. 64 bytes of fp32: no cache line, and no vector of a kernel, belongs to two ranks or two parameters.
constexpr int64_t shard_alignment = 16;

struct FlatParameter {
  std::string name;
  int64_t num_elements = 0;
  // No padding between it and its predecessor, and never in another bucket: the two are used as one matrix.
  bool joined_with_previous = false;
};

struct Interval {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Interval&) const = default;
};

struct Bucket {
  Interval elements;    // of the flat buffer, padding included
  int first_parameter;  // [first, end)
  int end_parameter;
};

// A run of elements of one parameter that one rank owns.
struct OwnedPart {
  int parameter;
  int64_t begin, end;   // inside the parameter
  int64_t flat_offset;  // of `begin` in the flat buffer
};

struct ShardMap {
  int dp_size = 1;
  std::vector<int64_t> offsets;  // [parameter], in the flat buffer
  std::vector<Bucket> buckets;
  int64_t num_elements = 0;  // of the parameters
  int64_t num_padded = 0;    // of the flat buffer

  Interval owned(int bucket, int dp_rank) const;
  int bucket_of(int parameter) const;
  // What dp_rank owns, in the order of the flat buffer, padding left out. `parameters` as the map was made from.
  std::vector<OwnedPart> owned_parts(std::span<const FlatParameter> parameters, int dp_rank) const;
  std::string to_string(std::span<const FlatParameter> parameters) const;
};

// A bucket takes parameters until the next one would exceed bucket_elements; a larger parameter has a bucket of its own.
ShardMap make_shard_map(std::span<const FlatParameter> parameters, int dp_size, int64_t bucket_elements);

}  // namespace lamina::zero
