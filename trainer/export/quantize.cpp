#include "trainer/export/quantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "core/base/error.h"
#include "model/update_rules.h"

namespace lamina {
namespace {

void quantize_group(std::span<double> group, double q_max) {
  double largest = 0;
  for (const double value : group) largest = std::max(largest, std::abs(value));
  const auto scale = static_cast<double>(static_cast<float>(largest / q_max));
  for (double& value : group) value = scale == 0 ? 0 : scale * std::clamp(std::nearbyint(value / scale), -q_max, q_max);
}

}  // namespace

bool is_quantized(const model::ParameterSpec& spec, const Quantization& how) {
  // The router, and the decay, the output gate and the write strength of Kimi Delta Attention: small, and read through exp or sigmoid.
  constexpr std::array<std::string_view, 6> gates = {".gate.weight",     ".f_a_proj.weight", ".f_b_proj.weight",
                                                     ".g_a_proj.weight", ".g_b_proj.weight", ".b_proj.weight"};
  if (spec.name.ends_with("_res_proj.weight")) return how.depth_queries;
  return spec.is_linear &&
         std::none_of(gates.begin(), gates.end(), [&](std::string_view gate) { return spec.name.ends_with(gate); });
}

std::vector<std::string> quantized_tensors(const ModelConfig& config, const Quantization& how) {
  std::vector<std::string> names;
  for (const model::ParameterSpec& spec : model::parameter_specs(config))
    if (is_quantized(spec, how)) names.push_back(spec.name);
  return names;
}

std::vector<std::string> quantized_kinds(const ModelConfig& config, const Quantization& how) {
  std::vector<std::string> kinds;
  for (const std::string& name : quantized_tensors(config, how)) {
    const std::string kind = model::family_of(name);
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
  }
  return kinds;
}

std::string describe(const Quantization& how) {
  return fmt::format("int{}, to nearest, a scale per {} input channels", how.bits, how.group_size);
}

void quantize_values(std::span<double> values, int64_t columns, const Quantization& how, const std::string& name) {
  LAMINA_CHECK((how.bits == 8 || how.bits == 4) && how.group_size > 0 && columns > 0, "{} bits, groups of {} of {}",
               how.bits, how.group_size, columns);
  if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); }))
    throw Error("{}: found a value that is not finite, which can't be quantized", name);
  const double q_max = (1 << (how.bits - 1)) - 1;
  const auto row = static_cast<size_t>(columns), most = static_cast<size_t>(how.group_size);
  for (size_t begin = 0; begin < values.size(); begin += row)
    for (size_t at = 0; at < row; at += most)
      quantize_group(values.subspan(begin + at, std::min(most, row - at)), q_max);
}

}  // namespace lamina
