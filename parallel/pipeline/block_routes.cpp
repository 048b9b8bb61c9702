#include "parallel/pipeline/block_routes.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.h"

namespace lamina::pipeline {

namespace {

// The summaries that reads in sublayers [begin, end) see are 0 .. this - 1; the head, after the last sublayer of all, sees what
// the last block sees.
int num_read(const BlockLayout& blocks, int begin, int end, bool has_head) {
  if (blocks.num_blocks() == 0) return 0;
  if (has_head) return blocks.num_blocks();
  return begin == end ? 0 : blocks.block_of(end - 1) + 1;
}

bool contains(const std::vector<int>& list, int value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

void check_sizes(const ChunkSplit& split, const BlockLayout& blocks, int num_ranks) {
  LAMINA_CHECK(num_ranks >= 1, "{} ranks", num_ranks);
  LAMINA_CHECK(split.num_chunks() >= 1 && split.begin.front() == 0, "a split needs a chunk and starts at sublayer 0");
  for (int c = 0; c < split.num_chunks(); ++c) {
    const int size = split.begin[static_cast<size_t>(c) + 1] - split.begin[static_cast<size_t>(c)];
    const bool at_end = c == 0 || c + 1 == split.num_chunks();
    LAMINA_CHECK(at_end ? size >= 0 : size > 0, "chunk {} of {} has {} sublayers", c, split.num_chunks(), size);
  }
  LAMINA_CHECK(split.begin.back() >= 1, "no sublayers");
  if (blocks.num_blocks() == 0) return;
  LAMINA_CHECK(std::is_sorted(blocks.begin.begin(), blocks.begin.end()) && blocks.begin.front() == 0);
  LAMINA_CHECK(blocks.begin.back() == split.begin.back(), "blocks of {} sublayers, chunks of {}", blocks.begin.back(),
               split.begin.back());
}

// What the split alone says of a chunk: what it reads and what is finished in it and at its ends.
ChunkRoutes local_routes(const ChunkSplit& split, const BlockLayout& blocks, int chunk) {
  ChunkRoutes routes;
  const bool is_last = chunk + 1 == split.num_chunks();
  const int begin = split.begin[static_cast<size_t>(chunk)], end = split.begin[static_cast<size_t>(chunk) + 1];
  for (int b = 0; b < num_read(blocks, begin, end, is_last); ++b) routes.reads.push_back(b);
  // Summary b is finished where block b opens.
  for (int b = 0; b < blocks.num_blocks(); ++b) {
    const int opens = blocks.begin[static_cast<size_t>(b)];
    if (opens == begin && begin < end) routes.arrives_as_stream = b;
    if (opens > begin && opens < end) routes.finished.push_back(b);
    if (opens == end && !is_last) routes.leaves_as_stream = b;
  }
  return routes;
}

}  // namespace

int BlockLayout::block_of(int sublayer) const {
  const auto after = std::upper_bound(begin.begin(), begin.end() - 1, sublayer);
  return static_cast<int>(after - begin.begin()) - 1;
}

BlockLayout make_block_layout(const ModelConfig& config) {
  BlockLayout layout;
  if (!config.has_depth_reads()) return layout;
  const auto num_sublayers = static_cast<int>(2 * config.num_hidden_layers);
  const int per_block =
      config.residual == Residual::full_attnres ? 1 : static_cast<int>(2 * config.attn_res_block_size);
  LAMINA_CHECK(num_sublayers > 0 && per_block > 0, "{} sublayers, {} per block", num_sublayers, per_block);
  for (int begin = 0; begin < num_sublayers; begin += per_block) layout.begin.push_back(begin);
  layout.begin.push_back(num_sublayers);
  return layout;
}

ChunkSplit make_chunk_split(std::span<const int64_t> layers_per_chunk) {
  ChunkSplit split;
  split.begin.push_back(0);
  for (const int64_t layers : layers_per_chunk)
    split.begin.push_back(split.begin.back() + static_cast<int>(2 * layers));
  check_sizes(split, {}, 1);
  return split;
}

int64_t BlockRoutes::num_sent() const {
  int64_t count = 0;
  for (const ChunkRoutes& chunk : chunks) count += static_cast<int64_t>(chunk.sent.size());
  return count;
}

std::string BlockRoutes::to_string() const {
  std::string text = fmt::format("block routes over {} ranks, {}: {} summaries sent\n", num_ranks,
                                 transport == BlockTransport::full ? "full" : "cached", num_sent());
  const auto stream = [](int summary) { return summary < 0 ? std::string("open") : fmt::format("{}", summary); };
  for (size_t c = 0; c < chunks.size(); ++c) {
    const ChunkRoutes& chunk = chunks[c];
    text +=
        fmt::format("chunk {} on rank {}: stream {} -> {}{}, received [{}], finished [{}], sent [{}], released [{}]\n",
                    c, static_cast<int>(c) % num_ranks, stream(chunk.arrives_as_stream), stream(chunk.leaves_as_stream),
                    chunk.keeps_leaving ? " (kept)" : "", fmt::join(chunk.received, " "),
                    fmt::join(chunk.finished, " "), fmt::join(chunk.sent, " "), fmt::join(chunk.released, " "));
  }
  return text;
}

BlockRoutes make_block_routes(const ChunkSplit& split, const BlockLayout& blocks, int num_ranks,
                              BlockTransport transport) {
  check_sizes(split, blocks, num_ranks);
  const int num_chunks = split.num_chunks();
  BlockRoutes routes;
  routes.num_ranks = num_ranks;
  routes.transport = num_ranks == 1 ? BlockTransport::cached : transport;
  std::map<std::pair<int, int>, int> lowest_reader;  // (cache, summary)
  for (int c = 0; c < num_chunks; ++c) {
    routes.chunks.push_back(local_routes(split, blocks, c));
    for (const int b : routes.chunks.back().reads) lowest_reader.try_emplace({routes.cache_of(c), b}, c);
  }
  for (const auto& [copy, reader] : lowest_reader)
    routes.chunks[static_cast<size_t>(reader)].released.push_back(copy.second);

  std::map<int, std::set<int>> held;  // by cache
  for (int c = 0; c < num_chunks; ++c) {
    ChunkRoutes& chunk = routes.chunks[static_cast<size_t>(c)];
    std::set<int>& own = held[routes.cache_of(c)];
    std::set<int> brought(chunk.finished.begin(), chunk.finished.end());
    if (chunk.arrives_as_stream >= 0) brought.insert(chunk.arrives_as_stream);
    for (const int b : chunk.reads)
      if (!own.contains(b) && !brought.contains(b)) chunk.received.push_back(b);
    if (c > 0) routes.chunks[static_cast<size_t>(c) - 1].sent = chunk.received;
    own.insert(chunk.reads.begin(), chunk.reads.end());
    const int leaving = chunk.leaves_as_stream;
    // With one rank the next chunk brings it.
    if (leaving < 0 || num_ranks == 1 || !lowest_reader.contains({routes.cache_of(c), leaving})) continue;
    chunk.keeps_leaving = true;
    own.insert(leaving);
  }
  return routes;
}

namespace {

// Follows every copy through the forward passes, chunk by chunk, and compares with what the split asks for.
class Validator {
 public:
  Validator(const BlockRoutes& routes, const ChunkSplit& split, const BlockLayout& blocks)
      : routes_(routes), split_(split), blocks_(blocks), num_chunks_(split.num_chunks()) {}

