#include "trainer/optimizer.h"

#include "core/device/cpu/parallel_for.h"
#include "core/ops/adamw.h"
#include "core/ops/elementwise.h"

namespace lamina {

ShardedAdamW::ShardedAdamW(const OptimizerConfig& config, model::Parameters& parameters, int dp_rank,
                           MemoryLedger* ledger)
    : config_(config), parameters_(parameters) {
  groups_.reserve(2);
  add_group(parameters.matrices(), dp_rank, ledger);
  add_group(parameters.vectors(), dp_rank, ledger);
}

void ShardedAdamW::add_group(model::ParameterGroup& group, int dp_rank, MemoryLedger* ledger) {
  const DType acc = accumulation_dtype(group.dtype);
  const zero::ShardMap& map = group.shards;
  int64_t owned = 0;
  for (size_t b = 0; b < map.buckets.size(); ++b) {
    const auto range = map.owned(static_cast<int>(b), dp_rank);
    owned += range.end - range.begin;
  }
  const Device device = group.values.device();
  const bool separate_masters = group.dtype != acc;
  GroupState state;
  state.m = Buffer(owned * size_of(acc), device, ledger, "optimizer");
  state.v = Buffer(owned * size_of(acc), device, ledger, "optimizer");
  if (separate_masters) state.masters = Buffer(owned * size_of(acc), device, ledger, "optimizer");
  const TensorView values = group.all_values(), gradients = group.all_gradients();
  const TensorView m(state.m.data(), acc, {owned}, device), v(state.v.data(), acc, {owned}, device);
  const TensorView masters = separate_masters ? TensorView(state.masters.data(), acc, {owned}, device) : TensorView();
  std::vector<zero::Interval> ranges;
  int64_t at = 0;
  for (size_t b = 0; b < map.buckets.size(); ++b) {
    const auto range = map.owned(static_cast<int>(b), dp_rank);
    const int64_t count = range.end - range.begin;
    const TensorView value = values.slice(0, range.begin, range.end);
    state.shards.push_back({value, gradients.slice(0, range.begin, range.end),
                            separate_masters ? masters.slice(0, at, at + count) : value, m.slice(0, at, at + count),
                            v.slice(0, at, at + count)});
    ranges.push_back({range.begin, range.end});
    at += count;
  }
  for (const auto& part : map.owned_parts(group.flat, dp_rank)) {
    const int64_t count = part.end - part.begin;
    size_t b = 0;
    while (part.flat_offset >= ranges[b].end) ++b;
    const int64_t from = part.flat_offset - ranges[b].begin;
    const Shard& shard = state.shards[b];
    owned_.push_back({group.spec_of[static_cast<size_t>(part.parameter)], part.begin, part.end,
                      shard.value.slice(0, from, from + count), shard.gradient.slice(0, from, from + count),
                      shard.master.slice(0, from, from + count)});
    m_.push_back(shard.m.slice(0, from, from + count));
    v_.push_back(shard.v.slice(0, from, from + count));
  }
  groups_.push_back(std::move(state));
}

void ShardedAdamW::initialise_masters(uint64_t seed, double initializer_range) {
  for (const OwnedSlice& slice : owned_) {
    const model::ParameterSpec& spec = parameters_.specs()[static_cast<size_t>(slice.parameter)];
    model::initialise_range(spec, seed, initializer_range, slice.begin, slice.master);
  }
}

void ShardedAdamW::publish_masters(ops::OpContext& ctx) {
  for (const OwnedSlice& slice : owned_)
    if (slice.master.data != slice.value.data) ops::cast(ctx, {slice.master, slice.value});
}

void ShardedAdamW::step(ops::OpContext& ctx, int64_t step, double lr, double grad_scale) {
  for (const GroupState& group : groups_) {
    for (const Shard& shard : group.shards) {
      ops::AdamW args;
      args.master = shard.master;
      args.grad = shard.gradient;
      args.m = shard.m;
      args.v = shard.v;
      if (shard.master.data != shard.value.data) args.param = shard.value;
      args.step = step;
      args.lr = lr;
      args.beta1 = config_.beta1;
      args.beta2 = config_.beta2;
      args.eps = config_.eps;
      args.weight_decay = config_.weight_decay;
      args.grad_scale = grad_scale;
      ops::adamw(ctx, args);
    }
  }
}

std::vector<TensorPiece> ShardedAdamW::state() const {
  return pieces(false);
}
std::vector<TensorPiece> ShardedAdamW::primary_state() const {
  return pieces(true);
}

std::vector<TensorPiece> ShardedAdamW::pieces(bool primary_only) const {
  std::vector<TensorPiece> pieces;
  for (size_t i = 0; i < owned_.size(); ++i) {
    const OwnedSlice& slice = owned_[i];
    if (primary_only && !parameters_.is_primary(slice.parameter)) continue;
    const model::ParameterSpec& spec = parameters_.specs()[static_cast<size_t>(slice.parameter)];
    pieces.push_back({"parameters/" + spec.name, spec.shape, slice.begin, slice.end, slice.master});
    pieces.push_back({"optimizer/m/" + spec.name, spec.shape, slice.begin, slice.end, m_[i]});
    pieces.push_back({"optimizer/v/" + spec.name, spec.shape, slice.begin, slice.end, v_[i]});
  }
  return pieces;
}

}  // namespace lamina
