#include "parallel/pipeline/block_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "core/base/error.h"
#include "core/device/memory_ledger.h"

namespace lamina::pipeline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t tokens = 3, hidden = 5;

// Four chunks of a layer each, a block per layer, on two ranks. Summary 0 is the embedding, c + 1 what chunk c finishes.
struct Fixture {
  explicit Fixture(BlockTransport transport = BlockTransport::cached, int rank = 0, int num_microbatches = 2,
                   DType dtype = DType::f32)
      : routes(make(transport)), cache(routes, rank, tokens * hidden, dtype, {}, &ledger) {
    cache.begin(num_microbatches, {tokens, hidden});
  }
  static BlockRoutes make(BlockTransport transport) {
    ModelConfig config;
    config.num_hidden_layers = 4;
    config.residual = Residual::block_attnres;
    config.attn_res_block_size = 1;
    const std::vector<int64_t> layers(4, 1);
    return make_block_routes(make_chunk_split(layers), make_block_layout(config), 2, transport);
  }
  const ChunkRoutes& chunk(int index) const { return routes.chunks[static_cast<size_t>(index)]; }

  MemoryLedger ledger;
  BlockRoutes routes;
  BlockCache cache;
};

template <class Run>
std::string failure_of(Run&& run) {
  try {
    run();
  } catch (const InternalError& error) {
    return error.what();
  }
  return "";
}

TEST(BlockCache, ValuesAreThereFromPutToRelease) {
  Fixture f;
  const TensorView room = f.cache.put(0, 1, 0);
  EXPECT_EQ(room.shape, Shape({tokens, hidden}));
  EXPECT_EQ(room.dtype, DType::f32);
  EXPECT_EQ(f.cache.value(2, 1, 0).data, room.data) << "all chunks of a rank share a copy";
  EXPECT_THAT(failure_of([&] { f.cache.value(0, 0, 0); }),
              HasSubstr("summary 0 of micro-batch 0 is not on pipeline rank 0"));
  f.cache.release(2, 1, 0);
  EXPECT_THAT(failure_of([&] { f.cache.value(0, 1, 0); }),
              HasSubstr("summary 0 of micro-batch 1 is not on pipeline rank 0"));
  f.cache.check_empty();
}

TEST(BlockCache, WithFullTransportEachChunkHasItsOwnCopy) {
  Fixture f(BlockTransport::full);
  const TensorView first = f.cache.put(0, 0, 0), second = f.cache.put(2, 0, 0);
  EXPECT_NE(first.data, second.data);
  f.cache.release(0, 0, 0);
  EXPECT_EQ(f.cache.value(2, 0, 0).data, second.data);
  f.cache.release(2, 0, 0);
  f.cache.check_empty();
}

TEST(BlockCache, ASecondCopyIsRefused) {
  Fixture f;
  f.cache.put(0, 0, 0);
  EXPECT_THAT(failure_of([&] { f.cache.put(2, 0, 0); }),
              AllOf(HasSubstr("summary 0 of micro-batch 0"), HasSubstr("already (chunk 2)")));
  EXPECT_THAT(failure_of([&] { f.cache.reserve(2, 0, 0); }), HasSubstr("already (chunk 2)"));
  f.cache.release(0, 0, 0);
}

TEST(BlockCache, RoomForAMessageIsNoValueYet) {
  Fixture f;
  const TensorView room = f.cache.reserve(2, 0, 1);
  EXPECT_EQ(f.cache.num_held(), 0);
  EXPECT_THAT(failure_of([&] { f.cache.value(2, 0, 1); }), HasSubstr("summary 1 of micro-batch 0 is not on"));
  f.cache.arrived(2, 0, 1);
  EXPECT_EQ(f.cache.value(2, 0, 1).data, room.data);
  EXPECT_EQ(f.cache.num_held(), 1);
  EXPECT_THAT(failure_of([&] { f.cache.arrived(2, 0, 1); }),
              HasSubstr("summary 1 of micro-batch 0 arrived in chunk 2"));
  EXPECT_THAT(failure_of([&] { f.cache.arrived(2, 0, 2); }),
              HasSubstr("summary 2 of micro-batch 0 arrived in chunk 2"));
  f.cache.release(2, 0, 1);
}

TEST(BlockCache, ReleasingTwiceOrNothingIsRefused) {
  Fixture f;
  EXPECT_THAT(failure_of([&] { f.cache.release(0, 0, 0); }), HasSubstr("summary 0 of micro-batch 0 is released twice"));
  f.cache.put(0, 0, 0);
  f.cache.release(0, 0, 0);
  EXPECT_THAT(failure_of([&] { f.cache.release(2, 0, 0); }),
              AllOf(HasSubstr("summary 0 of micro-batch 0"), HasSubstr("released twice (chunk 2)")));
}

