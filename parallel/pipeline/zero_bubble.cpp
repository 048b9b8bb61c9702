// The zero-bubble schedule: every rank merges three fixed sequences (forwards, input gradients, weight gradients) as they
// become ready in simulated time. Several ways to merge them are tried; the one that takes the least time is the schedule.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <utility>

#include "core/base/error.h"
#include "parallel/pipeline/simulate.h"
#include "parallel/pipeline/visit_order.h"

namespace lamina::pipeline {

namespace {

using Time = int64_t;
constexpr Time never = std::numeric_limits<Time>::max() / 4;

// Costs as whole numbers, in parts of the mean action: what comes first is then the same wherever the schedule is made, though
// two machines may differ in the last bit of a cost. A million actions still fit.
constexpr double ticks_per_action = 1 << 24;

struct Ticks {
  std::vector<Time> forward, backward_input, backward_weight;  // [num_chunks]
  std::vector<Time> hop_forward, hop_backward;                 // [num_chunks], the last one unused
};

// What comes first when both a forward and an input gradient are ready; or the order of interleaved_1f1b, ready or not.
enum class Order { input_gradient_first, alternate, interleaved };
// When the weight gradients run.
enum class WeightPolicy {
  at_once,  // right after their input gradients
  fill,     // when nothing else is ready
  fit,      // when nothing else is known to get ready before they end
};
struct Strategy {
  std::vector<int> groups;
  Order order = Order::alternate;
  WeightPolicy weights = WeightPolicy::fill;
};

// In the order of interleaved_1f1b it stalls no more than that schedule does: weight gradients make room for a forward that
// finds the rank full. In the others a rank never stalls when most_in_flight is more than (chunks_per_rank - 1) * the largest
// group. Suppose it did: every weight gradient is done, so what is in flight waits for an input gradient. Of the ranks with
// the fewest input gradients the last one lacks only its own forward for the next. That forward is at most
// (chunks_per_rank - 1) * group places ahead, so the rank is not full, and it waits for a forward of the rank before it, which
// has no more forwards and no fewer input gradients behind it and so is not full either, and so on down to the first forward
// of all, which waits for nothing.
class ZeroBubble {
 public:
  ZeroBubble(int num_ranks, int chunks_per_rank, int num_microbatches, const Strategy& strategy, const Ticks& ticks)
      : num_ranks_(num_ranks),
        num_chunks_(num_ranks * chunks_per_rank),
        num_microbatches_(num_microbatches),
        strategy_(strategy),
        ticks_(ticks),
        most_in_flight_(interleaved_warmup(0, num_ranks, chunks_per_rank, strategy.groups.front()) + 1),
        forwards_(visits(forward_order(strategy.groups, chunks_per_rank))),
        backwards_(visits(backward_order(strategy.groups, chunks_per_rank))),
        ranks_(static_cast<size_t>(num_ranks)),
        schedule_(static_cast<size_t>(num_ranks)) {
    const size_t size = static_cast<size_t>(num_chunks_) * static_cast<size_t>(num_microbatches_);
    forward_ready_.assign(size, never);
    backward_ready_.assign(size, never);
    std::fill_n(forward_ready_.begin(), num_microbatches_, Time{0});
    if (strategy.order == Order::interleaved) follow_interleaved(chunks_per_rank);
  }

  // Returns the makespan.
  Time run() {
    const size_t num_actions = 3 * forwards_.size();
    for (auto& actions : schedule_) actions.reserve(num_actions);
    for (int rank = 0; rank < num_ranks_; ++rank) events_.emplace(0, rank);
    Time last_end = 0;
    while (!events_.empty()) {
      const auto [now, rank] = events_.top();
      events_.pop();
      if (state(rank).busy_until <= now) last_end = std::max(last_end, start_one(rank, now));
    }
    for (const auto& actions : schedule_)
      LAMINA_CHECK(actions.size() == num_actions, "the zero-bubble schedule stalls after {} of {} actions",
                   actions.size(), num_actions);
    return last_end;
  }
  Schedule take() { return std::move(schedule_); }

