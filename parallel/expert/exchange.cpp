#include "parallel/expert/exchange.h"

#include <utility>

#include "core/ops/experts/experts.h"
#include "core/ops/validate.h"
#include "core/tensor/host_copy.h"
#include "parallel/comm/traced.h"

namespace lamina::expert {

namespace {

// Operands have no const element type; those made here are only read.
TensorView read_only(const std::vector<int32_t>& values, const Shape& shape) {
  return {const_cast<int32_t*>(values.data()), DType::i32, shape};
}

std::vector<int64_t> scaled(const std::vector<int64_t>& rows, int64_t row_size) {
  std::vector<int64_t> counts;
  for (int64_t count : rows) counts.push_back(count * row_size);
  return counts;
}

int64_t num_tokens(const Exchange::Route& route) {
  return static_cast<int64_t>(route.plan.position.size() / route.plan.rows.size());
}

void expect_weights(const TensorView& weights, const char* what, DType dtype, const Shape& shape) {
  LAMINA_CHECK(dtype == DType::f32 || dtype == DType::f64, "{} is {}, expected fp32 or fp64", what, name_of(dtype));
  ops::expect(weights, what, dtype, shape);
  ops::expect_contiguous(weights, what);
}

}  // namespace

SendPlan make_send_plan(std::span<const int32_t> chosen, int64_t experts_per_token, int64_t num_experts,
                        int num_ranks) {
  LAMINA_CHECK(num_ranks >= 1 && num_experts >= 1 && num_experts % num_ranks == 0, "{} experts on {} ranks",
               num_experts, num_ranks);
  const auto per_token = static_cast<size_t>(experts_per_token);
  LAMINA_CHECK(experts_per_token >= 1 && chosen.size() % per_token == 0, "{} choices of {} per token", chosen.size(),
               experts_per_token);
  const int64_t experts_per_rank = num_experts / num_ranks;
  const auto ranks = static_cast<size_t>(num_ranks);
  const size_t tokens = chosen.size() / per_token;
  SendPlan plan{std::vector<int64_t>(ranks, 0), {}, std::vector<int32_t>(tokens * ranks, -1)};
  for (size_t c = 0; c < chosen.size(); ++c) {
    LAMINA_CHECK(chosen[c] >= 0 && chosen[c] < num_experts, "choice {} of token {} is expert {} of {}", c % per_token,
                 c / per_token, chosen[c], num_experts);
    const auto rank = static_cast<size_t>(chosen[c] / experts_per_rank);
    int32_t& position = plan.position[c / per_token * ranks + rank];
    if (position < 0) ++plan.rows[rank];
    position = 0;
  }
  std::vector<size_t> next(ranks, 0);
  for (size_t r = 1; r < ranks; ++r) next[r] = next[r - 1] + static_cast<size_t>(plan.rows[r - 1]);
  plan.token.resize(next.back() + static_cast<size_t>(plan.rows.back()));
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < ranks; ++r) {
      int32_t& position = plan.position[t * ranks + r];
      if (position < 0) continue;
      position = static_cast<int32_t>(next[r]);
      plan.token[next[r]++] = static_cast<int32_t>(t);
    }
  }
  return plan;
}

Exchange::Exchange(comm::Communicator& group, int64_t num_experts) : group_(group), num_experts_(num_experts) {
  LAMINA_CHECK(num_experts >= 1 && num_experts % group.size() == 0, "{} experts on {} ranks", num_experts,
               group.size());
}

