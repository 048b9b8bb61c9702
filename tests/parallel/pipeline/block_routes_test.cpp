#include "parallel/pipeline/block_routes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "core/base/error.h"

namespace lamina::pipeline {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Decoder layers; block_size 0 is full_attnres.
struct Layout {
  int num_ranks = 1;
  int64_t block_size = 1;
  std::vector<int64_t> layers;
  ChunkSplit split() const { return make_chunk_split(layers); }
  BlockLayout blocks() const {
    ModelConfig config;
    config.num_hidden_layers = 0;
    for (const int64_t count : layers) config.num_hidden_layers += count;
    config.residual = block_size == 0 ? Residual::full_attnres : Residual::block_attnres;
    config.attn_res_block_size = block_size;
    return make_block_layout(config);
  }
  BlockRoutes routes(BlockTransport transport) const {
    return make_block_routes(split(), blocks(), num_ranks, transport);
  }
  int num_chunks() const { return static_cast<int>(layers.size()); }
};

Layout random_layout(std::mt19937& random) {
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  Layout layout;
  layout.num_ranks = draw(1, 5);
  const int num_chunks = layout.num_ranks * draw(1, 5);
  for (int c = 0; c < num_chunks; ++c) layout.layers.push_back(draw(1, 3));
  if (num_chunks > 1 && draw(0, 3) == 0) layout.layers.front() = 0;
  if (num_chunks > 2 && draw(0, 3) == 0) layout.layers.back() = 0;
  layout.block_size = draw(0, 4) == 0 ? 0 : draw(1, 6);
  return layout;
}

std::string golden_path() {
  return LAMINA_SOURCE_DIR "/tests/golden/pipeline/block_routes.txt";
}

TEST(BlockRoutes, EqualAnIndependentProgram) {
  std::ifstream file(golden_path());
  ASSERT_TRUE(file) << golden_path();
  int num_lines = 0;
  for (std::string line; std::getline(file, line); ++num_lines) {
    const size_t colon = line.find(':');
    ASSERT_NE(colon, std::string::npos) << line;
    std::istringstream head(line.substr(0, colon));
    Layout layout;
    std::string transport;
    head >> transport >> layout.num_ranks >> layout.block_size;
    for (int64_t count = 0; head >> count;) layout.layers.push_back(count);
    const BlockRoutes routes = layout.routes(transport == "full" ? BlockTransport::full : BlockTransport::cached);
    std::string found;
    for (size_t c = 0; c + 1 < routes.chunks.size(); ++c) {
      if (c > 0) found += ",";
      const auto& sent = routes.chunks[c].sent;
      for (size_t i = 0; i < sent.size(); ++i) found += (i > 0 ? " " : "") + std::to_string(sent[i]);
    }
    ASSERT_EQ(found, line.substr(colon + 1)) << line;
    ASSERT_NO_THROW(validate(routes, layout.split(), layout.blocks())) << line;
  }
  EXPECT_GT(num_lines, 200);
}

TEST(BlockRoutes, PublishedCounts) {
  const auto count = [](int num_ranks, size_t chunks_per_rank, BlockTransport transport) {
    const Layout layout{num_ranks, 1, std::vector<int64_t>(static_cast<size_t>(num_ranks) * chunks_per_rank, 1)};
    return layout.routes(transport).num_sent();
  };
  EXPECT_EQ(count(4, 2, BlockTransport::cached), 14);
  EXPECT_EQ(count(4, 2, BlockTransport::full), 28);
  EXPECT_EQ(count(3, 3, BlockTransport::cached), 9);
  EXPECT_EQ(count(3, 3, BlockTransport::full), 36);
  EXPECT_EQ(count(4, 4, BlockTransport::cached), 30);
  EXPECT_EQ(count(4, 4, BlockTransport::full), 120);
  EXPECT_EQ(count(4, 1, BlockTransport::cached), 6);
  EXPECT_EQ(count(1, 4, BlockTransport::full), 0);
}

TEST(BlockLayout, BlocksOfSublayers) {
  const Layout layout{1, 2, {5}};
  const BlockLayout blocks = layout.blocks();
  EXPECT_THAT(blocks.begin, ElementsAre(0, 4, 8, 10));  // the last block is short
  EXPECT_EQ(blocks.num_blocks(), 3);
  EXPECT_EQ(blocks.block_of(0), 0);
  EXPECT_EQ(blocks.block_of(3), 0);
  EXPECT_EQ(blocks.block_of(4), 1);
  EXPECT_EQ(blocks.block_of(9), 2);
  EXPECT_TRUE(blocks.opens_block(8));
  EXPECT_FALSE(blocks.opens_block(9));
  EXPECT_THAT((Layout{1, 0, {2}}.blocks().begin), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT((Layout{1, 9, {2}}.blocks().begin), ElementsAre(0, 4));
}

TEST(BlockRoutes, StandardResidualHasNothingToRoute) {
  ModelConfig config;
  config.num_hidden_layers = 4;
  config.residual = Residual::standard;
  const BlockLayout blocks = make_block_layout(config);
  EXPECT_EQ(blocks.num_blocks(), 0);
  const std::vector<int64_t> layers{1, 1, 1, 1};
  const ChunkSplit split = make_chunk_split(layers);
  const BlockRoutes routes = make_block_routes(split, blocks, 2, BlockTransport::cached);
  EXPECT_EQ(routes.num_sent(), 0);
  EXPECT_NO_THROW(validate(routes, split, blocks));
  for (const ChunkRoutes& chunk : routes.chunks) {
    EXPECT_THAT(chunk.reads, IsEmpty());
    EXPECT_EQ(chunk.arrives_as_stream, -1);
    EXPECT_EQ(chunk.leaves_as_stream, -1);
  }
}

TEST(BlockRoutes, ChunksWithoutLayers) {
  // Rank 0: embedding only, then layers 2-3; rank 1: layers 0-1, then the head only.
  const BlockRoutes routes = Layout{2, 2, {0, 2, 2, 0}}.routes(BlockTransport::cached);
  EXPECT_THAT(routes.chunks[0].reads, IsEmpty());
  EXPECT_EQ(routes.chunks[0].arrives_as_stream, -1);
  EXPECT_EQ(routes.chunks[0].leaves_as_stream, 0);
  EXPECT_TRUE(routes.chunks[0].keeps_leaving);  // chunk 2 reads it
  EXPECT_THAT(routes.chunks[0].released, IsEmpty());
  EXPECT_EQ(routes.chunks[1].arrives_as_stream, 0);
  EXPECT_EQ(routes.chunks[1].leaves_as_stream, 1);
  EXPECT_TRUE(routes.chunks[1].keeps_leaving);  // the head reads it
  EXPECT_THAT(routes.chunks[1].sent, IsEmpty());
  EXPECT_EQ(routes.chunks[2].arrives_as_stream, 1);
  EXPECT_EQ(routes.chunks[2].leaves_as_stream, -1);  // the last block's sum is read as the open one
  EXPECT_THAT(routes.chunks[2].released, ElementsAre(0, 1));
  EXPECT_EQ(routes.chunks[3].arrives_as_stream, -1);
  EXPECT_THAT(routes.chunks[3].reads, ElementsAre(0, 1));
  EXPECT_THAT(routes.chunks[3].received, IsEmpty());
  EXPECT_THAT(routes.chunks[3].released, ElementsAre(1));
  EXPECT_THAT(routes.chunks[1].released, ElementsAre(0));

  const BlockRoutes lone = Layout{3, 3, {0, 3, 0}}.routes(BlockTransport::cached);
  EXPECT_FALSE(lone.chunks[0].keeps_leaving);  // rank 0 never reads the embedding's summary
  EXPECT_THAT(lone.chunks[1].sent, ElementsAre(0));
}

// ---- who holds what: a walk over the sublayers of one micro-batch, with nothing of the implementation's reasoning ----

struct Walk {
  struct Chunk {
    std::set<int> reads, finished;
    int arrives = -1, leaves = -1;
  };
  std::vector<Chunk> chunks;
};

Walk walk(const ChunkSplit& split, const BlockLayout& blocks) {
  Walk result;
  const std::set<int> openings(blocks.begin.begin(), blocks.begin.end() - 1);
  std::set<int> finished;
  int stream = 0;  // the summary that the stream is or will be
  for (int c = 0; c < split.num_chunks(); ++c) {
    Walk::Chunk chunk;
    const int begin = split.begin[static_cast<size_t>(c)], end = split.begin[static_cast<size_t>(c) + 1];
    for (int s = begin; s < end; ++s) {
      if (openings.contains(s)) {
        if (s == begin)
          chunk.arrives = stream;
        else
          chunk.finished.insert(stream);
        finished.insert(stream++);
      }
      chunk.reads = finished;
    }
    const bool is_last = c + 1 == split.num_chunks();
    if (is_last) chunk.reads = finished;  // the head
    if (!is_last && openings.contains(end)) chunk.leaves = stream;
    result.chunks.push_back(chunk);
  }
  return result;
}

TEST(BlockRoutes, EveryReadIsHeldOnceAndReleasedOnce) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 400; ++trial) {
    const Layout layout = random_layout(random);
    const Walk expected = walk(layout.split(), layout.blocks());
    for (const BlockTransport transport : {BlockTransport::cached, BlockTransport::full}) {
      const BlockRoutes routes = layout.routes(transport);
      SCOPED_TRACE(routes.to_string());
      ASSERT_NO_THROW(validate(routes, layout.split(), layout.blocks()));
      const bool is_full = transport == BlockTransport::full && layout.num_ranks > 1;
      EXPECT_EQ(routes.transport, is_full ? BlockTransport::full : BlockTransport::cached);
      std::map<std::pair<int, int>, int> num_brought, num_released;  // (cache, summary)
      std::map<std::pair<int, int>, int> lowest;
      const auto cache = [&](int c) { return is_full ? 1000 + c : c % layout.num_ranks; };
      for (int c = layout.num_chunks() - 1; c >= 0; --c)
        for (const int b : expected.chunks[static_cast<size_t>(c)].reads) lowest[{cache(c), b}] = c;
      for (int c = 0; c < layout.num_chunks(); ++c) {
        const ChunkRoutes& chunk = routes.chunks[static_cast<size_t>(c)];
        const Walk::Chunk& wanted = expected.chunks[static_cast<size_t>(c)];
        ASSERT_EQ(std::set<int>(chunk.reads.begin(), chunk.reads.end()), wanted.reads);
        ASSERT_EQ(std::set<int>(chunk.finished.begin(), chunk.finished.end()), wanted.finished);
        ASSERT_EQ(chunk.arrives_as_stream, wanted.arrives);
        ASSERT_EQ(chunk.leaves_as_stream, wanted.leaves);
        ASSERT_EQ(chunk.received, c > 0 ? routes.chunks[static_cast<size_t>(c) - 1].sent : std::vector<int>{});
        for (const int b : chunk.received) ++num_brought[{cache(c), b}];
        for (const int b : chunk.finished) ++num_brought[{cache(c), b}];
        if (chunk.arrives_as_stream >= 0) ++num_brought[{cache(c), chunk.arrives_as_stream}];
        for (const int b : chunk.reads) ASSERT_EQ((num_brought[{cache(c), b}]), 1) << "chunk " << c << " reads " << b;
        for (const int b : chunk.sent) ASSERT_EQ((num_brought[{cache(c), b}]), 1) << "chunk " << c << " sends " << b;
        const bool is_read_later = wanted.leaves >= 0 && lowest.contains({cache(c), wanted.leaves});
        ASSERT_EQ(chunk.keeps_leaving, is_read_later && layout.num_ranks > 1);
        if (chunk.keeps_leaving) ++num_brought[{cache(c), wanted.leaves}];
        for (const int b : chunk.released) {
          ++num_released[{cache(c), b}];
          ASSERT_EQ((lowest[{cache(c), b}]), c);
        }
        for (int other = 0; other < layout.num_chunks(); ++other)
          ASSERT_EQ(routes.cache_of(c) == routes.cache_of(other), cache(c) == cache(other));
      }
      EXPECT_EQ(num_brought, num_released);
    }
  }
}

