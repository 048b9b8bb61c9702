// The parts of a trace's file as text. Pure.
#pragma once

#include <string>
#include <vector>

#include "core/base/trace.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/simulate.h"

namespace lamina {

// Of one rank: its events in Chrome's format, and its rows for "lamina" / "real". Comma-separated JSON objects, a line each.
struct RankTrace {
  std::string events, actions;
};

// pid: of the process in the picture. Spans in flight that overlap go to further threads of their track, so that the spans of a
// thread always lie one in or after the other.
RankTrace trace_of_rank(int rank, const std::string& process_name, const std::vector<trace::Span>& spans);

// The simulated pipeline, moved by `begin` seconds; pid of pipeline rank p: first_pid + p.
RankTrace trace_of_simulation(const pipeline::Schedule& schedule, const pipeline::Timeline& timeline, double begin,
                              int first_pid);

}  // namespace lamina
