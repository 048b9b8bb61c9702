#include "trainer/optimizer/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/ops/elementwise/elementwise.h"
#include "core/ops/optimizer/adamw.h"
#include "core/ops/optimizer/muon.h"
#include "core/tensor/elements.h"

namespace lamina {

using Kind = model::UpdateRule::Kind;

ShardedOptimizer::ShardedOptimizer(const Config& config, model::Parameters& parameters, const OwnerGroups& owners,
                                   MemoryLedger* ledger)
    : config_(config.train.optimizer),
      rules_(model::update_rules(config, parameters.specs())),
      parameters_(parameters),
      slice_of_(parameters.specs().size(), -1) {
  for (size_t g = 0; g < model::num_groups; ++g) {
    model::ParameterGroup& group = parameters.groups()[g];
    add_group(group, owners[g]->rank(), ledger);
    std::vector<bool> is_matrix;  // of Muon, in the order of the group
    for (int parameter : group.spec_of) is_matrix.push_back(rule_of(parameter).kind == Kind::muon);
    if (std::find(is_matrix.begin(), is_matrix.end(), true) != is_matrix.end())
      muon_[g] = std::make_unique<MuonGroup>(parameters.specs(), group, is_matrix, *owners[g], ledger);
  }
}

// run_of: per part, its run.
std::vector<ShardedOptimizer::Run> ShardedOptimizer::make_runs(const model::ParameterGroup& group,
                                                               const std::vector<zero::OwnedPart>& parts,
                                                               std::vector<size_t>& run_of) const {
  std::vector<Run> runs;
  int bucket_of_run = -1;
  for (const zero::OwnedPart& part : parts) {
    const model::UpdateRule& rule = rule_of(group.spec_of[static_cast<size_t>(part.parameter)]);
    const int bucket = group.shards.bucket_of(part.parameter);
    const int64_t end = part.flat_offset + part.end - part.begin;
    // Between the parts of one bucket that a rank owns there is padding only.
    if (!runs.empty() && bucket == bucket_of_run && runs.back().rule == rule) {
      runs.back().end = end;
    } else {
      Run run;
      run.begin = part.flat_offset;
      run.end = end;
      run.rule = rule;
      runs.push_back(run);
    }
    bucket_of_run = bucket;
    run_of.push_back(runs.size() - 1);
  }
  return runs;
}

// Memory of masters and state, and every run's views.
void ShardedOptimizer::book(std::vector<Run>& runs, model::ParameterGroup& group, MemoryLedger* ledger) {
  const DType acc = accumulation_dtype(group.dtype);
  const bool separate_masters = group.dtype != acc;
  int64_t masters = 0, first = 0, second = 0;
  for (const Run& run : runs) {
    if (separate_masters) masters += run.size();
    if (run.rule.kind != Kind::none) first += run.size();
    if (run.rule.kind == Kind::adamw) second += run.size();
  }
  const Device device = group.values.device();
  const size_t at = buffers_.size();
  for (int64_t count : {masters, first, second})
    buffers_.emplace_back(count * size_of(acc), device, ledger, "optimizer");
  masters = first = second = 0;
  const auto take = [&](size_t buffer, int64_t& offset, int64_t count) {
    const TensorView view = elements_of(buffers_[at + buffer], acc, offset, count);
    offset += count;
    return view;
  };
  for (Run& run : runs) {
    run.value = group.all_values().slice(0, run.begin, run.end);
    run.gradient = group.all_gradients().slice(0, run.begin, run.end);
    run.master = separate_masters ? take(0, masters, run.size()) : run.value;
    if (run.rule.kind != Kind::none) run.m = take(1, first, run.size());
    if (run.rule.kind == Kind::adamw) run.v = take(2, second, run.size());
  }
}

void ShardedOptimizer::add_group(model::ParameterGroup& group, int rank, MemoryLedger* ledger) {
  const std::vector<zero::OwnedPart> parts = group.shards.owned_parts(group.flat, rank);
  std::vector<size_t> run_of;
  std::vector<Run> runs = make_runs(group, parts, run_of);
  book(runs, group, ledger);
  for (size_t i = 0; i < parts.size(); ++i) {
    const zero::OwnedPart& part = parts[i];
    const Run& run = runs[run_of[i]];
    const int parameter = group.spec_of[static_cast<size_t>(part.parameter)];
    const int64_t from = part.flat_offset - run.begin, to = from + part.end - part.begin;
    const auto piece = [&](const TensorView& of_run) { return of_run ? of_run.slice(0, from, to) : TensorView(); };
    slice_of_[static_cast<size_t>(parameter)] = static_cast<int>(owned_.size());
    owned_.push_back({parameter, part.begin, part.end, piece(run.value), piece(run.gradient), piece(run.master)});
    m_.push_back(piece(run.m));
    v_.push_back(piece(run.v));
  }
  runs_.insert(runs_.end(), runs.begin(), runs.end());
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
    if (slice.master.data != slice.value.data) ops::cast(ctx, {slice.master, slice.value});
}

void ShardedOptimizer::step(ops::OpContext& ctx, int64_t step, double lr, double grad_scale) {
  for (const Run& run : runs_) {
    if (run.rule.kind != Kind::adamw) continue;
    ops::AdamW args;
    args.master = run.master;
    args.grad = run.gradient;
    args.m = run.m;
    args.v = run.v;
    if (run.master.data != run.value.data) args.param = run.value;
    args.step = step;
    args.lr = lr * run.rule.lr_factor;
    args.beta1 = config_.beta1;
    args.beta2 = config_.beta2;
    args.eps = config_.eps;
    args.weight_decay = run.rule.weight_decay;
    args.grad_scale = grad_scale;
    ops::adamw(ctx, args);
  }
  step_muon(ctx, lr, grad_scale);
}

void ShardedOptimizer::step_muon(ops::OpContext& ctx, double lr, double grad_scale) {
  const auto owned_slice = [&](const MuonGroup::Slice& slice) {
    const auto i = static_cast<size_t>(slice_of_[static_cast<size_t>(slice.parameter)]);
    LAMINA_CHECK(owned_[i].parameter == slice.parameter && owned_[i].begin == slice.begin &&
                 owned_[i].end == slice.end);
    return i;
  };
  for (size_t g = 0; g < model::num_groups; ++g) {
    if (!muon_[g]) continue;
    muon_[g]->orthogonalise(
        ctx, parameters_.groups()[g].dtype,
        [&](const MuonGroup::Slice& slice, const TensorView& out) {
          const size_t i = owned_slice(slice);
          ops::muon_momentum(ctx, {owned_[i].gradient, m_[i], out, config_.momentum, grad_scale});
        },
        [&](const MuonGroup::Slice& slice, const TensorView& update) {
          const OwnedSlice& own = owned_[owned_slice(slice)];
          const Shape& shape = parameters_.specs()[static_cast<size_t>(slice.parameter)].shape;
          const auto longer = static_cast<double>(std::max(shape[0], shape[1]));
          const model::UpdateRule& rule = rule_of(slice.parameter);
          ops::muon_apply(ctx, {update, own.master, own.master.data == own.value.data ? TensorView() : own.value,
                                lr * rule.lr_factor, rule.weight_decay, 0.2 * std::sqrt(longer)});
        });
  }
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
  if (own.master.data != own.value.data) ops::cast(ctx, {own.master.slice(0, from, to), own.value.slice(0, from, to)});
}

std::vector<TensorPiece> ShardedOptimizer::state() const {
  return pieces(false);
}
std::vector<TensorPiece> ShardedOptimizer::primary_state() const {
  return pieces(true);
}

std::vector<TensorPiece> ShardedOptimizer::pieces(bool primary_only) const {
  std::vector<TensorPiece> pieces;
  for (size_t i = 0; i < owned_.size(); ++i) {
    const OwnedSlice& slice = owned_[i];
    if (primary_only && !parameters_.is_primary(slice.parameter)) continue;
    const model::ParameterSpec& spec = parameters_.specs()[static_cast<size_t>(slice.parameter)];
    const auto add = [&](const std::string& folder, const TensorView& data) {
      if (data) pieces.push_back({folder + "/" + spec.name, spec.shape, slice.begin, slice.end, data});
    };
    add("parameters", slice.master);
    add(rule_of(slice.parameter).kind == Kind::muon ? "optimizer/momentum" : "optimizer/m", m_[i]);
    add("optimizer/v", v_[i]);
  }
  return pieces;
}

}  // namespace lamina
