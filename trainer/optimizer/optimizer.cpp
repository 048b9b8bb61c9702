#include "trainer/optimizer/optimizer.h"

#include <algorithm>
#include <iterator>

#include "core/ops/elementwise/elementwise.h"
#include "core/tensor/elements.h"

namespace lamina {

ShardedOptimizer::ShardedOptimizer(const Config& config, model::Parameters& parameters, const OwnerGroups& owners,
                                   MemoryLedger* ledger)
    : config_(config.train.optimizer),
      rules_(model::update_rules(config, parameters.specs())),
      parameters_(parameters),
      slice_of_(parameters.specs().size(), -1) {
  for (size_t g = 0; g < model::num_groups; ++g) add_group(static_cast<model::Group>(g), *owners[g], ledger);
}

// run_of: per part, its run.
ShardedOptimizer::Runs ShardedOptimizer::make_runs(const model::ParameterGroup& group,
                                                   const std::vector<zero::OwnedPart>& parts,
                                                   std::vector<size_t>& run_of) const {
  Runs runs;
  int bucket_of_run = -1;
  for (const zero::OwnedPart& part : parts) {
    const model::UpdateRule& rule = rule_of(group.spec_of[static_cast<size_t>(part.parameter)]);
    const int bucket = group.shards.bucket_of(part.parameter);
    const int64_t end = part.flat_offset + part.end - part.begin;
    // Between the parts of one bucket that a rank owns there is padding only.
    if (!runs.empty() && bucket == bucket_of_run && runs.back().rule == rule) {
      runs.back().end = end;
    } else {
      model::OwnedRun& run = runs.emplace_back();
      run.begin = part.flat_offset;
      run.end = end;
      run.rule = rule;
    }
    bucket_of_run = bucket;
    run_of.push_back(runs.size() - 1);
  }
  return runs;
}

// Memory of masters and state, and every run's views.
void ShardedOptimizer::book(Runs& runs, model::ParameterGroup& group, MemoryLedger* ledger) {
  const DType acc = accumulation_dtype(group.dtype);
  // One buffer for all runs that `has` says, a view of which `put` gets for each.
  const auto allocate = [&](DType dtype, const auto& has, const auto& put) {
    int64_t count = 0, offset = 0;
    for (const model::OwnedRun& run : runs) count += has(run) ? run.size() : 0;
    const Buffer& buffer = buffers_.emplace_back(count * size_of(dtype), group.values.device(), ledger, "optimizer");
    for (model::OwnedRun& run : runs) {
      if (!has(run)) continue;
      put(run, elements_of(buffer, dtype, offset, run.size()));
      offset += run.size();
    }
  };
  for (model::OwnedRun& run : runs) {
    run.value = run.master = group.all_values().slice(0, run.begin, run.end);
    run.gradient = group.all_gradients().slice(0, run.begin, run.end);
  }
  if (group.dtype != acc)
    allocate(
        acc, [](const model::OwnedRun&) { return true; },
        [](model::OwnedRun& run, const TensorView& view) { run.master = view; });
  for (const model::Optimizer* optimizer : model::optimizers())
    for (const model::Optimizer::StateTensor& tensor : optimizer->facts().state)
      allocate(
          tensor.dtype.value_or(acc), [&](const model::OwnedRun& run) { return run.rule.optimizer == optimizer; },
          [](model::OwnedRun& run, const TensorView& view) { run.state.push_back(view); });
}

void ShardedOptimizer::add_group(model::Group id, comm::Communicator& owners, MemoryLedger* ledger) {
  model::ParameterGroup& group = parameters_.groups()[static_cast<size_t>(id)];
  const std::vector<zero::OwnedPart> parts = group.shards.owned_parts(group.flat, owners.rank());
  std::vector<size_t> run_of;
  Runs runs = make_runs(group, parts, run_of);
  book(runs, group, ledger);
  std::vector<OwnedSlice> slices;
  for (size_t i = 0; i < parts.size(); ++i) {
    const zero::OwnedPart& part = parts[i];
    const model::OwnedRun& run = runs[run_of[i]];
    const int64_t from = part.flat_offset - run.begin, to = from + part.end - part.begin;
    OwnedSlice& slice = slices.emplace_back();
    slice.rule = run.rule;
    slice.value = run.value.slice(0, from, to);
    slice.gradient = run.gradient.slice(0, from, to);
    slice.master = run.master.slice(0, from, to);
    for (const TensorView& state : run.state) slice.state.push_back(state.slice(0, from, to));
    slice.parameter = group.spec_of[static_cast<size_t>(part.parameter)];
    slice.begin = part.begin;
    slice.end = part.end;
    slice_of_[static_cast<size_t>(slice.parameter)] = static_cast<int>(owned_.size());
    owned_.push_back(slice);
  }
  add_updates(id, slices, runs, owners, ledger);
}

// Also where this rank owns nothing: an update may be collective.
void ShardedOptimizer::add_updates(model::Group id, const std::vector<OwnedSlice>& slices, const Runs& runs,
                                   comm::Communicator& owners, MemoryLedger* ledger) {
  const model::ParameterGroup& group = parameters_.groups()[static_cast<size_t>(id)];
  for (const model::Optimizer* optimizer : model::optimizers()) {
    const auto is_updated = [&](const model::OwnedElements& owned) { return owned.rule.optimizer == optimizer; };
    model::GroupTensors tensors{config_, parameters_.specs(), group, {}, {}, {}, owners, ledger};
    for (size_t i = 0; i < group.spec_of.size(); ++i)
      if (rule_of(group.spec_of[i]).optimizer == optimizer) tensors.members.push_back(static_cast<int>(i));
    if (tensors.members.empty()) continue;
    std::copy_if(slices.begin(), slices.end(), std::back_inserter(tensors.slices), is_updated);
    std::copy_if(runs.begin(), runs.end(), std::back_inserter(tensors.runs), is_updated);
    updates_[{optimizer->facts().name, id}] = optimizer->make_update(tensors);
  }
}

const model::GroupUpdate* ShardedOptimizer::update(OptimizerName optimizer, model::Group group) const {
  const auto found = updates_.find({optimizer, group});
  return found == updates_.end() ? nullptr : found->second.get();
}

void ShardedOptimizer::initialise_masters(uint64_t seed, double initializer_range) {
  if (owned_.empty()) return;
  Stream stream(owned_.front().master.device);
  for (const OwnedSlice& slice : owned_) {
    const model::ParameterSpec& spec = parameters_.specs()[static_cast<size_t>(slice.parameter)];
    model::initialise_range(spec, seed, initializer_range, slice.begin, slice.master, stream);
  }
  stream.synchronize();
}

void ShardedOptimizer::publish_masters(ops::OpContext& ctx) {
  for (const OwnedSlice& slice : owned_)
    if (slice.rounded()) ops::cast(ctx, {slice.master, slice.rounded()});
}

void ShardedOptimizer::step(ops::OpContext& ctx, int64_t step, double lr, double grad_scale) {
  for (const auto& [key, update] : updates_) update->step(ctx, {step, lr, grad_scale});
}

void ShardedOptimizer::scale_rows(ops::OpContext& ctx, int parameter, int64_t begin, int64_t end, double factor) {
  const int i = slice_of_[static_cast<size_t>(parameter)];
  if (i < 0) return;
  const OwnedSlice& own = owned_[static_cast<size_t>(i)];
  const Shape& shape = parameters_.specs()[static_cast<size_t>(parameter)].shape;
  const int64_t columns = shape.num_elements() / shape[0];
  const int64_t from = std::max(begin * columns, own.begin) - own.begin;
  const int64_t to = std::min(end * columns, own.end) - own.begin;
  if (from >= to) return;
  ops::scale(ctx, {own.master.slice(0, from, to), factor});
  if (own.rounded()) ops::cast(ctx, {own.master.slice(0, from, to), own.rounded().slice(0, from, to)});
}

std::vector<TensorPiece> ShardedOptimizer::state() const {
  return pieces(false);
}
std::vector<TensorPiece> ShardedOptimizer::primary_state() const {
  return pieces(true);
}

std::vector<TensorPiece> ShardedOptimizer::pieces(bool primary_only) const {
  std::vector<TensorPiece> pieces;
  for (const OwnedSlice& slice : owned_) {
    if (primary_only && !parameters_.is_primary(slice.parameter)) continue;
    const model::ParameterSpec& spec = parameters_.specs()[static_cast<size_t>(slice.parameter)];
    const auto add = [&](const std::string& folder, const TensorView& data) {
      pieces.push_back({folder + "/" + spec.name, spec.shape, slice.begin, slice.end, data});
    };
    add("parameters", slice.master);
    for (size_t s = 0; s < slice.state.size(); ++s)
      add(fmt::format("optimizer/{}", slice.rule.optimizer->facts().state[s].name), slice.state[s]);
  }
  return pieces;
}

}  // namespace lamina
