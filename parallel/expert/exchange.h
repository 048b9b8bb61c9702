// Expert parallelism: tokens travel to the ranks that hold their experts and back (DeepSeek-V3, arXiv 2412.19437, section 3.2;
// dropless). Expert e lives on rank e / (experts / ranks) of the group. A token's row is sent once to each *distinct* rank that
// holds some of its experts, with the list of these; that rank adds its experts' outputs before one row travels back.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/trace.h"
#include "core/ops/op.h"
#include "parallel/comm/communicator.h"

namespace lamina::expert {

// Which tokens go to which rank. Pure.
struct SendPlan {
  std::vector<int64_t> rows;      // [ranks]: distinct tokens for each
  std::vector<int32_t> token;     // [num_rows()], by destination, then by token
  std::vector<int32_t> position;  // [tokens, ranks]: the row in that order, or -1
  int64_t num_rows() const { return static_cast<int64_t>(token.size()); }
};
SendPlan make_send_plan(std::span<const int32_t> chosen, int64_t experts_per_token, int64_t num_experts, int num_ranks);

class Exchange {
 public:
  // `group` must outlive it. num_experts is a multiple of its size.
  Exchange(comm::Communicator& group, int64_t num_experts);

  // Of one micro-batch in one layer; the same in forward and backward.
  struct Route {
    SendPlan plan;
    TensorView token, position;     // the plan's lists, where the rows are
    std::vector<int64_t> received;  // rows from each rank
    int64_t num_sent() const { return plan.num_rows(); }
    int64_t num_received = 0;
    int64_t experts_per_token = 0;
  };
  // Every call below is collective over the group. chosen [tokens, k] i32. The route's lists lie in `arena`.
  Route route(const TensorView& chosen, Arena& arena, Stream& stream);

  // Of each received row: its experts, counted from this rank's first one, -1 for those elsewhere, and their weights, 0 there.
  // chosen [tokens, k] i32, weights [tokens, k] acc -> local_chosen [num_received, k] i32, local_weights [num_received, k] acc.
  void send_choices(ops::OpContext& ctx, const Route& route, const TensorView& chosen, const TensorView& weights,
                    const TensorView& local_chosen, const TensorView& local_weights);

  // Rows to the experts: x [tokens, dim] -> received [num_received, dim]. `packed` [num_sent, dim] holds what is under way.
  // Returns at once; `packed` and `received` belong to the request until it is done. One rank alone doesn't use `packed`.
  comm::Request dispatch(ops::OpContext& ctx, const Route& route, const TensorView& x, const TensorView& packed,
                         const TensorView& received);
  // Rows back: rows [num_received, dim] -> returned [num_sent, dim]. On one rank alone they may be the same memory.
  comm::Request give_back(ops::OpContext& ctx, const Route& route, const TensorView& rows, const TensorView& returned);
  // y[t] = or += the sum of the token's returned rows, in rank order.
  void add_returned(ops::OpContext& ctx, const Route& route, const TensorView& returned, const TensorView& y,
                    ops::GradMode mode);
  // Gradients of the choices' weights: of the received rows [num_received, k] acc -> of the tokens [tokens, k] acc, overwritten.
  // chosen: the token's, as given to route().
  void give_back_weights(ops::OpContext& ctx, const Route& route, const TensorView& local_weights,
                         const TensorView& chosen, const TensorView& weights);

  int num_ranks() const { return group_.size(); }
  int64_t experts_per_rank() const { return num_experts_ / group_.size(); }
  int64_t first_expert() const { return group_.rank() * experts_per_rank(); }

  // Rows under way are recorded there. Null: nothing is.
  void set_trace(trace::Recorder* trace) { trace_ = trace; }

  // Bytes of rows sent to other ranks since the last call: dispatch() and give_back(), not the lists of experts.
  int64_t take_row_bytes();

 private:
  comm::Request send_rows(const char* name, const TensorView& from, const std::vector<int64_t>& sent,
                          const TensorView& to, const std::vector<int64_t>& received, Stream& stream);

  comm::Communicator& group_;
  int64_t num_experts_;
  int64_t row_bytes_ = 0;
  trace::Recorder* trace_ = nullptr;
};

}  // namespace lamina::expert