 private:
  struct Rank {
    size_t num_forwards = 0, num_input_gradients = 0, num_weight_gradients = 0;
    Time busy_until = 0;
    bool last_was_forward = false;
    std::vector<bool> forward_is_next;  // interleaved: [forwards and input gradients begun]
    size_t in_flight() const { return num_forwards - num_weight_gradients; }
  };
  using Event = std::pair<Time, int>;  // when a rank ends an action or gets something to do

  Rank& state(int rank) { return ranks_[static_cast<size_t>(rank)]; }
  int chunk_of(const Visit& visit, int rank) const { return visit.local_chunk * num_ranks_ + rank; }
  size_t slot(int chunk, int microbatch) const {
    return static_cast<size_t>(chunk) * static_cast<size_t>(num_microbatches_) + static_cast<size_t>(microbatch);
  }
  // A group of num_ranks may have fewer micro-batches: the rest is left out.
  std::vector<Visit> visits(std::vector<Visit> all) const {
    std::erase_if(all, [&](const Visit& visit) { return visit.microbatch >= num_microbatches_; });
    return all;
  }

  void follow_interleaved(int chunks_per_rank) {
    const Schedule schedule =
        make_schedule(ScheduleName::interleaved_1f1b, num_ranks_, num_ranks_ * chunks_per_rank, num_microbatches_);
    for (size_t rank = 0; rank < schedule.size(); ++rank)
      for (const Action& action : schedule[rank])
        ranks_[rank].forward_is_next.push_back(action.kind == ActionKind::forward);
    int in_flight = 0;
    most_in_flight_ = 0;
    for (const bool forward : ranks_[0].forward_is_next)
      most_in_flight_ = std::max(most_in_flight_, in_flight += forward ? 1 : -1);
  }

  // When the next one of a kind can start, as far as it is known.
  Time next_forward(int rank) {
    const Rank& at = state(rank);
    if (at.num_forwards == forwards_.size() || at.in_flight() >= static_cast<size_t>(most_in_flight_)) return never;
    const Visit& visit = forwards_[at.num_forwards];
    return forward_ready_[slot(chunk_of(visit, rank), visit.microbatch)];
  }
  Time next_input_gradient(int rank) {
    const Rank& at = state(rank);
    if (at.num_input_gradients == backwards_.size()) return never;
    const Visit& visit = backwards_[at.num_input_gradients];
    // Its own forward came before the next chunk's, so long as there is one; the last chunk's makes itself known.
    return backward_ready_[slot(chunk_of(visit, rank), visit.microbatch)];
  }

  Time start(int rank, Time now, const Visit& visit, ActionKind kind) {
    Rank& at = state(rank);
    const int chunk = chunk_of(visit, rank);
    const auto c = static_cast<size_t>(chunk);
    schedule_[static_cast<size_t>(rank)].push_back({chunk, kind, visit.microbatch});
    at.busy_until = now;
    const auto pass_on = [&](std::vector<Time>& ready, int to, Time when) {
      ready[slot(to, visit.microbatch)] = when;
      if (to != chunk) events_.emplace(when, to % num_ranks_);
    };
    if (kind == ActionKind::forward) {
      at.busy_until += ticks_.forward[c];
      const bool last = chunk + 1 == num_chunks_;
      if (last) pass_on(backward_ready_, chunk, at.busy_until);
      if (!last) pass_on(forward_ready_, chunk + 1, at.busy_until + ticks_.hop_forward[c]);
      ++at.num_forwards;
    } else if (kind == ActionKind::backward_input) {
      at.busy_until += ticks_.backward_input[c];
      if (chunk > 0) pass_on(backward_ready_, chunk - 1, at.busy_until + ticks_.hop_backward[c - 1]);
      ++at.num_input_gradients;
    } else {
      at.busy_until += ticks_.backward_weight[c];
      ++at.num_weight_gradients;
    }
    if (kind != ActionKind::backward_weight) at.last_was_forward = kind == ActionKind::forward;
    events_.emplace(at.busy_until, rank);
    return at.busy_until;
  }

