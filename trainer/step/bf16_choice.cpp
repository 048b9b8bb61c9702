#include "trainer/step/bf16_choice.h"

#include "core/base/error.h"
#include "parallel/comm/agreement.h"

namespace lamina {
namespace {

constexpr const char* products_key = "bf16_products";
constexpr const char* processor_key = "processor";

bool has_choice(const Config& config) {
  return config.run.device == "cpu" && config.train.precision == Precision::bf16;
}

std::string stored(const CheckpointInfo* info, const char* key) {
  if (info == nullptr) return "";
  const auto found = info->extra.find(key);
  return found == info->extra.end() ? "" : found->second;
}

// The first rank without native products and its processor; empty: all have them. The same text on all ranks.
std::string rank_without(comm::Communicator& comm) {
  const std::string mine = ops::has_native_bf16_products()
                               ? ""
                               : fmt::format("rank {} has none ({})", comm.rank(), ops::product_processor());
  std::string first;
  for (const std::string& text : gather_text(comm, mine))
    if (first.empty()) first = text;
  return broadcast_text(comm, first);
}

struct Choice {
  ops::Bf16Products products;
  std::string why;
};

// Rank 0's, with `auto` and native products everywhere.
Choice choose_automatically(const CheckpointInfo* saved) {
  const std::string before = stored(saved, products_key), processor = ops::product_processor();
  if (!before.empty() && stored(saved, processor_key) == processor)
    return {ops::parse_bf16_products(before), "as in the checkpoint"};
  Choice choice{ops::quicker_products(ops::bf16_timings()), ops::describe(ops::bf16_timings())};
  if (!before.empty())
    choice.why += fmt::format("; the checkpoint's choice, {}, was for {}", before, stored(saved, processor_key));
  return choice;
}

Choice choose(const Config& config, comm::Communicator& comm, const CheckpointInfo* saved) {
  const std::string lacking = rank_without(comm);
  const Bf16ProductsChoice asked = config.train.bf16_products;
  if (asked == Bf16ProductsChoice::native) {
    if (!lacking.empty())
      throw Error("train.bf16_products: found native, expected auto or fp32: {} of what oneDNN needs, avx512_core_bf16",
                  lacking);
    return {ops::Bf16Products(), "train.bf16_products"};
  }
  if (asked == Bf16ProductsChoice::fp32) return {ops::Bf16Products::through_fp32(), "train.bf16_products"};
  if (!lacking.empty()) return {ops::Bf16Products::through_fp32(), "no avx512_core_bf16: " + lacking};
  Choice choice;
  run_and_agree(comm, [&] {
    if (comm.rank() == 0) choice = choose_automatically(saved);
  });
  choice.products = ops::parse_bf16_products(broadcast_text(comm, ops::to_text(choice.products)));
  return choice;
}

}  // namespace

std::string choose_bf16_products(Engine& engine, const CheckpointInfo* saved) {
  if (!has_choice(engine.config())) return "";
  const Choice choice = choose(engine.config(), engine.world(), saved);
  engine.context().bf16_products = choice.products;
  const std::string native = ops::to_text(choice.products), before = stored(saved, products_key);
  std::string line = choice.products == ops::Bf16Products()                 ? "native"
                     : choice.products == ops::Bf16Products::through_fp32() ? "through fp32"
                                                                            : native + " native, the rest through fp32";
  line = fmt::format("products of bf16 matrices: {} ({})", line, choice.why);
  if (!before.empty() && before != native)
    line += fmt::format(
        "; the checkpoint was made with native: {}: these are not the same bits as of a run that never "
        "stopped",
        before);
  return line;
}

void store_bf16_products(CheckpointInfo& info, const Engine& engine) {
  if (!has_choice(engine.config())) return;
  info.extra[products_key] = ops::to_text(engine.context().bf16_products);
  info.extra[processor_key] = ops::product_processor();
}

Precision quicker_precision() {
  const ops::Bf16Products products = ops::quicker_products(ops::bf16_timings());
  const bool is_native =
      products.is_native(ops::ProductClass::dense) && products.is_native(ops::ProductClass::weight_gradient);
  return is_native ? Precision::bf16 : Precision::fp32;
}

}  // namespace lamina