  void run() {
    LAMINA_CHECK(static_cast<int>(routes_.chunks.size()) == num_chunks_, "routes of {} chunks, a split of {}",
                 routes_.chunks.size(), num_chunks_);
    LAMINA_CHECK(routes_.num_ranks > 1 || routes_.transport == BlockTransport::cached);
    for (int c = 0; c < num_chunks_; ++c) {
      check_lists(c);
      check_ends(c);
    }
    for (int c = 0; c < num_chunks_; ++c) check_hop(c);
    for (int c = 0; c < num_chunks_; ++c) bring(c);
    for (int c = num_chunks_ - 1; c >= 0; --c) release(c);
    for (const auto& [cache, copies] : held_)
      for (const auto& [summary, bringer] : copies)
        LAMINA_CHECK(false, "chunk {}: summary {} is brought and never released", bringer, summary);
  }

 private:
  const ChunkRoutes& chunk(int c) const { return routes_.chunks[static_cast<size_t>(c)]; }

  void check_list(int c, const std::vector<int>& list, const char* name) const {
    for (size_t i = 0; i < list.size(); ++i) {
      LAMINA_CHECK(list[i] >= 0 && list[i] < blocks_.num_blocks(), "chunk {}: summary {} in `{}` does not exist", c,
                   list[i], name);
      LAMINA_CHECK(i == 0 || list[i - 1] < list[i], "chunk {}: summary {} in `{}` is there twice or out of order", c,
                   list[i], name);
    }
  }

