#include "trainer/record/trace_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/record/metrics.h"

namespace lamina {
namespace {

using trace::Span;
using trace::Track;

constexpr int lanes_per_track = 1000;

const char* thread_name(Track track) {
  switch (track) {
    case Track::phases:
      return "phases";
    case Track::compute:
      return "compute";
    case Track::waiting:
      return "waiting";
    case Track::sends:
      return "send";
    case Track::receives:
      return "receive";
    case Track::data_parallel:
      return "data parallel";
    case Track::experts:
      return "experts";
  }
  return "";
}

void append(std::string& list, const std::string& item) {
  if (!list.empty()) list += ",\n";
  list += item;
}

double microseconds(double seconds) {
  return seconds * 1e6;
}

void name_process(std::string& events, int pid, const std::string& name) {
  append(events, JsonRow()
                     .add("ph", "M")
                     .add("name", "process_name")
                     .add("pid", pid)
                     .add("tid", 0)
                     .add("args", JsonRow().add("name", name))
                     .to_string());
  append(events, JsonRow()
                     .add("ph", "M")
                     .add("name", "process_sort_index")
                     .add("pid", pid)
                     .add("tid", 0)
                     .add("args", JsonRow().add("sort_index", pid))
                     .to_string());
}

void name_thread(std::string& events, int pid, int tid, const std::string& name) {
  append(events, JsonRow()
                     .add("ph", "M")
                     .add("name", "thread_name")
                     .add("pid", pid)
                     .add("tid", tid)
                     .add("args", JsonRow().add("name", name))
                     .to_string());
  append(events, JsonRow()
                     .add("ph", "M")
                     .add("name", "thread_sort_index")
                     .add("pid", pid)
                     .add("tid", tid)
                     .add("args", JsonRow().add("sort_index", tid))
                     .to_string());
}

// "2F0": chunk 2, forward, micro-batch 0; other spans have their own words.
std::string event_name(const Span& span) {
  if (span.microbatch < 0) return span.name;
  const std::string action = fmt::format("{}{}{}", span.chunk, span.name, span.microbatch);
  switch (span.track) {
    case Track::waiting:
      return "wait for " + action;
    case Track::sends:
      return "send " + action;
    case Track::receives:
      return "recv " + action;
    default:
      return action;
  }
}

std::string event_of(const Span& span, int pid, int tid) {
  JsonRow args;
  if (span.chunk >= 0) args.add("chunk", span.chunk);
  if (span.microbatch >= 0) args.add("microbatch", span.microbatch).add("kind", span.name);
  if (span.peer >= 0) args.add("peer", span.peer);
  if (span.bucket >= 0) args.add("bucket", span.bucket);
  if (span.bytes >= 0) args.add("bytes", span.bytes);
  if (span.summary_bytes >= 0) args.add("summary_bytes", span.summary_bytes);
  return JsonRow()
      .add("ph", "X")
      .add("name", event_name(span))
      .add("cat", thread_name(span.track))
      .add("pid", pid)
      .add("tid", tid)
      .add("ts", microseconds(span.begin))
      .add("dur", microseconds(span.end - span.begin))
      .add("args", args)
      .to_string();
}

std::string action_row(int rank, const Span& span) {
  return JsonRow()
      .add("rank", rank)
      .add("chunk", span.chunk)
      .add("microbatch", span.microbatch)
      .add("kind", span.name)
      .add("start", span.begin)
      .add("end", span.end)
      .to_string();
}

// Of each span the first lane that is free when it begins; by beginning, the longer first.
std::vector<int> lanes_of(const std::vector<Span>& spans, const std::vector<size_t>& order) {
  std::vector<int> lanes;
  std::vector<double> free_from;
  for (const size_t index : order) {
    const Span& span = spans[index];
    const auto lane = std::find_if(free_from.begin(), free_from.end(), [&](double end) { return end <= span.begin; });
    lanes.push_back(static_cast<int>(lane - free_from.begin()));
    if (lane == free_from.end()) {
      free_from.push_back(span.end);
    } else {
      *lane = span.end;
    }
  }
  return lanes;
}

}  // namespace

RankTrace trace_of_rank(int rank, const std::string& process_name, const std::vector<Span>& spans) {
  RankTrace out;
  name_process(out.events, rank, process_name);
  for (int t = 0; t < trace::num_tracks; ++t) {
    const auto track = static_cast<Track>(t);
    std::vector<size_t> order;
    for (size_t i = 0; i < spans.size(); ++i)
      if (spans[i].track == track) order.push_back(i);
    if (order.empty()) continue;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return spans[a].begin != spans[b].begin ? spans[a].begin < spans[b].begin : spans[a].end > spans[b].end;
    });
    // Phases nest by how they are made; the rest must not lie on one line when they overlap.
    const std::vector<int> lanes = track == Track::phases ? std::vector<int>(order.size(), 0) : lanes_of(spans, order);
    const int num_lanes = *std::max_element(lanes.begin(), lanes.end()) + 1;
    for (int lane = 0; lane < num_lanes; ++lane)
      name_thread(out.events, rank, t * lanes_per_track + lane,
                  lane == 0 ? thread_name(track) : fmt::format("{} {}", thread_name(track), lane + 1));
    for (size_t i = 0; i < order.size(); ++i) {
      append(out.events, event_of(spans[order[i]], rank, t * lanes_per_track + lanes[i]));
      if (track == Track::compute) append(out.actions, action_row(rank, spans[order[i]]));
    }
  }
  return out;
}

RankTrace trace_of_simulation(const pipeline::Schedule& schedule, const pipeline::Timeline& timeline, double begin,
                              int first_pid) {
  static constexpr const char* kinds[] = {"F", "B", "Bi", "W"};
  RankTrace out;
  for (size_t p = 0; p < schedule.size(); ++p) {
    std::vector<Span> spans;
    for (size_t i = 0; i < schedule[p].size(); ++i) {
      const pipeline::Action& action = schedule[p][i];
      Span span;
      span.track = Track::compute;
      span.name = kinds[static_cast<size_t>(action.kind)];
      span.chunk = action.chunk;
      span.microbatch = action.microbatch;
      span.begin = begin + timeline.spans[p][i].start;
      span.end = begin + timeline.spans[p][i].end;
      spans.push_back(span);
      append(out.actions, action_row(static_cast<int>(p), span));
    }
    append(out.events,
           trace_of_rank(first_pid + static_cast<int>(p), fmt::format("simulated rank {}", p), spans).events);
  }
  return out;
}

}  // namespace lamina
