#include "model/weight_gradients.h"

#include "core/ops/matmul/matmul.h"

namespace lamina::model {

void WeightGradients::begin(bool deferred) {
  LAMINA_CHECK(products_.empty(), "{} weight gradients of the pass before were not computed", products_.size());
  deferred_ = deferred;
  if (deferred) arena_.reset();
}

void WeightGradients::add(ops::OpContext& ctx, const TensorView& dy, const TensorView& x, const TensorView& dw) {
  if (deferred_)
    products_.push_back({dy, x, {dw}, {}, {}});
  else
    ops::linear_weight_gradient(ctx, dy, x, dw);
}

void WeightGradients::add_grouped(ops::OpContext& ctx, const TensorView& dy, const TensorView& x,
                                  const ops::ExpertRows& rows, std::span<const TensorView> dweights) {
  if (deferred_)
    products_.push_back(
        {dy, x, {dweights.begin(), dweights.end()}, rows.offsets, {rows.host.begin(), rows.host.end()}});
  else
    ops::grouped_linear_weight_gradient(ctx, {dy, x, rows, dweights});
}

void WeightGradients::run(ops::OpContext& ctx) {
  LAMINA_CHECK(deferred_);
  for (const Product& product : products_) {
    if (product.offsets.empty())
      ops::linear_weight_gradient(ctx, product.dy, product.x, product.dweights.front());
    else
      ops::grouped_linear_weight_gradient(
          ctx, {product.dy, product.x, {product.offsets, product.host_offsets}, product.dweights});
  }
  products_.clear();
  arena_.reset();
}

}  // namespace lamina::model