Exchange::Route Exchange::route(const TensorView& chosen, Arena& arena, Stream& stream) {
  LAMINA_CHECK(chosen.rank() == 2, "chosen is {}, expected [tokens, k]", chosen.to_string());
  ops::expect(chosen, "chosen", DType::i32, chosen.shape);
  ops::expect_contiguous(chosen, "chosen");
  Route route;
  route.experts_per_token = chosen.size(1);
  const HostCopy choices(chosen, stream);
  route.plan = make_send_plan({choices->as<int32_t>(), static_cast<size_t>(chosen.num_elements())},
                              route.experts_per_token, num_experts_, num_ranks());
  route.token = arena.take(DType::i32, {route.num_sent()});
  route.position = arena.take(DType::i32, {num_tokens(route), num_ranks()});
  upload(route.plan.token.data(), route.token, stream);
  upload(route.plan.position.data(), route.position, stream);
  std::vector<int32_t> sent, received(route.plan.rows.size());
  for (int64_t rows : route.plan.rows) sent.push_back(static_cast<int32_t>(rows));
  const Shape shape{num_ranks()};
  group_.all_to_all(read_only(sent, shape), {received.data(), DType::i32, shape}, stream).wait();
  for (int32_t rows : received) {
    route.received.push_back(rows);
    route.num_received += rows;
  }
  return route;
}

void Exchange::send_choices(ops::OpContext& ctx, const Route& route, const TensorView& chosen,
                            const TensorView& weights, const TensorView& local_chosen,
                            const TensorView& local_weights) {
  const int64_t k = route.experts_per_token;
  const Shape token_shape{num_tokens(route), k}, local_shape{route.num_received, k};
  ops::expect(chosen, "chosen", DType::i32, token_shape);
  ops::expect_contiguous(chosen, "chosen");
  expect_weights(weights, "weights", weights.dtype, token_shape);
  ops::expect(local_chosen, "local_chosen", DType::i32, local_shape);
  ops::expect_contiguous(local_chosen, "local_chosen");
  expect_weights(local_weights, "local_weights", weights.dtype, local_shape);

  const ArenaScope scope(ctx.scratch);
  const TensorView sent_chosen = ctx.scratch.take(DType::i32, {route.num_sent(), k});
  const TensorView sent_weights = ctx.scratch.take(weights.dtype, {route.num_sent(), k});
  const HostCopy all_chosen(chosen, ctx.stream), all_weights(weights, ctx.stream);
  HostRoom packed_chosen(sent_chosen, ctx.stream), packed_weights(sent_weights, ctx.stream);
  const auto pack = [&]<class T>(T) {
    size_t row = 0;
    for (int rank = 0; rank < num_ranks(); ++rank) {
      const int64_t first = rank * experts_per_rank();
      for (int64_t i = 0; i < route.plan.rows[static_cast<size_t>(rank)]; ++i, ++row) {
        for (int64_t j = 0; j < k; ++j) {
          const int64_t from = route.plan.token[row] * k + j, to = static_cast<int64_t>(row) * k + j;
          const int64_t expert = all_chosen->as<int32_t>()[from] - first;
          const bool here = expert >= 0 && expert < experts_per_rank();
          packed_chosen->as<int32_t>()[to] = here ? static_cast<int32_t>(expert) : -1;
          packed_weights->as<T>()[to] = here ? all_weights->as<T>()[from] : T(0);
        }
      }
    }
  };
  weights.dtype == DType::f64 ? pack(double()) : pack(float());
  packed_chosen.upload();
  packed_weights.upload();
  const std::vector<int64_t> sent = scaled(route.plan.rows, k), received = scaled(route.received, k);
  comm::Request first = group_.all_to_all_v(sent_chosen, sent, local_chosen, received, ctx.stream);
  group_.all_to_all_v(sent_weights, sent, local_weights, received, ctx.stream).wait();
  first.wait();
}

comm::Request Exchange::dispatch(ops::OpContext& ctx, const Route& route, const TensorView& x, const TensorView& packed,
                                 const TensorView& received) {
  LAMINA_CHECK(x.rank() == 2, "x is {}, expected [tokens, dim]", x.to_string());
  const int64_t dim = x.size(1);
  ops::expect_compute_dtype(x, "x");
  ops::expect_shape(x, "x", {num_tokens(route), dim});
  ops::expect(received, "received", x.dtype, {route.num_received, dim});
  ops::expect_contiguous(received, "received");
  if (num_ranks() == 1) {
    if (route.num_sent() > 0) ops::gather_rows(ctx, {x, route.token, received});
    return {};
  }
  ops::expect(packed, "packed", x.dtype, {route.num_sent(), dim});
  ops::expect_contiguous(packed, "packed");
  if (route.num_sent() > 0) ops::gather_rows(ctx, {x, route.token, packed});
  return send_rows("dispatch", packed, scaled(route.plan.rows, dim), received, scaled(route.received, dim), ctx.stream);
}

