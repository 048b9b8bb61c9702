#include "parallel/pipeline/simulate.h"

#include <algorithm>
#include <limits>

#include "core/base/error.h"
#include "parallel/pipeline/dependencies.h"

namespace lamina::pipeline {

namespace {

double duration(const Action& action, const ChunkCosts& costs) {
  const size_t chunk = static_cast<size_t>(action.chunk);
  switch (action.kind) {
    case ActionKind::forward:
      return costs.forward[chunk];
    case ActionKind::backward:
      return costs.backward_input[chunk] + costs.backward_weight[chunk];
    case ActionKind::backward_input:
      return costs.backward_input[chunk];
    case ActionKind::backward_weight:
      return costs.backward_weight[chunk];
  }
  return 0;
}

double hop(const Action& from, const Action& to, const ChunkCosts& costs) {
  if (from.chunk == to.chunk) return 0;
  const auto& hops = from.kind == ActionKind::forward ? costs.hop_forward : costs.hop_backward;
  return hops.empty() ? 0 : hops[static_cast<size_t>(std::min(from.chunk, to.chunk))];
}

int check_and_count_microbatches(const Schedule& schedule, const ChunkCosts& costs,
                                 const std::vector<double>& activation_weight) {
  const size_t num_chunks = costs.forward.size();
  LAMINA_CHECK(!schedule.empty() && num_chunks > 0 && num_chunks % schedule.size() == 0, "{} chunks on {} ranks",
               num_chunks, schedule.size());
  LAMINA_CHECK(costs.backward_input.size() == num_chunks && costs.backward_weight.size() == num_chunks,
               "costs of {}, {} and {} chunks", num_chunks, costs.backward_input.size(), costs.backward_weight.size());
  for (const auto* hops : {&costs.hop_forward, &costs.hop_backward})
    LAMINA_CHECK(hops->empty() || hops->size() == num_chunks - 1, "{} hops of {} chunks", hops->size(), num_chunks);
  LAMINA_CHECK(activation_weight.empty() || activation_weight.size() == num_chunks, "weights of {} of {} chunks",
               activation_weight.size(), num_chunks);
  int num_microbatches = 0;
  for (const auto& actions : schedule)
    for (const Action& action : actions) num_microbatches = std::max(num_microbatches, action.microbatch + 1);
  return num_microbatches;
}

// A rank does one thing at a time, so what it holds depends on the order of its list alone.
void count_in_flight(const Schedule& schedule, const PositionTable& table, const std::vector<double>& activation_weight,
                     Timeline& timeline) {
  std::vector<int> in_flight(timeline.peak_microbatches.size(), 0);
  for (size_t rank = 0; rank < schedule.size(); ++rank) {
    double held = 0;
    for (const Action& action : schedule[rank]) {
      const size_t chunk = static_cast<size_t>(action.chunk);
      const double weight = activation_weight.empty() ? 1 : activation_weight[chunk];
      const auto release = [&] {
        --in_flight[chunk];
        held -= weight;
      };
      if (action.kind == ActionKind::forward) {
        timeline.peak_microbatches[chunk] = std::max(timeline.peak_microbatches[chunk], ++in_flight[chunk]);
        held += weight;
        timeline.peak_activation[rank] = std::max(timeline.peak_activation[rank], held);
        if (!table.contains({action.chunk, ActionKind::backward, action.microbatch}) &&
            !table.contains({action.chunk, ActionKind::backward_weight, action.microbatch}))
          release();
      } else if (action.kind != ActionKind::backward_input) {
        release();
      }
    }
  }
}

}  // namespace

Timeline simulate(const Schedule& schedule, const ChunkCosts& costs, const std::vector<double>& activation_weight) {
  const int num_microbatches = check_and_count_microbatches(schedule, costs, activation_weight);
  const size_t num_ranks = schedule.size();
  const PositionTable table(schedule, static_cast<int>(costs.forward.size()), num_microbatches);
  Timeline timeline;
  timeline.spans.resize(num_ranks);
  timeline.busy.assign(num_ranks, 0);
  timeline.peak_microbatches.assign(costs.forward.size(), 0);
  timeline.peak_activation.assign(num_ranks, 0);
  for (size_t rank = 0; rank < num_ranks; ++rank) timeline.spans[rank].resize(schedule[rank].size());

  double first_start = std::numeric_limits<double>::infinity(), last_end = 0;
  const auto run = [&](int rank_index, int at) {
    const size_t rank = static_cast<size_t>(rank_index), index = static_cast<size_t>(at);
    const Action& action = schedule[rank][index];
    double start = index == 0 ? 0 : timeline.spans[rank][index - 1].end;
    for_each_dependency(action, table, [&](const Action& needed, const Position& position) {
      const double arrives =
          timeline.spans[static_cast<size_t>(position.rank)][static_cast<size_t>(position.index)].end +
          (num_ranks > 1 ? hop(needed, action, costs) : 0);
      start = std::max(start, arrives);
    });
    const double length = duration(action, costs);
    timeline.spans[rank][index] = {start, start + length};
    timeline.busy[rank] += length;
    first_start = std::min(first_start, start);
    last_end = std::max(last_end, start + length);
  };
  const std::vector<int> reached = walk_schedule(schedule, table, run);
  for (size_t rank = 0; rank < num_ranks; ++rank)
    LAMINA_CHECK(static_cast<size_t>(reached[rank]) == schedule[rank].size(), "rank {} waits for ever at {}", rank,
                 to_string(schedule[rank][static_cast<size_t>(reached[rank])]));

  double busy = 0;
  for (const double rank_busy : timeline.busy) busy += rank_busy;
  timeline.makespan = last_end > first_start ? last_end - first_start : 0;
  timeline.bubble = timeline.makespan > 0 ? 1 - busy / (static_cast<double>(num_ranks) * timeline.makespan) : 0;
  count_in_flight(schedule, table, activation_weight, timeline);
  return timeline;
}

std::string to_text(const Schedule& schedule, const Timeline& timeline, int width) {
  static constexpr char letters[] = {'F', 'B', 'I', 'W'};
  LAMINA_CHECK(width >= 1 && timeline.spans.size() == schedule.size(), "width {}, {} ranks", width, schedule.size());
  double first_start = std::numeric_limits<double>::infinity();
  for (const auto& spans : timeline.spans)
    for (const Timeline::Span& span : spans) first_start = std::min(first_start, span.start);
  std::string text;
  const size_t digits = fmt::format("{}", schedule.size() - 1).size();
  for (size_t rank = 0; rank < schedule.size(); ++rank) {
    LAMINA_CHECK(timeline.spans[rank].size() == schedule[rank].size(), "another schedule's timeline");
    text += fmt::format("rank {:>{}}  ", rank, digits);
    size_t at = 0;
    for (int column = 0; column < width; ++column) {
      const double time = first_start + (column + 0.5) * timeline.makespan / width;
      while (at < schedule[rank].size() && timeline.spans[rank][at].end <= time) ++at;
      const bool computes = at < schedule[rank].size() && timeline.spans[rank][at].start <= time;
      text += computes ? letters[static_cast<size_t>(schedule[rank][at].kind)] : '.';
    }
    text += '\n';
  }
  return text;
}

}  // namespace lamina::pipeline
