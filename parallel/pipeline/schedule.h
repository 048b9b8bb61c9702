// Pipeline schedules as data: which rank runs which chunk of which micro-batch, in which order. Pure functions.
//
// A chunk is a contiguous range of layers; chunk c lives on pipeline rank c mod P (the loop placement of interleaved
// schedules), so a rank owns V = C / P chunks ("virtual stages"). Nothing here knows tensors, clocks or messages.
//
//   gpipe             all forwards, then all backwards (arXiv 1811.06965); any V
//   1f1b              one forward, one backward after the warm-up (arXiv 1806.03377, PipeDream-Flush); V = 1 only
//   interleaved_1f1b  the same over V chunks per rank (arXiv 2104.04473); with V = 1 it is 1f1b
//   zero_bubble       interleaved_1f1b with the backward split in input and weight gradients, the latter filling the
//                     bubble (arXiv 2401.10241; with V = 1 it is that paper's ZB-H1). Chosen over the V-shaped placement,
//                     whose largest hop carries twice the block summaries (2 P - 2 against P - 1 with a block per chunk), and
//                     over ZB-H2, which has no bubble but twice the activations.
//
// With equal chunks, hops that cost nothing and W = I = F (B = I + W) no order of these dependencies is faster, in chunk
// times and for M micro-batches on P ranks:
//   gpipe, 1f1b, interleaved_1f1b   max(3 (M V + P - 1), 3 (M + C - 1)) for every M
//   zero_bubble                     3 M V + P - 1 for M >= P; for fewer it is found by search and never behind 1F1B
// An order that leaves no gap with equal costs leaves no time for slow chunks and hops either: zero_bubble is made for the
// costs that make_schedule() is given, and with these simulate() never finds it slower than interleaved_1f1b (by more than a
// millionth). The others don't look at costs.
// Micro-batches in flight on a rank (started forwards whose B or W has not ended), at most:
//   gpipe                           M V
//   1f1b                            min(M, P - rank)
//   interleaved_1f1b                min(M V, 2 (P - rank - 1) + (V - 1) G + 1), G = P when M < P or a multiple of P;
//                                   otherwise they go in floor(M / P) even groups, G is the largest, less than 2 P
//   zero_bubble                     on every rank no more than interleaved_1f1b has on rank 0: the last ranks keep their
//                                   weight gradients for the end, which is what fills the bubble
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "configs/schema/config.h"

namespace lamina::pipeline {

enum class ActionKind : uint8_t {
  forward,          // F
  backward,         // B: input and weight gradients
  backward_input,   // I
  backward_weight,  // W
};

struct Action {
  int chunk = 0;
  ActionKind kind = ActionKind::forward;
  int microbatch = 0;
  auto operator<=>(const Action&) const = default;  // NOLINT(modernize-use-nullptr): misread by clang-tidy 14
};
std::string to_string(const Action& action);  // "2F0": chunk 2, forward, micro-batch 0

struct ChunkCosts;  // simulate.h

using Schedule = std::vector<std::vector<Action>>;  // [pp_rank][time]

// num_chunks is a multiple of num_ranks; any num_microbatches >= 1. Every chunk meets its micro-batches in ascending order in
// each kind of action, so the order in which gradients are summed is the same for every schedule. Throws Error for 1f1b with
// several chunks per rank. The result passes validate().
// `costs`, equal ones without hops where it is null: only their proportions count, to 2^-24 of the mean action, so that ranks
// whose costs differ in the last bit make the same schedule.
Schedule make_schedule(ScheduleName name, int num_ranks, int num_chunks, int num_microbatches,
                       const ChunkCosts* costs = nullptr);
// Forwards only, for evaluation.
Schedule forward_schedule(int num_ranks, int num_chunks, int num_microbatches);

// Throws Error when a rank's list would wait for ever, when work is missing, double, on the wrong rank, or in an order that the
// dependencies forbid, or when micro-batches don't ascend in each kind of action of a chunk. The message ends with the grid,
// the fault marked; with 16 ranks or 40 slots and more only its neighbourhood: 4 ranks and 8 slots on each side. What is
// missing is shown where it could stand. A backward is B or I and W. `forward_only`: no backward is expected.
//   F(c, m) needs F(c - 1, m);  B or I(c, m) needs F(c, m) and B or I(c + 1, m);  W(c, m) needs I(c, m)
void validate(const Schedule& schedule, int num_chunks, int num_microbatches, bool forward_only = false);

// A line per rank, a column per time slot of unequal lists set side by side in dependency order (an idle slot is blank).
// `marked`, when given, is set in brackets: [2B0]. Of actions that are there twice it is the one at that address, all if none
// is. What would wait for ever comes after everything else.
std::string to_grid(const Schedule& schedule, const Action* marked = nullptr);

// What a rank does, messages included. Receives are posted one compute action before they are needed (the first ones at the
// start), sends are started right after the action that makes them. Chunk c's neighbours are on other ranks unless P = 1,
// where no message is needed. Every receive of a chunk and direction is posted in the order of the sends.
enum class StepKind : uint8_t {
  compute,
  receive_forward,   // post: the hidden stream and summaries of the hop into `chunk`
  send_forward,      // those of the hop out of `chunk`
  receive_backward,  // post: their gradients, coming back on the hop out of `chunk`
  send_backward,     // those of the hop into `chunk`
};
struct Step {
  StepKind kind = StepKind::compute;
  Action action;  // compute: what to run; otherwise chunk and microbatch, with kind forward or backward
  auto operator<=>(const Step&) const = default;  // NOLINT(modernize-use-nullptr): the same
};
std::string to_string(const Step& step);         // "2F0", "recv 2F0", "send 2F0", "recv 2B0", "send 2B0"
using Program = std::vector<std::vector<Step>>;  // [pp_rank]
Program lower(const Schedule& schedule, int num_chunks);

// Checks a lowered program on its own: its compute steps are a valid schedule (forwards only when there is no backward),
// every receive has its send with the same number and order of messages between two ranks, is posted before it is needed, and
// no rank waits for ever when waits happen at the compute step that needs the data. Throws Error as validate() does; the grid
// shows the compute steps.
void validate(const Program& program, int num_chunks);

}  // namespace lamina::pipeline