TEST(BlockCache, APinnedValueOutlivesItsRelease) {
  Fixture f;
  const TensorView room = f.cache.put(0, 0, 0);
  f.cache.pin(0, 0, 0);
  f.cache.pin(0, 0, 0);
  f.cache.release(0, 0, 0);
  EXPECT_EQ(f.cache.num_held(), 1) << "messages still read it";
  EXPECT_THAT(failure_of([&] { f.cache.release(0, 0, 0); }), HasSubstr("released twice"));
  f.cache.unpin(0, 0, 0);
  EXPECT_EQ(f.cache.value(0, 0, 0).data, room.data);
  EXPECT_THAT(failure_of([&] { f.cache.check_empty(); }), HasSubstr("left a value behind"));
  f.cache.unpin(0, 0, 0);
  EXPECT_EQ(f.cache.num_held(), 0);
  f.cache.check_empty();
  EXPECT_NE(failure_of([&] { f.cache.unpin(0, 0, 0); }), "");
  EXPECT_THAT(failure_of([&] { f.cache.pin(2, 0, 1); }), HasSubstr("sent by chunk 2, which does not hold it"));
}

TEST(BlockCache, ReleaseAllTakesOneMicroBatchAndLeavesPins) {
  Fixture f;
  f.cache.put(0, 0, 0);
  f.cache.put(0, 0, 1);
  f.cache.put(0, 1, 0);
  f.cache.pin(0, 0, 1);
  f.cache.release_all(0);
  EXPECT_EQ(f.cache.num_held(), 2);
  EXPECT_NO_THROW(f.cache.value(0, 1, 0));
  f.cache.unpin(0, 0, 1);
  f.cache.release_all(0);  // nothing is left: no error
  f.cache.release_all(1);
  f.cache.check_empty();
}

TEST(BlockCache, PeakCountsValuesAtOneTime) {
  Fixture f;
  f.cache.put(0, 0, 0);
  f.cache.put(0, 1, 0);
  f.cache.release(0, 0, 0);
  f.cache.put(0, 0, 1);
  f.cache.reserve(2, 0, 2);  // not held before it has arrived
  EXPECT_EQ(f.cache.num_held(), 2);
  EXPECT_EQ(f.cache.peak_held(), 2);
  EXPECT_EQ(f.cache.num_buffers(), 3);
  f.cache.arrived(2, 0, 2);
  EXPECT_EQ(f.cache.peak_held(), 3);
  f.cache.release_all(0);
  f.cache.release_all(1);
  EXPECT_EQ(f.cache.peak_held(), 3);
  f.cache.begin(1, {tokens, hidden});
  EXPECT_EQ(f.cache.peak_held(), 0);
}

// All that a rank's schedule does with one summary's gradient: readers from the last chunk to the first, the hops between.
TEST(BlockCache, AGradientIsCompleteWhenAllDepositorsWereThereOnce) {
  Fixture f;  // rank 0: chunks 0 and 2; the embedding is read by both and sent by chunk 0
  ASSERT_THAT(f.chunk(0).reads, ::testing::Contains(0));
  ASSERT_THAT(f.chunk(2).reads, ::testing::Contains(0));
  ASSERT_THAT(f.chunk(0).sent, ::testing::Contains(0));
  const auto incomplete = [&](int parts) {
    EXPECT_THAT(failure_of([&] { (void)f.cache.complete_gradient(0, 0, 0); }),
                AllOf(HasSubstr("summary 0, micro-batch 0"), HasSubstr("chunk 0"),
                      HasSubstr(fmt::format("has {} of its 3 parts", parts))));
  };
  incomplete(0);
  const BlockCache::Accumulator first = f.cache.deposit_of_reader(2, 0, 0);
  EXPECT_EQ(*first.mode, ops::GradMode::overwrite);
  *first.mode = ops::GradMode::accumulate;
  const BlockCache::Accumulator again = f.cache.deposit_of_reader(2, 0, 0);  // its second read of the same summary
  EXPECT_EQ(again.gradient.data, first.gradient.data);
  EXPECT_EQ(*again.mode, ops::GradMode::accumulate);
  incomplete(1);
  f.cache.deposit_of_hop(0, 0, 0);
  incomplete(2);
  f.cache.deposit_of_reader(0, 0, 0);
  EXPECT_EQ(f.cache.complete_gradient(0, 0, 0).data, first.gradient.data);
  EXPECT_THAT(failure_of([&] { f.cache.deposit_of_hop(0, 0, 0); }),
              AllOf(HasSubstr("summary 0, micro-batch 0"), HasSubstr("came back twice on the hop out of chunk 0")));
  EXPECT_THAT(failure_of([&] { f.cache.check_empty(); }),
              HasSubstr("summary 0 of micro-batch 0 left a gradient behind"));
  f.cache.drop_gradient(0, 0, 0);
  f.cache.drop_gradient(0, 0, 0);  // gone already: no error
  f.cache.check_empty();
}

