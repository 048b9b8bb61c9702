// What an action waits for, and the walk of lists in an order that respects it: the base of the validators, the grid and the
// simulator.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

struct Position {
  int rank = -1, index = -1;  // of a rank's list
  bool exists() const { return rank >= 0; }
  bool operator==(const Position&) const = default;
};

// Where each action is, the first one when it is there twice. Dense: chunks and micro-batches are known to be in range.
class PositionTable {
 public:
  PositionTable(int num_chunks, int num_microbatches)
      : num_chunks_(num_chunks),
        num_microbatches_(num_microbatches),
        at_(4 * static_cast<size_t>(num_chunks) * static_cast<size_t>(num_microbatches)) {}
  PositionTable(const Schedule& schedule, int num_chunks, int num_microbatches)
      : PositionTable(num_chunks, num_microbatches) {
    for (size_t rank = 0; rank < schedule.size(); ++rank)
      for (size_t i = 0; i < schedule[rank].size(); ++i)
        add(schedule[rank][i], {static_cast<int>(rank), static_cast<int>(i)});
  }
  // Returns the earlier position, if there is one.
  Position add(const Action& action, Position position) {
    LAMINA_CHECK(action.chunk >= 0 && action.chunk < num_chunks_ && action.microbatch >= 0 &&
                     action.microbatch < num_microbatches_,
                 "{} of {} chunks, {} micro-batches", to_string(action), num_chunks_, num_microbatches_);
    Position& entry = at_[slot(action)];
    const Position earlier = entry;
    if (!earlier.exists()) entry = position;
    return earlier;
  }
  Position find(const Action& action) const {
    return action.chunk < 0 || action.chunk >= num_chunks_ ? Position{} : at_[slot(action)];
  }
  bool contains(const Action& action) const { return find(action).exists(); }

 private:
  size_t slot(const Action& action) const {
    return (static_cast<size_t>(action.kind) * static_cast<size_t>(num_chunks_) + static_cast<size_t>(action.chunk)) *
               static_cast<size_t>(num_microbatches_) +
           static_cast<size_t>(action.microbatch);
  }
  int num_chunks_, num_microbatches_;
  std::vector<Position> at_;
};

// Calls visit(needed action, its position) for each action that `action` waits for; `table` has find(). An action that is
// nowhere in the schedule is not waited for.
template <class Table, class Visit>
void for_each_dependency(const Action& action, const Table& table, Visit&& visit) {
  const auto need = [&](int chunk, ActionKind kind) {
    const Action needed{chunk, kind, action.microbatch};
    const Position position = table.find(needed);
    if (position.exists()) visit(needed, position);
  };
  switch (action.kind) {
    case ActionKind::forward:
      need(action.chunk - 1, ActionKind::forward);
      break;
    case ActionKind::backward:
    case ActionKind::backward_input:
      need(action.chunk, ActionKind::forward);
      need(action.chunk + 1, ActionKind::backward);
      need(action.chunk + 1, ActionKind::backward_input);
      break;
    case ActionKind::backward_weight:
      need(action.chunk, ActionKind::backward_input);
      break;
  }
}

// Walks lists of which every entry waits for the one before it and for those that for_each_need(rank, index, visit) names.
// Calls visit(rank, index) for each entry after what it waits for. Linear time. Returns how far each rank came: the length of
// its list, or the index of the entry that waits for ever.
template <class Lists, class ForEachNeed, class Visit>
std::vector<int> walk(const Lists& lists, ForEachNeed&& for_each_need, Visit&& visit) {
  const size_t num_ranks = lists.size();
  std::vector<int> next(num_ranks, 0);
  std::vector<std::vector<std::pair<int, int>>> waiters(num_ranks);  // [rank]: (who waits, for which index here)
  std::vector<int> runnable;
  for (size_t rank = num_ranks; rank-- > 0;) runnable.push_back(static_cast<int>(rank));
  while (!runnable.empty()) {
    const int rank = runnable.back();
    runnable.pop_back();
    int& at = next[static_cast<size_t>(rank)];
    const int started_at = at, size = static_cast<int>(lists[static_cast<size_t>(rank)].size());
    for (bool blocked = false; at < size; ++at) {
      for_each_need(rank, at, [&](const Position& needed) {
        if (blocked || next[static_cast<size_t>(needed.rank)] > needed.index) return;
        blocked = true;
        // A rank that waits for a later entry of its own never gets on.
        if (needed.rank != rank) waiters[static_cast<size_t>(needed.rank)].emplace_back(rank, needed.index);
      });
      if (blocked) break;
      visit(rank, at);
    }
    if (at == started_at) continue;
    std::erase_if(waiters[static_cast<size_t>(rank)], [&](const std::pair<int, int>& waiter) {
      if (waiter.second >= at) return false;
      runnable.push_back(waiter.first);
      return true;
    });
  }
  return next;
}

template <class Table, class Visit>
std::vector<int> walk_schedule(const Schedule& schedule, const Table& table, Visit&& visit) {
  const auto needs = [&](int rank, int index, auto&& need) {
    for_each_dependency(schedule[static_cast<size_t>(rank)][static_cast<size_t>(index)], table,
                        [&](const Action&, const Position& position) { need(position); });
  };
  return walk(schedule, needs, visit);
}

// The ranks that wait for each other, found from one that waits for ever; why(rank) is the entry that it waits for.
template <class Why>
std::vector<int> waiting_cycle(int rank, size_t num_ranks, Why&& why) {
  std::vector<bool> seen(num_ranks, false);
  for (; !seen[static_cast<size_t>(rank)]; rank = why(rank).rank) seen[static_cast<size_t>(rank)] = true;
  std::vector<int> cycle;
  const int first = rank;
  do cycle.push_back(rank);
  while ((rank = why(rank).rank) != first);
  return cycle;
}
// "deadlock: rank 0 waits at 0B0 for 1B0; ..": describe(rank) is such a part; a long cycle is cut short.
template <class Describe>
std::string describe_deadlock(const std::vector<int>& cycle, Describe&& describe) {
  constexpr size_t most = 4;
  std::string text = "deadlock";
  for (size_t i = 0; i < std::min(cycle.size(), most); ++i) text += (i == 0 ? ": " : "; ") + describe(cycle[i]);
  return cycle.size() > most ? text + fmt::format("; .. round {} ranks", cycle.size()) : text;
}

// The grid, or of a large schedule the neighbourhood of the entry at `marked`: 4 ranks and 8 columns on each side.
std::string grid_around(const Schedule& schedule, Position marked);

}  // namespace lamina::pipeline