// ---- faults ----

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const InternalError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

class Faults : public ::testing::Test {
 protected:
  // One block per chunk on 3 x 2.
  const Layout layout_{3, 1, {1, 1, 1, 1, 1, 1}};
  BlockRoutes routes_ = layout_.routes(BlockTransport::cached);
  ChunkRoutes& chunk(size_t c) { return routes_.chunks[c]; }
  std::string message() {
    return message_of([&] { validate(routes_, layout_.split(), layout_.blocks()); });
  }
};

TEST_F(Faults, NoneByDefault) {
  EXPECT_NO_THROW(validate(routes_, layout_.split(), layout_.blocks()));
  EXPECT_THAT(chunk(1).received, ElementsAre(0));
  EXPECT_THAT(chunk(2).received, ElementsAre(0, 1));
  EXPECT_THAT(chunk(3).received, ElementsAre(2));  // 0 arrived as the stream, 1 was finished at its end and kept
}

TEST_F(Faults, DroppedSummary) {
  std::erase(chunk(1).sent, 1);
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 2"), HasSubstr("summary 1 is received, but no chunk before sends it")));
  std::erase(chunk(2).received, 1);
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 2"), HasSubstr("summary 1 is read, but neither held nor received")));
}

TEST_F(Faults, SummarySentTwice) {
  chunk(1).sent = {0, 1, 1};
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 1"), HasSubstr("summary 1 in `sent` is there twice")));
  routes_ = layout_.routes(BlockTransport::cached);
  chunk(2).sent = {1, 2};  // 3's rank finished summary 1 itself
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 2"), HasSubstr("summary 1 is sent, but chunk 3 does not receive it")));
  chunk(3).received = {1, 2};
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 3"), HasSubstr("summary 1 is received, but chunk 0 brought it")));
}

