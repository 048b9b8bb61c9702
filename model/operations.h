// The operations of a training step on a GPU, one by one as they are dispatched (core/ops): what each computes, moves and launches with
// the kernels for GPUs. What plan.h predicts times from.
//   FLOPs     2 per multiply-add, those included that a kernel computes again:
//               attention      heads T (d_qk + d_v) per token; backward heads T (4 d_qk + 3 d_v): two kernels make the scores again
//               KDA            heads (6 K^2 + 3 C K + C^2) per token, C = 64; backward three times that: it makes the states again
//               depth read     4 d per token, query and source, the open sum among them; backward twice that
//   bytes     each operand once, and what goes through memory from one kernel of an operation to the next; vectors and numbers that
//             there are one of per row and head are not counted
//   launches  kernels and fills; a call of cuBLAS is one
// Waits of the host are not counted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/cost_model.h"

namespace lamina::model {

struct Work {
  double flops = 0, bytes = 0, launches = 0;
  Work& operator+=(const Work& other);
  bool operator==(const Work&) const = default;
};
Work operator*(double count, const Work& work);

// What an operation's FLOPs run on, each with a rate of its own: cuBLAS; the experts' grouped products; the kernels of attention and KDA.
enum class KernelClass : uint8_t { products, experts, attention, kda };

// `again`: made once more in the backward pass because recomputation did not keep it. `update`: once per step.
enum class Phase : uint8_t { forward, again, backward, update };

struct Operation {
  std::string name;     // "MLA: kv_b"
  const char* op = "";  // as dispatched: "matmul"
  Phase phase = Phase::forward;
  KernelClass kernels = KernelClass::products;
  Work work;         // of one call
  double calls = 1;  // of those that are alike
};

// One micro-batch in one chunk, whose experts are evenly loaded.
struct ChunkPass {
  SublayerRange range;
  bool is_first = true;  // chunk
  double tokens = 1;
  int64_t seq_len = 1;
  ElementSizes sizes;
  Recompute recompute = Recompute::none;
  int expert_ranks = 1;
  bool defers_weights = false;         // zero_bubble
  int num_received = 0, num_sent = 0;  // summaries on the hops into and out of the chunk
};
// Forward, then backward. The residual scheme must not be mhc, which no GPU computes.
std::vector<Operation> chunk_operations(const ModelConfig& config, const ChunkPass& pass);

// The end of a step on one of `num_ranks` ranks: its even share of the gradient's norm and of the optimizers' work in the whole job.
std::vector<Operation> update_operations(const Config& config, int num_ranks);

}  // namespace lamina::model