  // Returns the end of what was started, or now.
  Time start_one(int rank, Time now) {
    Rank& at = state(rank);
    Time forward = next_forward(rank), backward = next_input_gradient(rank);
    const size_t begun = at.num_forwards + at.num_input_gradients;
    if (begun < at.forward_is_next.size()) (at.forward_is_next[begun] ? backward : forward) = never;
    const bool deferred = at.num_weight_gradients < at.num_input_gradients;
    const auto run_weight_gradient = [&] {
      return start(rank, now, backwards_[at.num_weight_gradients], ActionKind::backward_weight);
    };
    if (deferred && strategy_.weights == WeightPolicy::at_once) return run_weight_gradient();
    const bool prefer_forward = strategy_.order == Order::alternate && !at.last_was_forward;
    if (forward <= now && (backward > now || prefer_forward))
      return start(rank, now, forwards_[at.num_forwards], ActionKind::forward);
    if (backward <= now) return start(rank, now, backwards_[at.num_input_gradients], ActionKind::backward_input);
    if (!deferred) return now;
    const auto chunk = static_cast<size_t>(chunk_of(backwards_[at.num_weight_gradients], rank));
    const bool fits = std::min(forward, backward) >= now + ticks_.backward_weight[chunk];
    return fits || strategy_.weights == WeightPolicy::fill ? run_weight_gradient() : now;
  }

