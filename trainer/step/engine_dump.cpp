#include "trainer/step/engine_dump.h"

#include <vector>

#include "configs/schema/decode.h"
#include "core/ops/elementwise/elementwise.h"

namespace lamina {

EngineDump::EngineDump(const Config& config, Engine& engine, MemoryLedger* ledger, const std::filesystem::path& path,
                       int64_t step, std::span<int32_t> tokens, std::span<int32_t> targets)
    : config_(config), engine_(engine), ledger_(ledger), dump_(path, to_yaml(config), step, engine.world()) {
  const int64_t count = static_cast<int64_t>(tokens.size()), begin = engine_.place().dp_rank * count;
  const Shape shape{engine_.batch().global_batch_size, engine_.batch().seq_len};
  std::vector<TensorPiece> sequences = {
      {"tokens", shape, begin, begin + count, {tokens.data(), DType::i32, {count}}},
      {"targets", shape, begin, begin + count, {targets.data(), DType::i32, {count}}}};
  if (engine_.place().pp_rank > 0) sequences.clear();  // all pipeline ranks have the same ones
  dump_.add(sequences);
  add_values("parameters", false);
}

// Adds group/<name> from this rank's slices: the parameters as the forward pass uses them, or their gradients.
void EngineDump::add_values(const std::string& group, bool gradients) {
  std::vector<TensorPiece> pieces;
  std::vector<Buffer> widened;  // bf16 values as fp32
  for (const OwnedSlice& slice : engine_.optimizer().owned()) {
    const auto& spec = engine_.parameters().specs()[static_cast<size_t>(slice.parameter)];
    if (!engine_.parameters().is_primary(slice.parameter)) continue;
    TensorView data = gradients ? slice.gradient : slice.value;
    if (data.dtype == DType::bf16) {
      widened.emplace_back(data.num_elements() * size_of(DType::f32), data.device, ledger_, "dump");
      const TensorView wide(widened.back().data(), DType::f32, {data.num_elements()}, data.device);
      ops::cast(engine_.context(), {data, wide});
      data = wide;
    }
    pieces.push_back({group + "/" + spec.name, spec.shape, slice.begin, slice.end, data});
  }
  engine_.context().stream.synchronize();
  dump_.add(pieces);
}

void EngineDump::add_gradients(double loss, double aux_loss, std::span<double> token_losses) {
  add_values("gradients", true);
  const int64_t count = static_cast<int64_t>(token_losses.size()), begin = engine_.place().dp_rank * count;
  const Shape shape{engine_.batch().global_batch_size, engine_.batch().seq_len};
  std::vector<float> narrow(token_losses.begin(), token_losses.end());
  const bool wide = config_.train.precision == Precision::fp64;
  const TensorView data =
      wide ? TensorView(token_losses.data(), DType::f64, {count}) : TensorView(narrow.data(), DType::f32, {count});
  std::vector<TensorPiece> losses = {{"token_loss", shape, begin, begin + count, data}};
  if (!engine_.stage().has_last_chunk()) losses.clear();
  dump_.add(losses);
  dump_.add_scalar("loss", loss, data.dtype);
  dump_.add_scalar("aux_loss", aux_loss, data.dtype);
}

void EngineDump::finish() {
  add_values("parameters_after", false);
  dump_.finish();
}

}  // namespace lamina