// sent, received: elements for and from each rank.
comm::Request Exchange::send_rows(const char* name, const TensorView& from, const std::vector<int64_t>& sent,
                                  const TensorView& to, const std::vector<int64_t>& received, Stream& stream) {
  const int64_t bytes = from.num_bytes() - sent[static_cast<size_t>(group_.rank())] * size_of(from.dtype);
  row_bytes_ += bytes;
  if (trace_ == nullptr) return group_.all_to_all_v(from, sent, to, received, stream);
  trace::Span span;
  span.track = trace::Track::experts;
  span.name = name;
  span.bytes = bytes;
  const int64_t id = trace_->open(span);
  return comm::traced(group_.all_to_all_v(from, sent, to, received, stream), *trace_, id);
}

comm::Request Exchange::give_back(ops::OpContext& ctx, const Route& route, const TensorView& rows,
                                  const TensorView& returned) {
  LAMINA_CHECK(rows.rank() == 2, "rows is {}, expected [num_received, dim]", rows.to_string());
  const int64_t dim = rows.size(1);
  ops::expect_compute_dtype(rows, "rows");
  ops::expect_shape(rows, "rows", {route.num_received, dim});
  ops::expect_contiguous(rows, "rows");
  ops::expect(returned, "returned", rows.dtype, {route.num_sent(), dim});
  ops::expect_contiguous(returned, "returned");
  if (num_ranks() == 1 && rows.data == returned.data) return {};
  return send_rows("return", rows, scaled(route.received, dim), returned, scaled(route.plan.rows, dim), ctx.stream);
}

void Exchange::add_returned(ops::OpContext& ctx, const Route& route, const TensorView& returned, const TensorView& y,
                            ops::GradMode mode) {
  LAMINA_CHECK(y.rank() == 2 && y.size(0) == num_tokens(route), "y is {}, expected {} tokens", y.to_string(),
               num_tokens(route));
  if (num_tokens(route) == 0) return;
  ops::combine_rows(ctx, {returned, route.position, y, mode});
}

void Exchange::give_back_weights(ops::OpContext& ctx, const Route& route, const TensorView& local_weights,
                                 const TensorView& chosen, const TensorView& weights) {
  const int64_t k = route.experts_per_token, tokens = num_tokens(route);
  expect_weights(local_weights, "local_weights", weights.dtype, {route.num_received, k});
  ops::expect(chosen, "chosen", DType::i32, {tokens, k});
  ops::expect_contiguous(chosen, "chosen");
  expect_weights(weights, "weights", weights.dtype, {tokens, k});

  const ArenaScope scope(ctx.scratch);
  const TensorView returned = ctx.scratch.take(weights.dtype, {route.num_sent(), k});
  group_.all_to_all_v(local_weights, scaled(route.received, k), returned, scaled(route.plan.rows, k), ctx.stream)
      .wait();
  const HostCopy all_chosen(chosen, ctx.stream), all_returned(returned, ctx.stream);
  HostRoom unpacked(weights, ctx.stream);
  const auto unpack = [&]<class T>(T) {
    for (int64_t c = 0; c < tokens * k; ++c) {
      const int64_t rank = all_chosen->as<int32_t>()[c] / experts_per_rank();
      const int64_t row = route.plan.position[static_cast<size_t>(c / k * num_ranks() + rank)];
      unpacked->as<T>()[c] = all_returned->as<T>()[row * k + c % k];
    }
  };
  weights.dtype == DType::f64 ? unpack(double()) : unpack(float());
  unpacked.upload();
}

int64_t Exchange::take_row_bytes() {
  return std::exchange(row_bytes_, 0);
}

}  // namespace lamina::expert