  int num_ranks_, num_chunks_, num_microbatches_;
  const Strategy& strategy_;
  const Ticks& ticks_;
  int most_in_flight_;
  std::vector<Visit> forwards_, backwards_;           // weight gradients are in the order of the input gradients
  std::vector<Time> forward_ready_, backward_ready_;  // [chunk * num_microbatches + microbatch], hop included
  std::vector<Rank> ranks_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  Schedule schedule_;
};

Ticks to_ticks(const ChunkCosts* costs, int num_ranks, int num_chunks) {
  const auto size = static_cast<size_t>(num_chunks);
  const std::vector<Time> one(size, 1), none(size, 0);
  if (costs == nullptr) return {one, one, one, none, none};
  double sum = 0;
  for (const auto* part : {&costs->forward, &costs->backward_input, &costs->backward_weight}) {
    LAMINA_CHECK(part->size() == size, "costs of {} of {} chunks", part->size(), num_chunks);
    for (const double cost : *part) sum += cost;
  }
  const auto convert = [&](const std::vector<double>& values, Time least) {
    std::vector<Time> ticks(size, least);
    for (size_t i = 0; i < values.size(); ++i) {
      LAMINA_CHECK(values[i] >= 0 && std::isfinite(values[i]), "a cost of {}", values[i]);
      // An action takes some time, or ranks would have to be woken twice at one time.
      if (sum > 0)
        ticks[i] =
            std::max(least, static_cast<Time>(std::llround(values[i] / sum * (3.0 * num_chunks * ticks_per_action))));
    }
    return ticks;
  };
  Ticks ticks{convert(costs->forward, 1), convert(costs->backward_input, 1), convert(costs->backward_weight, 1), none,
              none};
  for (const auto* hops : {&costs->hop_forward, &costs->hop_backward})
    LAMINA_CHECK(hops->empty() || hops->size() + 1 == size, "{} hops of {} chunks", hops->size(), num_chunks);
  if (num_ranks > 1) {
    ticks.hop_forward = convert(costs->hop_forward, 0);
    ticks.hop_backward = convert(costs->hop_backward, 0);
  }
  return ticks;
}

// Whole numbers, which sums leave exact.
ChunkCosts as_costs(const Ticks& ticks) {
  const auto convert = [](const std::vector<Time>& values, size_t size) {
    return std::vector<double>(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(size));
  };
  const size_t size = ticks.forward.size();
  return {convert(ticks.forward, size), convert(ticks.backward_input, size), convert(ticks.backward_weight, size),
          convert(ticks.hop_forward, size - 1), convert(ticks.hop_backward, size - 1)};
}

// No order takes less: a rank waits for its first micro-batch and then has all its work to do; and a chunk has its input
// gradients but the first, and its weight gradients, to run after the first micro-batch has been through and back.
Time least_makespan(const Ticks& ticks, int num_ranks, int num_microbatches) {
  const size_t num_chunks = ticks.forward.size(), ranks = static_cast<size_t>(num_ranks);
  std::vector<Time> arrives(num_chunks, 0), work(ranks, 0);
  for (size_t c = 0; c + 1 < num_chunks; ++c) arrives[c + 1] = arrives[c] + ticks.forward[c] + ticks.hop_forward[c];
  Time least = 0, back = arrives.back() + ticks.forward.back();
  for (size_t c = num_chunks; c-- > 0;) {
    back += ticks.backward_input[c] + (c + 1 < num_chunks ? ticks.hop_backward[c] : 0);
    least = std::max(
        least, back + num_microbatches * ticks.backward_weight[c] + (num_microbatches - 1) * ticks.backward_input[c]);
    work[c % ranks] += num_microbatches * (ticks.forward[c] + ticks.backward_input[c] + ticks.backward_weight[c]);
  }
  for (size_t rank = 0; rank < ranks; ++rank) least = std::max(least, arrives[rank] + work[rank]);
  return least;
}

}  // namespace

// No grouping, order or policy is best everywhere: a short last group wastes the least memory, even ones need no rank to wait
// for its own micro-batches to come round; an order found for the costs keeps all ranks busy where it can, and
// interleaved_1f1b's leaves messages time to arrive. Among the candidates is interleaved_1f1b itself with its
// backwards in two parts, so nothing is lost against it.
Schedule zero_bubble_schedule(int num_ranks, int chunks_per_rank, int num_microbatches, const ChunkCosts* costs) {
  const Ticks ticks = to_ticks(costs, num_ranks, num_ranks * chunks_per_rank);
  std::vector<int> short_last(static_cast<size_t>(num_microbatches / num_ranks), num_ranks);
  if (num_microbatches % num_ranks != 0) short_last.push_back(num_microbatches % num_ranks);
  std::vector<std::vector<int>> groupings{short_last};
  if (const std::vector<int> even = even_groups(num_ranks, num_microbatches); even != short_last)
    groupings.push_back(even);
  std::vector<Strategy> strategies;
  for (const WeightPolicy weights : {WeightPolicy::fill, WeightPolicy::fit})
    for (const auto& groups : groupings)
      for (const Order order : {Order::alternate, Order::input_gradient_first})
        strategies.push_back({groups, order, weights});
  for (const WeightPolicy weights : {WeightPolicy::fill, WeightPolicy::fit, WeightPolicy::at_once})
    strategies.push_back({even_groups(num_ranks, std::max(num_microbatches, num_ranks)), Order::interleaved, weights});

  const Time bound = least_makespan(ticks, num_ranks, num_microbatches);
  Schedule best;
  Time least = never;
  for (const Strategy& strategy : strategies) {
    ZeroBubble attempt(num_ranks, chunks_per_rank, num_microbatches, strategy, ticks);
    const Time makespan = attempt.run();
    if (makespan < least) {
      least = makespan;
      best = attempt.take();
    }
    if (least == bound) return best;
  }
  // What suits equal costs now and then suits others better than all of these.
  if (costs != nullptr) {
    Schedule for_equal_costs = zero_bubble_schedule(num_ranks, chunks_per_rank, num_microbatches, nullptr);
    if (simulate(for_equal_costs, as_costs(ticks)).makespan < static_cast<double>(least)) return for_equal_costs;
  }
  return best;
}

}  // namespace lamina::pipeline
