// The zero-bubble schedule: every rank merges three fixed sequences (forwards, input gradients, weight gradients) as they
// become ready in simulated time with F = I = W = 1.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/base/error.h"
#include "parallel/pipeline/visit_order.h"

namespace lamina::pipeline {

namespace {

// When both a forward and an input gradient are ready. Weight gradients fill what is left.
enum class Preference { input_gradient, alternate };

// It never stalls when most_in_flight is more than (chunks_per_rank - 1) * the largest group. Suppose it did: every weight
// gradient is done, so what is in flight waits for an input gradient. Of the ranks with the fewest input gradients the last
// one lacks only its own forward for the next. That forward is at most (chunks_per_rank - 1) * group places ahead, so the
// rank is not full, and it waits for a forward of the rank before it, which has no more forwards and no fewer input
// gradients behind it and so is not full either, and so on down to the first forward of all, which waits for nothing.
class ZeroBubble {
 public:
  ZeroBubble(int num_ranks, int chunks_per_rank, const std::vector<int>& groups, int most_in_flight,
             Preference preference)
      : num_ranks_(num_ranks),
        num_chunks_(num_ranks * chunks_per_rank),
        most_in_flight_(most_in_flight),
        preference_(preference),
        forwards_(forward_order(groups, chunks_per_rank)),
        backwards_(backward_order(groups, chunks_per_rank)),
        ranks_(static_cast<size_t>(num_ranks)),
        schedule_(static_cast<size_t>(num_ranks)) {
    for (const int size : groups) num_microbatches_ += size;
    forward_end_.assign(static_cast<size_t>(num_chunks_) * static_cast<size_t>(num_microbatches_), never);
    backward_end_ = forward_end_;
  }

  // Returns the makespan.
  int run() {
    const size_t num_actions = 3 * forwards_.size();
    for (auto& actions : schedule_) actions.reserve(num_actions);
    int unfinished = num_ranks_, now = 0;
    for (; unfinished > 0; ++now) {
      bool started = false;
      for (int rank = 0; rank < num_ranks_; ++rank) {
        if (!start_one(rank, now)) continue;
        started = true;
        if (schedule_[static_cast<size_t>(rank)].size() == num_actions) --unfinished;
      }
      // Every action ends before the next slot, so what is not ready now will never be.
      LAMINA_CHECK(started, "the zero-bubble schedule stalls in slot {}", now);
    }
    return now;
  }
  Schedule take() { return std::move(schedule_); }

 private:
  static constexpr int never = std::numeric_limits<int>::max();
  struct Rank {
    size_t num_forwards = 0, num_input_gradients = 0, num_weight_gradients = 0;
    bool last_was_forward = false;
    size_t in_flight() const { return num_forwards - num_weight_gradients; }
  };

  int chunk_of(const Visit& visit, int rank) const { return visit.local_chunk * num_ranks_ + rank; }
  size_t slot(int chunk, int microbatch) const {
    return static_cast<size_t>(chunk) * static_cast<size_t>(num_microbatches_) + static_cast<size_t>(microbatch);
  }
  bool can_forward(int rank, int now) const {
    const Rank& state = ranks_[static_cast<size_t>(rank)];
    if (state.num_forwards == forwards_.size() || state.in_flight() >= static_cast<size_t>(most_in_flight_))
      return false;
    const Visit& visit = forwards_[state.num_forwards];
    const int chunk = chunk_of(visit, rank);
    return chunk == 0 || forward_end_[slot(chunk - 1, visit.microbatch)] <= now;
  }
  bool can_backward(int rank, int now) const {
    const Rank& state = ranks_[static_cast<size_t>(rank)];
    if (state.num_input_gradients == backwards_.size()) return false;
    const Visit& visit = backwards_[state.num_input_gradients];
    const int chunk = chunk_of(visit, rank);
    return forward_end_[slot(chunk, visit.microbatch)] <= now &&
           (chunk + 1 == num_chunks_ || backward_end_[slot(chunk + 1, visit.microbatch)] <= now);
  }

  bool start_one(int rank, int now) {
    Rank& state = ranks_[static_cast<size_t>(rank)];
    auto& actions = schedule_[static_cast<size_t>(rank)];
    const auto add = [&](const Visit& visit, ActionKind kind) {
      actions.push_back({chunk_of(visit, rank), kind, visit.microbatch});
      return slot(actions.back().chunk, visit.microbatch);
    };
    const bool forward = can_forward(rank, now), backward = can_backward(rank, now);
    if (forward && (!backward || (preference_ == Preference::alternate && !state.last_was_forward))) {
      forward_end_[add(forwards_[state.num_forwards++], ActionKind::forward)] = now + 1;
      state.last_was_forward = true;
    } else if (backward) {
      backward_end_[add(backwards_[state.num_input_gradients++], ActionKind::backward_input)] = now + 1;
      state.last_was_forward = false;
    } else if (state.num_weight_gradients < state.num_input_gradients) {
      add(backwards_[state.num_weight_gradients++], ActionKind::backward_weight);
    } else {
      return false;
    }
    return true;
  }

  int num_ranks_, num_chunks_, num_microbatches_ = 0, most_in_flight_;
  Preference preference_;
  std::vector<Visit> forwards_, backwards_;      // weight gradients are in the order of the input gradients
  std::vector<int> forward_end_, backward_end_;  // [chunk * num_microbatches + microbatch]
  std::vector<Rank> ranks_;
  Schedule schedule_;
};

}  // namespace

// No grouping and no preference is best everywhere: a short last group wastes the least memory, even ones need no rank to wait
// for its own micro-batches to come round.
Schedule zero_bubble_schedule(int num_ranks, int chunks_per_rank, int num_microbatches) {
  std::vector<int> short_last(static_cast<size_t>(num_microbatches / num_ranks), num_ranks);
  if (num_microbatches % num_ranks != 0) short_last.push_back(num_microbatches % num_ranks);
  // Nothing is faster: the last rank waits for the first forward, or the micro-batches pass all chunks one behind the other.
  const int bound = std::max(3 * num_microbatches * chunks_per_rank + num_ranks - 1,
                             2 * num_ranks * chunks_per_rank + num_microbatches);
  Schedule best;
  int least = std::numeric_limits<int>::max();
  for (const auto& groups : {short_last, even_groups(num_ranks, num_microbatches)}) {
    const int most_in_flight = interleaved_warmup(0, num_ranks, chunks_per_rank, groups.front()) + 1;
    for (const Preference preference : {Preference::alternate, Preference::input_gradient}) {
      ZeroBubble attempt(num_ranks, chunks_per_rank, groups, most_in_flight, preference);
      const int makespan = attempt.run();
      if (makespan < least) {
        least = makespan;
        best = attempt.take();
      }
      if (least == bound) return best;
    }
  }
  return best;
}

}  // namespace lamina::pipeline
