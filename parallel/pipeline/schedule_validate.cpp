#include <array>

#include "parallel/pipeline/dependencies.h"
#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

namespace {

[[noreturn]] void fail(const Schedule& schedule, Position at, const std::string& message) {
  throw Error("{}\n{}", message, grid_around(schedule, at));
}

const Action& at(const Schedule& schedule, Position position) {
  return schedule[static_cast<size_t>(position.rank)][static_cast<size_t>(position.index)];
}

template <class Visit>
void for_each_position(const Schedule& schedule, Visit&& visit) {
  for (size_t rank = 0; rank < schedule.size(); ++rank)
    for (size_t i = 0; i < schedule[rank].size(); ++i)
      visit(Position{static_cast<int>(rank), static_cast<int>(i)}, schedule[rank][i]);
}

void check_places(const Schedule& schedule, int num_chunks, int num_microbatches, bool forward_only) {
  const int num_ranks = static_cast<int>(schedule.size());
  for_each_position(schedule, [&](Position position, const Action& action) {
    if (action.chunk < 0 || action.chunk >= num_chunks || action.microbatch < 0 ||
        action.microbatch >= num_microbatches)
      fail(schedule, position,
           fmt::format("schedule: rank {} runs {}, but there are {} chunks and {} micro-batches, numbered from 0",
                       position.rank, to_string(action), num_chunks, num_microbatches));
    if (action.chunk % num_ranks != position.rank)
      fail(schedule, position,
           fmt::format("schedule: rank {} runs {}, but chunk {} is on rank {}", position.rank, to_string(action),
                       action.chunk, action.chunk % num_ranks));
    if (forward_only && action.kind != ActionKind::forward)
      fail(schedule, position,
           fmt::format("schedule: rank {} runs {}, but only forwards are expected", position.rank, to_string(action)));
  });
}

void check_double(const Schedule& schedule, const PositionTable& table) {
  for_each_position(schedule, [&](Position position, const Action& action) {
    if (table.find(action) != position)
      fail(schedule, position,
           fmt::format("schedule: rank {} runs {} twice, as entries {} and {} of its list", position.rank,
                       to_string(action), table.find(action).index, position.index));
    if (action.kind != ActionKind::backward_input && action.kind != ActionKind::backward_weight) return;
    const Action whole{action.chunk, ActionKind::backward, action.microbatch};
    if (table.contains(whole))
      fail(schedule, position,
           fmt::format("schedule: rank {} runs {}, which is already a part of its {}", position.rank, to_string(action),
                       to_string(whole)));
  });
}

// Shows what is missing where it could stand: before the rank's next micro-batch of that chunk, or what needs it.
[[noreturn]] void fail_missing(Schedule schedule, const Action& missing, const std::string& message) {
  const int rank = missing.chunk % static_cast<int>(schedule.size());
  auto& actions = schedule[static_cast<size_t>(rank)];
  auto place = actions.begin();
  for (; place != actions.end(); ++place)
    if (place->chunk == missing.chunk && ((place->kind == missing.kind && place->microbatch > missing.microbatch) ||
                                          (place->kind > missing.kind && place->microbatch == missing.microbatch)))
      break;
  const int index = static_cast<int>(place - actions.begin());
  actions.insert(place, missing);
  fail(schedule, {rank, index}, message);
}

void check_missing(const Schedule& schedule, const PositionTable& table, int num_chunks, int num_microbatches,
                   bool forward_only) {
  for (int chunk = 0; chunk < num_chunks; ++chunk)
    for (int m = 0; m < num_microbatches; ++m) {
      const Action forward{chunk, ActionKind::forward, m}, backward{chunk, ActionKind::backward, m},
          input{chunk, ActionKind::backward_input, m}, weight{chunk, ActionKind::backward_weight, m};
      const auto missing = [&](const Action& action, const std::string& more = "") {
        fail_missing(schedule, action,
                     fmt::format("schedule: {} is missing on rank {}{}", to_string(action),
                                 chunk % static_cast<int>(schedule.size()), more));
      };
      if (!table.contains(forward)) missing(forward);
      if (forward_only || table.contains(backward)) continue;
      if (!table.contains(input) && !table.contains(weight))
        missing(backward, fmt::format(" ({} and {} would do as well)", to_string(input), to_string(weight)));
      if (!table.contains(input)) missing(input);
      if (!table.contains(weight)) missing(weight);
    }
}

void check_order(const Schedule& schedule, const PositionTable& table, int num_chunks) {
  // [chunk][0: F, 1: B or I, 2: B or W]: the last micro-batch
  std::vector<std::array<int, 3>> last(static_cast<size_t>(num_chunks), {-1, -1, -1});
  for_each_position(schedule, [&](Position position, const Action& action) {
    for_each_dependency(action, table, [&](const Action& needed, const Position& needed_at) {
      if (needed_at.rank == position.rank && needed_at.index > position.index)
        fail(schedule, position,
             fmt::format("schedule: order error on rank {}: {} comes before {}, which it needs", position.rank,
                         to_string(action), to_string(needed)));
    });
    static constexpr bool belongs[4][3] = {
        {true, false, false}, {false, true, true}, {false, true, false}, {false, false, true}};
    for (size_t i = 0; i < 3; ++i) {
      if (!belongs[static_cast<size_t>(action.kind)][i]) continue;
      int& earlier = last[static_cast<size_t>(action.chunk)][i];
      if (earlier > action.microbatch)
        fail(schedule, position,
             fmt::format("schedule: order error on rank {}: {} comes after micro-batch {} of its chunk; they ascend in "
                         "each kind of action",
                         position.rank, to_string(action), earlier));
      earlier = action.microbatch;
    }
  });
}

void check_progress(const Schedule& schedule, const PositionTable& table) {
  const std::vector<int> reached = walk_schedule(schedule, table, [](int, int) {});
  const auto waits_at = [&](int rank) { return Position{rank, reached[static_cast<size_t>(rank)]}; };
  const auto why = [&](int rank) {
    Position unmet;
    for_each_dependency(at(schedule, waits_at(rank)), table, [&](const Action&, const Position& needed) {
      if (!unmet.exists() && reached[static_cast<size_t>(needed.rank)] <= needed.index) unmet = needed;
    });
    return unmet;
  };
  for (size_t i = 0; i < schedule.size(); ++i) {
    if (static_cast<size_t>(reached[i]) == schedule[i].size()) continue;
    const std::vector<int> cycle = waiting_cycle(static_cast<int>(i), schedule.size(), why);
    fail(schedule, waits_at(cycle[0]), "schedule: " + describe_deadlock(cycle, [&](int rank) {
                                         return fmt::format("rank {} waits at {} for {}", rank,
                                                            to_string(at(schedule, waits_at(rank))),
                                                            to_string(at(schedule, why(rank))));
                                       }));
  }
}

}  // namespace

void validate(const Schedule& schedule, int num_chunks, int num_microbatches, bool forward_only) {
  LAMINA_CHECK(!schedule.empty() && num_chunks >= 1 && num_chunks % static_cast<int>(schedule.size()) == 0,
               "{} chunks on {} ranks", num_chunks, schedule.size());
  LAMINA_CHECK(num_microbatches >= 1, "{} micro-batches", num_microbatches);
  check_places(schedule, num_chunks, num_microbatches, forward_only);
  const PositionTable table(schedule, num_chunks, num_microbatches);
  check_double(schedule, table);
  check_missing(schedule, table, num_chunks, num_microbatches, forward_only);
  check_order(schedule, table, num_chunks);
  check_progress(schedule, table);
}

}  // namespace lamina::pipeline
