#include "trainer/optimizer/muon.h"

#include "core/ops/elementwise/elementwise.h"
#include "core/ops/optimizer/newton_schulz.h"
#include "core/tensor/elements.h"

namespace lamina {
namespace {

// Of what an owner assembles at a time: 64 MiB in fp32.
constexpr int64_t round_elements = int64_t{16} << 20;

}  // namespace

MuonGroup::MuonGroup(const std::vector<model::ParameterSpec>& specs, const model::ParameterGroup& parameters,
                     const std::vector<bool>& is_matrix, comm::Communicator& group, MemoryLedger* ledger)
    : group_(group), acc_(accumulation_dtype(parameters.dtype)) {
  std::vector<MuonMatrix> matrices;
  for (size_t i = 0; i < parameters.flat.size(); ++i) {
    if (!is_matrix[i]) continue;
    const model::ParameterSpec& spec = specs[static_cast<size_t>(parameters.spec_of[i])];
    parameters_.push_back(parameters.spec_of[i]);
    matrices.push_back(
        {spec.name, spec.shape[0], spec.shape[1], muon_parts(parameters.shards, parameters.flat, static_cast<int>(i))});
  }
  plan_ = make_muon_plan(matrices, group.size(), round_elements);
  rounds_ = muon_rank_rounds(plan_, matrices, group.rank());
  const Device device = parameters.values.device();
  message_ = Buffer(max_sent(rounds_) * size_of(acc_), device, ledger, "optimizer messages");
  received_ = Buffer(max_received(rounds_) * size_of(acc_), device, ledger, "optimizer messages");
  assembled_ = Buffer(max_received(rounds_) * size_of(acc_), device, ledger, "optimizer messages");
}

void MuonGroup::orthogonalise(ops::OpContext& ctx, DType products, const Visit& write, const Visit& apply) {
  for (const MuonRankRound& round : rounds_) run_round(ctx, products, round, write, apply);
}

void MuonGroup::run_round(ops::OpContext& ctx, DType products, const MuonRankRound& round, const Visit& write,
                          const Visit& apply) {
  const auto slice_of = [&](const MuonSend& piece) {
    return Slice{parameters_[static_cast<size_t>(piece.matrix)], piece.begin, piece.end};
  };
  const auto message_of = [&](const MuonSend& piece) {
    return elements_of(message_, acc_, piece.message_offset, piece.end - piece.begin);
  };
  for (const MuonSend& piece : round.sent) write(slice_of(piece), message_of(piece));
  const TensorView message = elements_of(message_, acc_, 0, round.num_sent);
  const TensorView received = elements_of(received_, acc_, 0, round.num_received);
  group_.all_to_all_v(message, round.send_counts, received, round.receive_counts, ctx.stream).wait();
  for (const MuonReceive& copy : round.received)
    ops::cast(ctx, {elements_of(received_, acc_, copy.message_offset, copy.num_elements),
                    elements_of(assembled_, acc_, copy.assembled_offset, copy.num_elements)});
  for (const MuonBatch& batch : round.batches) {
    const TensorView flat = elements_of(assembled_, acc_, batch.offset, batch.count * batch.rows * batch.columns);
    ops::newton_schulz(ctx, {flat.reshaped({batch.count, batch.rows, batch.columns}), products});
  }
  for (const MuonReceive& copy : round.received)
    ops::cast(ctx, {elements_of(assembled_, acc_, copy.assembled_offset, copy.num_elements),
                    elements_of(received_, acc_, copy.message_offset, copy.num_elements)});
  group_.all_to_all_v(received, round.receive_counts, message, round.send_counts, ctx.stream).wait();
  for (const MuonSend& piece : round.sent) apply(slice_of(piece), message_of(piece));
}

}  // namespace lamina
