#include "core/ops/router/router.h"

#include "core/ops/gpu/register.h"
#include "core/ops/router/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_whole(const TensorView& v, std::string_view what, DType dtype, const Shape& shape) {
  expect(v, what, dtype, shape);
  expect_contiguous(v, what);
}

// A matrix of scores, whose dtype is its own accumulation dtype.
void expect_scores(const TensorView& scores, const TensorView& chosen, std::string_view what) {
  LAMINA_CHECK(scores.rank() == 2 && chosen.rank() == 2, "{} is {}, chosen {}", what, scores.to_string(),
               chosen.to_string());
  expect_whole(scores, what, accumulation_dtype(scores.dtype), scores.shape);
  expect_whole(chosen, "chosen", DType::i32, {scores.size(0), chosen.size(1)});
  LAMINA_CHECK(chosen.size(1) >= 1 && chosen.size(1) <= scores.size(1), "{} of {} experts", chosen.size(1),
               scores.size(1));
}

void expect_fractions(const TensorView& fractions, const TensorView& scores) {
  LAMINA_CHECK(fractions.rank() == 2, "fractions is {}", fractions.to_string());
  expect_whole(fractions, "fractions", scores.dtype, {fractions.size(0), scores.size(1)});
  LAMINA_CHECK(fractions.size(0) > 0 && scores.size(0) % fractions.size(0) == 0 && scores.size(0) > 0,
               "{} tokens in {} sequences", scores.size(0), fractions.size(0));
}

}  // namespace

void router_forward(OpContext& ctx, const RouterForward& args) {
  static constexpr Implementation<RouterForward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(router_forward){"cpu", cpu::router_forward_refuses, cpu::router_forward},
      {"ref", nullptr, ref::router_forward}};
  expect_scores(args.scores, args.chosen, "scores");
  const DType acc = args.scores.dtype;
  expect_whole(args.logits, "logits", acc, args.scores.shape);
  expect(args.bias, "bias", acc, {args.scores.size(1)});
  expect_whole(args.weights, "weights", acc, args.chosen.shape);
  LAMINA_CHECK(args.fractions.empty() == args.balance.empty(), "fractions and balance go together");
  if (args.fractions) {
    expect_fractions(args.fractions, args.scores);
    expect_whole(args.balance, "balance", acc, {args.fractions.size(0)});
  }
  dispatch<RouterForward>(ctx, "router_forward", list, args);
}

void router_backward(OpContext& ctx, const RouterBackward& args) {
  static constexpr Implementation<RouterBackward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(router_backward){"cpu", cpu::router_backward_refuses, cpu::router_backward},
      {"ref", nullptr, ref::router_backward}};
  expect_scores(args.scores, args.chosen, "scores");
  expect_whole(args.d_weights, "d_weights", args.scores.dtype, args.chosen.shape);
  expect_compute_dtype(args.d_logits, "d_logits");
  LAMINA_CHECK(accumulation_dtype(args.d_logits.dtype) == args.scores.dtype, "d_logits is {}, scores {}",
               args.d_logits.to_string(), args.scores.to_string());
  expect_whole(args.d_logits, "d_logits", args.d_logits.dtype, args.scores.shape);
  if (args.fractions) expect_fractions(args.fractions, args.scores);
  dispatch<RouterBackward>(ctx, "router_backward", list, args);
}

void router_observe(OpContext& ctx, const RouterObserve& args) {
  static constexpr Implementation<RouterObserve> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(router_observe){"ref", nullptr, ref::router_observe}};
  expect_scores(args.scores, args.chosen, "scores");
  expect_whole(args.counts, "counts", DType::i32, {args.scores.size(1)});
  if (args.entropy) expect_whole(args.entropy, "entropy", DType::f64, {1});
  if (is_readable(args.chosen)) {
    for (int64_t n = 0; n < args.chosen.num_elements(); ++n) {
      const int32_t expert = args.chosen.as<int32_t>()[n];
      LAMINA_CHECK(expert >= 0 && expert < args.scores.size(1), "chosen is {} at {}, expected 0 to {}", expert, n,
                   args.scores.size(1) - 1);
    }
  }
  dispatch<RouterObserve>(ctx, "router_observe", list, args);
}

}  // namespace lamina::ops