TEST_F(Faults, WrongId) {
  chunk(0).sent = {6};
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 0"), HasSubstr("summary 6 in `sent` does not exist")));
  routes_ = layout_.routes(BlockTransport::cached);
  chunk(0).sent = chunk(1).received = {4};
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 0"), HasSubstr("summary 4 is sent, but not held")));
  routes_ = layout_.routes(BlockTransport::cached);
  chunk(0).sent = chunk(1).received = {1};  // the stream itself
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 0"), HasSubstr("summary 1")));
  routes_ = layout_.routes(BlockTransport::cached);
  chunk(4).reads.pop_back();
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 4"), HasSubstr("summary 4 is not in `reads`")));
}

TEST_F(Faults, WrongStream) {
  chunk(3).arrives_as_stream = -1;
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 3"), HasSubstr("the split says 3")));
  routes_ = layout_.routes(BlockTransport::cached);
  chunk(2).leaves_as_stream = 2;
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 2"), HasSubstr("summary 2 leaves as the stream, the split says 3")));
  routes_ = layout_.routes(BlockTransport::cached);
  chunk(0).finished = {0};
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 0"), HasSubstr("summary 0 is in `finished`, against the split")));
}

TEST_F(Faults, WrongKeeping) {
  chunk(0).keeps_leaving = false;
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 3"), HasSubstr("summary 1 is read, but neither held nor received")));
  routes_ = layout_.routes(BlockTransport::cached);
  chunk(4).keeps_leaving = true;
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 4"), HasSubstr("summary 5 is kept, but no later chunk")));
}