  void check_lists(int c) const {
    check_list(c, chunk(c).reads, "reads");
    check_list(c, chunk(c).received, "received");
    check_list(c, chunk(c).sent, "sent");
    check_list(c, chunk(c).finished, "finished");
    check_list(c, chunk(c).released, "released");
  }

  // What the split alone decides: reads and the places where summaries are finished.
  void check_ends(int c) const {
    const ChunkRoutes wanted = local_routes(split_, blocks_, c);
    const auto same = [&](const std::vector<int>& found, const std::vector<int>& expected, const char* name) {
      for (int b = 0; b < blocks_.num_blocks(); ++b)
        LAMINA_CHECK(contains(found, b) == contains(expected, b),
                     "chunk {}: summary {} is {}in `{}`, against the split", c, b, contains(found, b) ? "" : "not ",
                     name);
    };
    same(chunk(c).reads, wanted.reads, "reads");
    same(chunk(c).finished, wanted.finished, "finished");
    LAMINA_CHECK(chunk(c).arrives_as_stream == wanted.arrives_as_stream,
                 "chunk {}: summary {} arrives as the stream, the split says {}", c, chunk(c).arrives_as_stream,
                 wanted.arrives_as_stream);
    LAMINA_CHECK(chunk(c).leaves_as_stream == wanted.leaves_as_stream,
                 "chunk {}: summary {} leaves as the stream, the split says {}", c, chunk(c).leaves_as_stream,
                 wanted.leaves_as_stream);
  }

  // Both ends of the hop into chunk c.
  void check_hop(int c) const {
    const std::vector<int> none;
    const std::vector<int>& sent = c > 0 ? chunk(c - 1).sent : none;
    for (const int b : chunk(c).received) {
      LAMINA_CHECK(contains(sent, b), "chunk {}: summary {} is received, but no chunk before sends it", c, b);
      LAMINA_CHECK(routes_.num_ranks > 1, "chunk {}: summary {} is received on the only rank", c, b);
    }
    for (const int b : sent)
      LAMINA_CHECK(contains(chunk(c).received, b), "chunk {}: summary {} is sent, but chunk {} does not receive it",
                   c - 1, b, c);
    if (c + 1 == num_chunks_)
      for (const int b : chunk(c).sent) LAMINA_CHECK(false, "chunk {}: summary {} is sent by the last chunk", c, b);
  }