// A chunk that deposits, is followed by another, and comes back: too many parts, not a silent sum.
TEST(BlockCache, ADepositThatComesBackIsTooMany) {
  Fixture f;
  f.cache.deposit_of_reader(2, 0, 0);
  f.cache.deposit_of_hop(0, 0, 0);
  f.cache.deposit_of_reader(2, 0, 0);
  f.cache.deposit_of_reader(0, 0, 0);
  EXPECT_THAT(failure_of([&] { (void)f.cache.complete_gradient(0, 0, 0); }), HasSubstr("has 4 of its 3 parts"));
  f.cache.drop_gradient(0, 0, 0);
}

TEST(BlockCache, GradientsOfMicroBatchesAreApart) {
  Fixture f;
  const auto a = f.cache.deposit_of_reader(2, 0, 0), b = f.cache.deposit_of_reader(2, 1, 0);
  EXPECT_NE(a.gradient.data, b.gradient.data);
  f.cache.drop_gradient(2, 0, 0);
  f.cache.drop_gradient(2, 1, 0);
}

TEST(BlockCache, GradientsAccumulateInTheAccumulationDtype) {
  Fixture f(BlockTransport::cached, 0, 1, DType::bf16);
  EXPECT_EQ(f.cache.put(0, 0, 0).dtype, DType::bf16);
  EXPECT_EQ(f.cache.deposit_of_reader(2, 0, 0).gradient.dtype, DType::f32);
  f.cache.release(0, 0, 0);
  f.cache.drop_gradient(0, 0, 0);
}

TEST(BlockCache, NoGradientIsExpectedOfWhatNobodyReads) {
  Fixture f;  // what chunk 2 finishes at its end is read by later chunks of the other rank only
  const int summary = f.chunk(2).leaves_as_stream;
  ASSERT_GE(summary, 0);
  ASSERT_FALSE(f.chunk(2).keeps_leaving);
  EXPECT_FALSE(f.cache.complete_gradient(2, 0, summary));
}

TEST(BlockCache, BeginWantsAnEmptyCacheAndFittingSummaries) {
  Fixture f;
  f.cache.put(0, 1, 0);
  EXPECT_THAT(failure_of([&] {
                f.cache.begin(1, {tokens, hidden});
              }),
              HasSubstr("summary 0 of micro-batch 1 left a value behind on pipeline rank 0"));
  f.cache.release(0, 1, 0);
  EXPECT_NE(failure_of([&] { f.cache.begin(1, {tokens + 1, hidden}); }), "");
  f.cache.begin(1, {tokens - 1, hidden});  // a smaller last micro-batch
  EXPECT_EQ(f.cache.put(0, 0, 0).shape, Shape({tokens - 1, hidden}));
  f.cache.release(0, 0, 0);
}

TEST(BlockCache, ForeignChunksAndUnknownSummariesAreRefused) {
  Fixture f;
  EXPECT_THAT(failure_of([&] { f.cache.put(1, 0, 0); }), HasSubstr("chunk 1 on rank 0 of 2"));
  EXPECT_NE(failure_of([&] { f.cache.put(0, 2, 0); }), "");
  EXPECT_NE(failure_of([&] { f.cache.put(0, -1, 0); }), "");
  EXPECT_NE(failure_of([&] { f.cache.put(0, 0, 5); }), "");
  EXPECT_NE(failure_of([&] { f.cache.put(0, 0, -1); }), "");
}

TEST(BlockCache, ASteadyStateReusesItsBuffers) {
  Fixture f;
  std::set<const void*> seen;
  int64_t allocations = 0;
  for (int pass = 0; pass < 4; ++pass) {
    f.cache.begin(2, {tokens, hidden});
    for (int m = 0; m < 2; ++m) {
      seen.insert(f.cache.put(0, m, 0).data);
      seen.insert(f.cache.reserve(2, m, 1).data);
      f.cache.arrived(2, m, 1);
    }
    for (int m = 0; m < 2; ++m) {
      seen.insert(f.cache.deposit_of_reader(2, m, 0).gradient.data);
      f.cache.drop_gradient(2, m, 0);
      f.cache.release_all(m);
    }
    if (pass == 0) allocations = f.ledger.num_allocations();
    EXPECT_EQ(f.ledger.num_allocations(), allocations) << "pass " << pass;
  }
  EXPECT_EQ(seen.size(), 5u) << "four values and one accumulator";
  EXPECT_EQ(f.cache.num_buffers(), 4);
  EXPECT_EQ(f.ledger.entries().at("block summaries").num_allocations, 4);
  EXPECT_EQ(f.ledger.entries().at("block summary gradients").num_allocations, 1);
}

}  // namespace
}  // namespace lamina::pipeline
