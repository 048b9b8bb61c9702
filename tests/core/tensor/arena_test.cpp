#include "core/tensor/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace lamina {
namespace {

constexpr int64_t mib = int64_t{1} << 20;

bool overlap(const TensorView& a, const TensorView& b) {
  const char* a_begin = static_cast<const char*>(a.data);
  const char* b_begin = static_cast<const char*>(b.data);
  return a_begin < b_begin + b.num_bytes() && b_begin < a_begin + a.num_bytes();
}

TEST(Arena, AlignsEveryViewAndOverlapsNone) {
  Arena arena(Device{}, nullptr, "test");
  std::vector<TensorView> views;
  for (int64_t count : {1, 3, 64, 65, 1000, 0, 7})
    for (DType dtype : {DType::bf16, DType::f32, DType::f64}) views.push_back(arena.take(dtype, {count}));
  for (size_t i = 0; i < views.size(); ++i) {
    EXPECT_NE(views[i].data, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(views[i].data) % 64, 0u);
    for (size_t j = 0; j < i; ++j) EXPECT_FALSE(overlap(views[i], views[j])) << i << " and " << j;
  }
}

TEST(Arena, ViewHasTheShapeAskedForAndAllItsBytes) {
  Arena arena(Device{}, nullptr, "test");
  const TensorView view = arena.take(DType::f32, {3, 5});
  EXPECT_EQ(view.shape, Shape({3, 5}));
  EXPECT_EQ(view.dtype, DType::f32);
  EXPECT_TRUE(view.is_contiguous());
  std::memset(view.data, 0xff, static_cast<size_t>(view.num_bytes()));  // the address sanitizer watches
  EXPECT_EQ(arena.used_bytes(), 64);
}

TEST(Arena, ReleaseGivesTheSameMemoryAgain) {
  Arena arena(Device{}, nullptr, "test");
  const TensorView kept = arena.take(DType::f32, {10});
  const Arena::Mark mark = arena.mark();
  const TensorView first = arena.take(DType::f32, {100});
  arena.release(mark);
  EXPECT_EQ(arena.used_bytes(), 64);
  const TensorView second = arena.take(DType::f32, {100});
  EXPECT_EQ(second.data, first.data);
  EXPECT_FALSE(overlap(kept, second));
}

TEST(Arena, NestedScopesReleaseLastInFirstOut) {
  Arena arena(Device{}, nullptr, "test");
  arena.take(DType::f32, {16});
  {
    const ArenaScope outer(arena);
    arena.take(DType::f32, {16});
    {
      const ArenaScope inner(arena);
      arena.take(DType::f32, {16});
      EXPECT_EQ(arena.used_bytes(), 192);
    }
    EXPECT_EQ(arena.used_bytes(), 128);
  }
  EXPECT_EQ(arena.used_bytes(), 64);
  EXPECT_EQ(arena.peak_bytes(), 192);
}

TEST(Arena, ReleaseOutOfOrderIsRefused) {
  Arena arena(Device{}, nullptr, "test");
  const Arena::Mark outer = arena.mark();
  arena.take(DType::f32, {16});
  const Arena::Mark inner = arena.mark();
  arena.release(outer);
  EXPECT_THROW(arena.release(inner), InternalError);
}

TEST(Arena, ReleaseReachesBackOverSlabs) {
  MemoryLedger ledger;
  Arena arena(Device{}, &ledger, "test");
  const Arena::Mark empty = arena.mark();
  const TensorView small = arena.take(DType::f32, {16});
  const Arena::Mark mark = arena.mark();
  const TensorView large = arena.take(DType::f32, {mib});
  const TensorView larger = arena.take(DType::f32, {2 * mib});
  const int64_t allocations = ledger.num_allocations();
  arena.release(mark);
  EXPECT_EQ(arena.take(DType::f32, {mib}).data, large.data);
  EXPECT_EQ(arena.take(DType::f32, {2 * mib}).data, larger.data);
  arena.release(empty);
  EXPECT_EQ(arena.used_bytes(), 0);
  EXPECT_EQ(arena.take(DType::f32, {16}).data, small.data);
  EXPECT_EQ(ledger.num_allocations(), allocations);
}

// One step: a few scoped phases whose peak is `megabytes` and a bit.
void step(Arena& arena, int64_t megabytes) {
  arena.settle();
  arena.take(DType::f32, {17});
  for (int phase = 0; phase < 3; ++phase) {
    const ArenaScope scope(arena);
    for (int64_t i = 0; i < megabytes; ++i) arena.take(DType::bf16, {mib / 2 - 31});
  }
  arena.take(DType::f64, {33});
}

// Inside a step a free would wait for all that a GPU does.
TEST(Arena, ResetFreesNothing) {
  MemoryLedger ledger;
  Arena arena(Device{}, &ledger, "activations");
  const void* const first = arena.take(DType::f32, {mib}).data;
  arena.take(DType::f32, {mib});
  const int64_t allocations = ledger.num_allocations(), bytes = arena.capacity_bytes();
  ASSERT_FALSE(arena.is_settled());
  for (int pass = 0; pass < 3; ++pass) {
    arena.reset();
    EXPECT_EQ(arena.used_bytes(), 0);
    EXPECT_EQ(arena.take(DType::f32, {mib}).data, first);
    arena.take(DType::f32, {mib});
  }
  EXPECT_EQ(ledger.num_allocations(), allocations);
  EXPECT_EQ(ledger.entries().at("activations").current_bytes, bytes);
}

// What lies idle until the slabs are joined: no more than a quarter of what is needed, and the rests of slabs.
TEST(Arena, GrowsByAQuarter) {
  Arena arena(Device{}, nullptr, "test");
  for (int i = 0; i < 4000; ++i) arena.take(DType::f32, {1 << 10});
  EXPECT_LE(arena.capacity_bytes(), arena.peak_bytes() * 5 / 4 + (1 << 20));
}

TEST(Arena, SettlingJoinsTheSlabsAndLaterStepsAllocateNothing) {
  MemoryLedger ledger;
  Arena arena(Device{}, &ledger, "activations");
  step(arena, 9);
  EXPECT_GT(ledger.num_allocations(), 1);  // it grew
  arena.settle();
  EXPECT_TRUE(arena.is_settled());
  EXPECT_EQ(arena.capacity_bytes(), arena.peak_bytes());
  const int64_t allocations = ledger.num_allocations();
  for (int i = 0; i < 5; ++i) step(arena, 9);
  step(arena, 4);  // a smaller one fits too
  EXPECT_EQ(ledger.num_allocations(), allocations);
  EXPECT_EQ(ledger.entries().at("activations").current_bytes, arena.capacity_bytes());
}

TEST(Arena, GrowsAgainForALargerStepAndThenRests) {
  MemoryLedger ledger;
  Arena arena(Device{}, &ledger, "activations");
  step(arena, 3);
  step(arena, 3);
  const int64_t before = ledger.num_allocations();
  step(arena, 12);
  EXPECT_GT(ledger.num_allocations(), before);
  step(arena, 12);
  const int64_t after = ledger.num_allocations();
  step(arena, 12);
  EXPECT_EQ(ledger.num_allocations(), after);
}

TEST(Arena, GivesEverythingBack) {
  MemoryLedger ledger;
  {
    Arena arena(Device{}, &ledger, "activations");
    step(arena, 5);
  }
  EXPECT_EQ(ledger.entries().at("activations").current_bytes, 0);
}

TEST(Arena, MovedArenaKeepsItsViews) {
  MemoryLedger ledger;
  Arena first(Device{}, &ledger, "activations");
  const TensorView view = first.take(DType::f32, {8});
  view.as<float>()[7] = 3.0f;
  Arena second(std::move(first));
  EXPECT_EQ(view.as<float>()[7], 3.0f);
  EXPECT_EQ(second.used_bytes(), 64);
  const TensorView next = second.take(DType::f32, {8});
  EXPECT_FALSE(overlap(view, next));
  EXPECT_EQ(ledger.num_allocations(), 1);
}

}  // namespace
}  // namespace lamina