TEST_F(Faults, WrongRelease) {
  std::erase(chunk(0).released, 0);
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 0"), HasSubstr("summary 0 is brought and never released")));
  chunk(3).released.insert(chunk(3).released.begin(), 0);  // chunk 0 still reads it
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 3"), HasSubstr("summary 0 is released, but its last reader")));
  chunk(0).released = {0};
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 3"), HasSubstr("summary 0 is released")));
  routes_ = layout_.routes(BlockTransport::cached);
  chunk(0).released.push_back(1);
  EXPECT_THAT(message(), AllOf(HasSubstr("chunk 0"), HasSubstr("summary 1 is released, but not held")));
}

TEST_F(Faults, EveryListAndBothTransports) {
  // Any single id taken from or put into any list of any chunk is found, and the message names a chunk and that summary.
  std::mt19937 random(3);
  int num_faults = 0;
  for (int trial = 0; trial < 10; ++trial) {
    const Layout layout = random_layout(random);
    for (const BlockTransport transport : {BlockTransport::cached, BlockTransport::full}) {
      const BlockRoutes good = layout.routes(transport);
      for (size_t c = 0; c < good.chunks.size(); ++c) {
        for (const auto list : {&ChunkRoutes::reads, &ChunkRoutes::received, &ChunkRoutes::sent, &ChunkRoutes::finished,
                                &ChunkRoutes::released}) {
          for (int b = 0; b < layout.blocks().num_blocks(); ++b) {
            BlockRoutes bad = good;
            std::vector<int>& ids = bad.chunks[c].*list;
            if (std::erase(ids, b) == 0) ids.insert(std::lower_bound(ids.begin(), ids.end(), b), b);
            const std::string found = message_of([&] { validate(bad, layout.split(), layout.blocks()); });
            ASSERT_THAT(found, AllOf(HasSubstr("chunk "), HasSubstr("summary " + std::to_string(b) + " ")))
                << good.to_string();
            ++num_faults;
          }
        }
      }
    }
  }
  EXPECT_GT(num_faults, 1000);
}

