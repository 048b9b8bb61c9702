#include "core/device/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/base/error.h"

namespace lamina {
namespace {

TEST(BufferPool, HandsOutDistinctBuffersAndReusesThem) {
  MemoryLedger ledger;
  BufferPool pool(100, {}, &ledger, "things");
  void *a = pool.take(), *b = pool.take();
  EXPECT_NE(a, b);
  std::memset(a, 1, 100);
  std::memset(b, 2, 100);
  EXPECT_EQ(static_cast<char*>(a)[99], 1);
  EXPECT_EQ(pool.num_out(), 2);
  pool.give(a);
  EXPECT_EQ(pool.num_out(), 1);
  EXPECT_EQ(pool.take(), a);
  EXPECT_EQ(pool.peak_out(), 2) << "no third buffer was needed";
}

TEST(BufferPool, RefusesWhatIsNotOut) {
  BufferPool pool(8, {}, nullptr, "things");
  void* a = pool.take();
  pool.give(a);
  EXPECT_THROW(pool.give(a), InternalError);
  int other = 0;
  EXPECT_THROW(pool.give(&other), InternalError);
}

TEST(BufferPool, Moves) {
  BufferPool pool(8, {}, nullptr, "things");
  void* a = pool.take();
  BufferPool moved(std::move(pool));
  moved.give(a);
  EXPECT_EQ(pool.num_out(), 0);  // NOLINT(bugprone-use-after-move): empty, and usable again
  BufferPool assigned(16, {}, nullptr, "others");
  assigned.take();
  assigned = std::move(moved);
  EXPECT_EQ(assigned.num_bytes(), 8);
  EXPECT_EQ(assigned.take(), a);
}

}  // namespace
}  // namespace lamina