  void bring(int c) {
    std::map<int, int>& held = held_[routes_.cache_of(c)];
    const auto add = [&](int b, const char* how) {
      const auto [copy, is_new] = held.try_emplace(b, c);
      LAMINA_CHECK(is_new, "chunk {}: summary {} {}, but chunk {} brought it to this rank before", c, b, how,
                   copy->second);
    };
    for (const int b : chunk(c).received) {
      LAMINA_CHECK(contains(chunk(c).reads, b), "chunk {}: summary {} is received and not read", c, b);
      add(b, "is received");
    }
    for (const int b : chunk(c).finished) add(b, "is finished");
    if (chunk(c).arrives_as_stream >= 0) add(chunk(c).arrives_as_stream, "arrives as the stream");
    for (const int b : chunk(c).reads)
      LAMINA_CHECK(held.contains(b), "chunk {}: summary {} is read, but neither held nor received", c, b);
    // What leaves as the stream is sent as such, never as a summary on the same hop.
    for (const int b : chunk(c).sent)
      LAMINA_CHECK(held.contains(b), "chunk {}: summary {} is sent, but not held", c, b);
    if (!chunk(c).keeps_leaving) return;
    const int leaving = chunk(c).leaves_as_stream;
    LAMINA_CHECK(leaving >= 0, "chunk {}: summary {} is kept, but the stream leaves open", c, leaving);
    bool is_read = false;
    for (int later = c + 1; later < num_chunks_; ++later)
      is_read = is_read || (routes_.cache_of(later) == routes_.cache_of(c) && contains(chunk(later).reads, leaving));
    LAMINA_CHECK(is_read, "chunk {}: summary {} is kept, but no later chunk of the rank reads it", c, leaving);
    add(leaving, "is kept");
  }

  void release(int c) {
    std::map<int, int>& held = held_[routes_.cache_of(c)];
    for (const int b : chunk(c).released) {
      LAMINA_CHECK(held.erase(b) == 1, "chunk {}: summary {} is released, but not held", c, b);
      int lowest = -1;
      for (int reader = num_chunks_ - 1; reader >= 0; --reader)
        if (routes_.cache_of(reader) == routes_.cache_of(c) && contains(chunk(reader).reads, b)) lowest = reader;
      LAMINA_CHECK(lowest == c, "chunk {}: summary {} is released, but its last reader in backward is chunk {}", c, b,
                   lowest);
    }
  }

  const BlockRoutes& routes_;
  const ChunkSplit& split_;
  const BlockLayout& blocks_;
  int num_chunks_;
  std::map<int, std::map<int, int>> held_;  // by cache: summary -> the chunk that brought it
};

}  // namespace

void validate(const BlockRoutes& routes, const ChunkSplit& split, const BlockLayout& blocks) {
  check_sizes(split, blocks, routes.num_ranks);
  Validator(routes, split, blocks).run();
}

std::vector<int> peak_summaries(const BlockRoutes& routes, const Schedule& schedule) {
  LAMINA_CHECK(static_cast<int>(schedule.size()) == routes.num_ranks, "a schedule of {} ranks, routes of {}",
               schedule.size(), routes.num_ranks);
  const auto num_chunks = static_cast<int>(routes.chunks.size());
  std::map<int, int> last_chunk;  // of each cache
  for (int c = 0; c < num_chunks; ++c) last_chunk[routes.cache_of(c)] = c;
  bool forward_only = true;
  for (const auto& actions : schedule)
    for (const Action& action : actions) forward_only = forward_only && action.kind == ActionKind::forward;

  std::vector<int> peaks;
  for (const auto& actions : schedule) {
    int alive = 0, peak = 0;
    std::map<std::pair<int, int>, int> by_cache;  // (cache, micro-batch)
    for (const Action& action : actions) {
      LAMINA_CHECK(action.chunk >= 0 && action.chunk < num_chunks, "{} of {} chunks", to_string(action), num_chunks);
      const ChunkRoutes& chunk = routes.chunks[static_cast<size_t>(action.chunk)];
      const int cache = routes.cache_of(action.chunk);
      int& in_cache = by_cache[{cache, action.microbatch}];
      int released = 0;
      if (action.kind == ActionKind::forward) {
        const auto brought = static_cast<int>(chunk.received.size() + chunk.finished.size()) +
                             (chunk.arrives_as_stream >= 0 ? 1 : 0) + (chunk.keeps_leaving ? 1 : 0);
        alive += brought;
        in_cache += brought;
        peak = std::max(peak, alive);
        if (forward_only && last_chunk[cache] == action.chunk) released = in_cache;
      } else if (action.kind != ActionKind::backward_weight) {
        released = static_cast<int>(chunk.released.size());
      }
      alive -= released;
      in_cache -= released;
    }
    LAMINA_CHECK(alive == 0, "{} summaries are left behind", alive);
    peaks.push_back(peak);
  }
  return peaks;
}

}  // namespace lamina::pipeline