TEST(BlockRoutes, RefuseImpossibleSplits) {
  const std::vector<int64_t> hole{1, 0, 1}, negative{-1, 2}, nothing{0, 0};
  EXPECT_THAT(message_of([&] { make_chunk_split(hole); }), HasSubstr("chunk 1 of 3 has 0 sublayers"));
  EXPECT_THAT(message_of([&] { make_chunk_split(negative); }), HasSubstr("chunk 0 of 2 has -2 sublayers"));
  EXPECT_THAT(message_of([&] { make_chunk_split(nothing); }), HasSubstr("no sublayers"));
  EXPECT_THAT(message_of([&] { make_chunk_split({}); }), HasSubstr("needs a chunk"));
  const Layout small{2, 1, {1, 1}}, large{2, 1, {1, 2}};
  EXPECT_THAT(message_of([&] { make_block_routes(small.split(), large.blocks(), 2, BlockTransport::cached); }),
              HasSubstr("blocks of 6 sublayers, chunks of 4"));
  EXPECT_THAT(message_of([&] { make_block_routes(small.split(), small.blocks(), 0, BlockTransport::cached); }),
              HasSubstr("0 ranks"));
  EXPECT_THAT(
      message_of([&] {
        validate(small.routes(BlockTransport::full), Layout{2, 1, {1, 1, 1}}.split(), Layout{2, 1, {1, 1, 1}}.blocks());
      }),
      HasSubstr("routes of 2 chunks, a split of 3"));
}

// ---- peak ----

// A random order of all actions that the dependencies allow, dealt to the ranks.
Schedule random_schedule(std::mt19937& random, int num_ranks, int num_chunks, int num_microbatches,
                         bool split_backward) {
  std::set<Action> done;
  std::vector<Action> left;
  for (int c = 0; c < num_chunks; ++c)
    for (int m = 0; m < num_microbatches; ++m) {
      left.push_back({c, ActionKind::forward, m});
      left.push_back({c, split_backward ? ActionKind::backward_input : ActionKind::backward, m});
      if (split_backward) left.push_back({c, ActionKind::backward_weight, m});
    }
  const auto is_ready = [&](const Action& a) {
    if (a.kind == ActionKind::forward) return a.chunk == 0 || done.contains({a.chunk - 1, a.kind, a.microbatch});
    if (a.kind == ActionKind::backward_weight)
      return done.contains({a.chunk, ActionKind::backward_input, a.microbatch});
    return done.contains({a.chunk, ActionKind::forward, a.microbatch}) &&
           (a.chunk + 1 == num_chunks || done.contains({a.chunk + 1, a.kind, a.microbatch}));
  };
  Schedule schedule(static_cast<size_t>(num_ranks));
  while (!left.empty()) {
    std::shuffle(left.begin(), left.end(), random);
    const auto next = std::find_if(left.begin(), left.end(), is_ready);
    schedule[static_cast<size_t>(next->chunk % num_ranks)].push_back(*next);
    done.insert(*next);
    left.erase(next);
  }
  return schedule;
}

// From first principles: a copy lives from the first action of its cache that brings it to the last backward that reads it.
int expected_peak(const Walk& walked, const std::vector<Action>& actions, int num_ranks, bool is_full, int num_blocks) {
  std::vector<int> alive(actions.size(), 0);
  std::set<int> microbatches, chunks;
  for (const Action& action : actions) microbatches.insert(action.microbatch), chunks.insert(action.chunk);
  const auto chunk_of = [&](size_t i) -> const Walk::Chunk& {
    return walked.chunks[static_cast<size_t>(actions[i].chunk)];
  };
  const std::set<int> caches = is_full ? chunks : std::set<int>{-1};
  for (const int m : microbatches)
    for (const int cache : caches)
      for (int b = 0; b < num_blocks; ++b) {
        size_t first = actions.size(), last = 0;
        bool is_read = false;
        for (size_t i = 0; i < actions.size(); ++i) {
          if (actions[i].microbatch != m || (is_full && actions[i].chunk != cache)) continue;
          const bool reads = chunk_of(i).reads.contains(b);
          const bool makes = chunk_of(i).leaves == b && !is_full && num_ranks > 1;
          if (actions[i].kind == ActionKind::forward && (reads || makes)) first = std::min(first, i);
          if (actions[i].kind == ActionKind::backward || actions[i].kind == ActionKind::backward_input)
            if (reads) last = i, is_read = true;
        }
        for (size_t i = first; is_read && i <= last; ++i) ++alive[i];
      }
  return *std::max_element(alive.begin(), alive.end());
}

