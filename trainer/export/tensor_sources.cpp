#include "trainer/export/tensor_sources.h"

#include <charconv>
#include <optional>
#include <string_view>

#include "core/base/error.h"

namespace lamina {
namespace {

// What follows `prefix` up to the next point as a number, and what follows that point.
struct Numbered {
  int64_t index = 0;
  std::string rest;
};
std::optional<Numbered> after(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  Numbered found;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), found.index);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return std::nullopt;
  found.rest = std::string(name.substr(static_cast<size_t>(end - name.data()) + 1));
  return found;
}

// `shape` is that of one expert's matrix.
TensorSource stacked_expert(const std::string& layer, const Numbered& expert, const Shape& shape, int64_t num_experts) {
  const int64_t rows = shape[0], columns = shape[1];
  const std::string experts = layer + "mlp.experts.";
  if (expert.rest == "w2.weight")
    return {experts + "down_proj", {num_experts, rows, columns}, expert.index * rows * columns};
  const int64_t second = expert.rest == "w3.weight" ? 1 : 0;  // up, after gate
  return {experts + "gate_up_proj", {num_experts, 2 * rows, columns}, (2 * expert.index + second) * rows * columns};
}

std::optional<TensorSource> other_name(const std::string& layer, const std::string& name, const Shape& shape,
                                       const ModelConfig& model) {
  if (const auto expert = after(name, "block_sparse_moe.experts."))
    return stacked_expert(layer, *expert, shape, model.num_experts);
  const auto moved = [&](std::string_view from, std::string_view to) -> std::optional<TensorSource> {
    if (!name.starts_with(from)) return std::nullopt;
    return TensorSource{layer + std::string(to) + name.substr(from.size()), shape, 0};
  };
  if (auto found = moved("block_sparse_moe.", "mlp.")) return found;
  if (auto found = moved("mlp.", "block_sparse_moe.")) return found;
  for (const char* part : {"f_a_proj.", "f_b_proj.", "dt_bias", "A_log"})
    if (auto found = moved(std::string("self_attn.") + part, std::string("self_attn.forget_gate.") + part))
      return found;
  constexpr std::string_view convolutions = "qkv";
  for (size_t i = 0; i < convolutions.size(); ++i)
    if (name == fmt::format("self_attn.{}_conv1d.weight", convolutions[i]))
      return TensorSource{layer + "self_attn.conv1d.weight",
                          {3 * shape[0], shape[1], shape[2]},
                          static_cast<int64_t>(i) * shape.num_elements()};
  return std::nullopt;
}

}  // namespace

std::vector<TensorSource> sources_of(const std::string& name, const Shape& shape, const ModelConfig& model) {
  std::vector<TensorSource> sources = {{name, shape, 0}};
  if (const auto in_layer = after(name, "model.layers."))
    if (auto other = other_name(fmt::format("model.layers.{}.", in_layer->index), in_layer->rest, shape, model))
      sources.push_back(std::move(*other));
  return sources;
}

}  // namespace lamina
