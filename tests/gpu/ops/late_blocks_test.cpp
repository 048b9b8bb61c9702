// Blocks that start late find little to do. Where a kernel's blocks fill a multiprocessor each, some wait for others to end while NCCL
// holds a few; with a share of their own they would double the kernel's time.
#include <gtest/gtest.h>
#include <lamina_emulated_kernel.h>

#include "core/ops/attn_res/attn_res.h"
#include "tests/support/op_test.h"

namespace lamina::ops {
namespace {

using test::Tensor;

TEST(LateBlocks, OfAttnResReadsHaveNoShareOfTheirOwn) {
  test::TestContext context;
  constexpr int64_t tokens = 300, dim = 64, num_sources = 2, num_queries = 1;  // 132 multiprocessors
  std::vector<Tensor> sources, dsources;
  std::vector<TensorView> source_views, dsource_views;
  for (uint64_t j = 0; j < num_sources; ++j) {
    sources.push_back(test::normal(DType::bf16, {tokens, dim}, j));
    dsources.push_back(test::zeros(DType::f32, {tokens, dim}));
    source_views.push_back(sources.back());
    dsource_views.push_back(dsources.back());
  }
  const Tensor query = test::normal(DType::f32, {dim}, 7), norm = test::normal(DType::f32, {dim}, 8),
               dquery = test::zeros(DType::f32, {dim}), dnorm = test::zeros(DType::f32, {dim}),
               mean = test::zeros(DType::bf16, {tokens, dim}), rstd = test::zeros(DType::f32, {num_sources, tokens}),
               logit = test::zeros(DType::f32, {num_queries, num_sources, tokens}),
               lse = test::zeros(DType::f32, {num_queries, tokens}), dh_dot_h = test::zeros(DType::f32, {tokens}),
               dh = test::normal(DType::bf16, {tokens, dim}, 9);
  const AttnResQuery queries[] = {{query, norm}};
  const AttnResQueryGradient dqueries[] = {{dquery, dnorm}};
  const TensorView means[] = {mean}, dhs[] = {dh}, lse_total[] = {lse->select(0, 0)}, dots[] = {dh_dot_h};
  AttnResPhase1Forward forward{};
  forward.sources = source_views;
  forward.queries = queries;
  forward.eps = 1e-5;
  forward.mean = means;
  forward.rstd = rstd, forward.logit = logit, forward.lse = lse;
  attn_res_phase1_forward(context.fastest, forward);
  // One to learn that there is nothing left, three for each token.
  const uint64_t after_forward = lamina_emulator::barriers_of_late_block("phase1_forward_tensor_kernel");
  EXPECT_EQ(after_forward, 1u);

  const std::vector<GradMode> modes(num_sources, GradMode::accumulate);
  AttnResPhase1Backward backward{};
  backward.sources = source_views;
  backward.queries = queries;
  backward.rstd = rstd, backward.logit = logit;
  backward.lse_total = lse_total;
  backward.dh_dot_h = dots;
  backward.dh = dhs;
  backward.dsources = dsource_views;
  backward.dsource_modes = modes;
  backward.dqueries = dqueries;
  attn_res_phase1_backward(context.fastest, backward);
  EXPECT_EQ(lamina_emulator::barriers_of_late_block("phase1_backward_tensor_kernel"), 1u);
}

}  // namespace
}  // namespace lamina::ops