TEST(PeakSummaries, EqualsTheLivesOfAllCopies) {
  std::mt19937 random(11);
  for (int trial = 0; trial < 150; ++trial) {
    const Layout layout = random_layout(random);
    if (layout.num_chunks() > 12) continue;
    const Walk walked = walk(layout.split(), layout.blocks());
    const Schedule schedule = random_schedule(random, layout.num_ranks, layout.num_chunks(), 3, trial % 2 == 0);
    for (const BlockTransport transport : {BlockTransport::cached, BlockTransport::full}) {
      const BlockRoutes routes = layout.routes(transport);
      const std::vector<int> peaks = peak_summaries(routes, schedule);
      ASSERT_EQ(static_cast<int>(peaks.size()), layout.num_ranks);
      for (size_t r = 0; r < peaks.size(); ++r)
        ASSERT_EQ(peaks[r], expected_peak(walked, schedule[r], layout.num_ranks,
                                          routes.transport == BlockTransport::full, layout.blocks().num_blocks()))
            << routes.to_string() << "rank " << r;
    }
  }
}

TEST(PeakSummaries, ByHand) {
  using enum ActionKind;
  const BlockRoutes routes = Layout{2, 1, {1, 1}}.routes(BlockTransport::cached);
  // Chunk 0 holds the embedding, chunk 1 the embedding and block 0.
  const Schedule one_at_a_time{{{0, forward, 0}, {0, backward, 0}, {0, forward, 1}, {0, backward, 1}},
                               {{1, forward, 0}, {1, backward, 0}, {1, forward, 1}, {1, backward, 1}}};
  EXPECT_THAT(peak_summaries(routes, one_at_a_time), ElementsAre(1, 2));
  const Schedule all_at_once{{{0, forward, 0}, {0, forward, 1}, {0, backward, 0}, {0, backward, 1}},
                             {{1, forward, 0}, {1, forward, 1}, {1, backward, 0}, {1, backward, 1}}};
  EXPECT_THAT(peak_summaries(routes, all_at_once), ElementsAre(2, 4));
  const Schedule forward_only{{{0, forward, 0}, {0, forward, 1}}, {{1, forward, 0}, {1, forward, 1}}};
  EXPECT_THAT(peak_summaries(routes, forward_only), ElementsAre(1, 2));
  const Schedule unfinished{{{0, forward, 0}}, {{1, forward, 0}, {1, backward, 0}}};
  EXPECT_THAT(message_of([&] { peak_summaries(routes, unfinished); }), HasSubstr("1 summaries are left behind"));
  EXPECT_THAT(message_of([&] { peak_summaries(routes, {{}}); }), HasSubstr("a schedule of 1 ranks, routes of 2"));
}

TEST(PeakSummaries, ForwardOnlyFreesAfterTheLastChunkOfACache) {
  using enum ActionKind;
  const Layout layout{2, 1, {1, 1, 1, 1}};
  const Schedule schedule{{{0, forward, 0}, {2, forward, 0}, {0, forward, 1}, {2, forward, 1}},
                          {{1, forward, 0}, {3, forward, 0}, {1, forward, 1}, {3, forward, 1}}};
  // Rank 0 ends with 0, 1, 2; rank 1 with 0, 1, 2, 3. With `full` only what one chunk reads is alive.
  EXPECT_THAT(peak_summaries(layout.routes(BlockTransport::cached), schedule), ElementsAre(3, 4));
  EXPECT_THAT(peak_summaries(layout.routes(BlockTransport::full), schedule), ElementsAre(3, 4));
  const Schedule breadth_first{{{0, forward, 0}, {0, forward, 1}, {2, forward, 0}, {2, forward, 1}},
                               {{1, forward, 0}, {1, forward, 1}, {3, forward, 0}, {3, forward, 1}}};
  EXPECT_THAT(peak_summaries(layout.routes(BlockTransport::cached), breadth_first), ElementsAre(5, 7));
  EXPECT_THAT(peak_summaries(layout.routes(BlockTransport::full), breadth_first), ElementsAre(3, 4));
}

}  // namespace
}  // namespace lamina::pipeline
