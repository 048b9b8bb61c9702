#include "parallel/pipeline/schedule.h"

#include <algorithm>

#include "core/base/error.h"
#include "parallel/pipeline/visit_order.h"

namespace lamina::pipeline {

namespace {

std::vector<Visit> visit_order(const std::vector<int>& groups, int chunks_per_rank, bool last_chunk_first) {
  std::vector<Visit> visits;
  int first = 0;
  for (const int size : groups) {
    for (int v = 0; v < chunks_per_rank; ++v)
      for (int m = first; m < first + size; ++m) visits.push_back({last_chunk_first ? chunks_per_rank - 1 - v : v, m});
    first += size;
  }
  return visits;
}

Schedule gpipe(int num_ranks, int chunks_per_rank, int num_microbatches, bool forward_only) {
  const std::vector<int> groups = even_groups(num_ranks, num_microbatches);
  const auto forwards = forward_order(groups, chunks_per_rank), backwards = backward_order(groups, chunks_per_rank);
  Schedule schedule(static_cast<size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    auto& actions = schedule[static_cast<size_t>(rank)];
    for (const Visit& visit : forwards)
      actions.push_back({visit.local_chunk * num_ranks + rank, ActionKind::forward, visit.microbatch});
    if (forward_only) continue;
    for (const Visit& visit : backwards)
      actions.push_back({visit.local_chunk * num_ranks + rank, ActionKind::backward, visit.microbatch});
  }
  return schedule;
}

// Megatron-LM's order (arXiv 2104.04473 section 2.2; forward_backward_pipelining_with_interleaving): rank r starts with
// `warmup` forwards, then alternates, then drains. There the number of micro-batches is a multiple of the ranks and all groups
// have num_ranks of them; here groups may be larger, and the warm-up with them. No rank waits for ever: the k-th forward of
// rank 0 needs a forward that the last rank runs after a backward that needs one of rank 0's forwards, which is
// (two groups - 2 * num_ranks + 3) or more places before the k-th. Fewer micro-batches than ranks are a group of num_ranks
// of which the rest is left out, which leaves all dependencies in order.
Schedule interleaved(int num_ranks, int chunks_per_rank, int num_microbatches) {
  const std::vector<int> groups = even_groups(num_ranks, std::max(num_microbatches, num_ranks));
  const auto forwards = forward_order(groups, chunks_per_rank), backwards = backward_order(groups, chunks_per_rank);
  const size_t total = forwards.size();
  Schedule schedule(static_cast<size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    auto& actions = schedule[static_cast<size_t>(rank)];
    const auto add = [&](const Visit& visit, ActionKind kind) {
      if (visit.microbatch < num_microbatches)
        actions.push_back({visit.local_chunk * num_ranks + rank, kind, visit.microbatch});
    };
    const int warmup = interleaved_warmup(rank, num_ranks, chunks_per_rank, groups.front());
    const size_t lead = std::min(total, static_cast<size_t>(warmup));
    for (size_t k = 0; k < lead; ++k) add(forwards[k], ActionKind::forward);
    for (size_t k = lead; k < total; ++k) {
      add(forwards[k], ActionKind::forward);
      add(backwards[k - lead], ActionKind::backward);
    }
    for (size_t k = total - lead; k < total; ++k) add(backwards[k], ActionKind::backward);
  }
  return schedule;
}

int chunks_per_rank_of(int num_ranks, int num_chunks, int num_microbatches) {
  LAMINA_CHECK(num_ranks >= 1 && num_chunks >= 1 && num_chunks % num_ranks == 0, "{} chunks on {} ranks", num_chunks,
               num_ranks);
  LAMINA_CHECK(num_microbatches >= 1, "{} micro-batches", num_microbatches);
  return num_chunks / num_ranks;
}

}  // namespace

std::vector<Visit> forward_order(const std::vector<int>& groups, int chunks_per_rank) {
  return visit_order(groups, chunks_per_rank, false);
}
std::vector<Visit> backward_order(const std::vector<int>& groups, int chunks_per_rank) {
  return visit_order(groups, chunks_per_rank, true);
}

// A group shorter than num_ranks would let a rank wait for its own micro-batches to come round.
std::vector<int> even_groups(int num_ranks, int num_microbatches) {
  const int num_groups = std::max(1, num_microbatches / num_ranks);
  std::vector<int> groups(static_cast<size_t>(num_groups), num_microbatches / num_groups);
  for (int i = 0; i < num_microbatches % num_groups; ++i) ++groups[static_cast<size_t>(i)];
  return groups;
}

int interleaved_warmup(int rank, int num_ranks, int chunks_per_rank, int largest_group) {
  const int hops = num_ranks - rank - 1;
  return chunks_per_rank == 1 ? hops : 2 * hops + (chunks_per_rank - 1) * largest_group;
}

std::string to_string(const Action& action) {
  static constexpr char letters[] = {'F', 'B', 'I', 'W'};
  return fmt::format("{}{}{}", action.chunk, letters[static_cast<size_t>(action.kind)], action.microbatch);
}

Schedule make_schedule(ScheduleName name, int num_ranks, int num_chunks, int num_microbatches,
                       const ChunkCosts* costs) {
  const int chunks_per_rank = chunks_per_rank_of(num_ranks, num_chunks, num_microbatches);
  switch (name) {
    case ScheduleName::gpipe:
      return gpipe(num_ranks, chunks_per_rank, num_microbatches, false);
    case ScheduleName::one_f_one_b:
      if (chunks_per_rank > 1)
        throw Error("schedule 1f1b has one chunk per rank, but there are {} on each of {} ranks: use interleaved_1f1b",
                    chunks_per_rank, num_ranks);
      return interleaved(num_ranks, 1, num_microbatches);
    case ScheduleName::interleaved_1f1b:
      return interleaved(num_ranks, chunks_per_rank, num_microbatches);
    case ScheduleName::zero_bubble:
      return zero_bubble_schedule(num_ranks, chunks_per_rank, num_microbatches, costs);
  }
  LAMINA_CHECK(false, "schedule {}", static_cast<int>(name));
  return {};
}

Schedule forward_schedule(int num_ranks, int num_chunks, int num_microbatches) {
  return gpipe(num_ranks, chunks_per_rank_of(num_ranks, num_chunks, num_microbatches), num_microbatches, true);
}

}  // namespace lamina::pipeline
