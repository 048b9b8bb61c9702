#include "core/device/buffer.h"
#include "core/device/cuda_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace lamina {
namespace {

static_assert(!std::is_copy_constructible_v<Buffer> && !std::is_copy_assignable_v<Buffer>);
static_assert(std::is_nothrow_move_constructible_v<Buffer> && std::is_nothrow_move_assignable_v<Buffer>);

TEST(Buffer, IsAlignedAndStartsAsZeros) {
  for (int64_t num_bytes : {1, 63, 64, 65, 4097}) {
    const Buffer buffer(num_bytes, Device{}, nullptr, "test");
    EXPECT_EQ(buffer.num_bytes(), num_bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    const char* bytes = static_cast<const char*>(buffer.data());
    EXPECT_TRUE(std::all_of(bytes, bytes + num_bytes, [](char byte) { return byte == 0; })) << num_bytes;
  }
}

// So that the system can back them with large pages.
TEST(Buffer, LargeOnesBeginAtALargePage) {
  constexpr int64_t large_page = int64_t{2} << 20;
  for (int64_t num_bytes : {2 * large_page, 5 * large_page + 1}) {
    const Buffer buffer(num_bytes, Device{}, nullptr, "test");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % large_page, 0u);
    const char* bytes = static_cast<const char*>(buffer.data());
    EXPECT_TRUE(std::all_of(bytes, bytes + num_bytes, [](char byte) { return byte == 0; })) << num_bytes;
  }
}

TEST(Buffer, EmptyOwnsNothing) {
  MemoryLedger ledger;
  const Buffer buffer(0, Device{}, &ledger, "test");
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(ledger.num_allocations(), 0);
}

TEST(Buffer, MoveConstructionTakesTheBytesAndTheirAccount) {
  MemoryLedger ledger;
  {
    Buffer first(100, Device{}, &ledger, "weights");
    void* const data = first.data();
    static_cast<char*>(data)[99] = 7;
    const Buffer second(std::move(first));
    EXPECT_EQ(second.data(), data);
    EXPECT_EQ(second.num_bytes(), 100);
    EXPECT_EQ(static_cast<const char*>(second.data())[99], 7);
    EXPECT_EQ(first.data(), nullptr);  // NOLINT(bugprone-use-after-move): what is left is the point
    EXPECT_EQ(first.num_bytes(), 0);
    EXPECT_EQ(ledger.entries().at("weights").current_bytes, 100);
  }
  EXPECT_EQ(ledger.entries().at("weights").current_bytes, 0);
  EXPECT_EQ(ledger.num_allocations(), 1);
}

TEST(Buffer, MoveAssignmentReleasesWhatWasThere) {
  MemoryLedger ledger;
  Buffer target(10, Device{}, &ledger, "old");
  Buffer source(20, Device{}, &ledger, "new");
  void* const data = source.data();
  target = std::move(source);
  EXPECT_EQ(target.data(), data);
  EXPECT_EQ(target.num_bytes(), 20);
  EXPECT_EQ(ledger.entries().at("old").current_bytes, 0);
  EXPECT_EQ(ledger.entries().at("new").current_bytes, 20);

  Buffer& same = target;
  target = std::move(same);  // onto itself: nothing is lost
  EXPECT_EQ(target.data(), data);
  EXPECT_EQ(ledger.entries().at("new").current_bytes, 20);

  target = Buffer();
  EXPECT_EQ(target.data(), nullptr);
  EXPECT_EQ(ledger.entries().at("new").current_bytes, 0);
}

TEST(Buffer, SurvivesTheGrowthOfAVector) {
  MemoryLedger ledger;
  {
    std::vector<Buffer> buffers;
    for (int i = 1; i <= 33; ++i) buffers.emplace_back(i, Device{}, &ledger, "many");
    EXPECT_EQ(ledger.entries().at("many").current_bytes, 33 * 34 / 2);
    EXPECT_EQ(ledger.num_allocations(), 33);
  }
  EXPECT_EQ(ledger.entries().at("many").current_bytes, 0);
}

TEST(Buffer, RefusesWhatCannotBe) {
  EXPECT_THROW(Buffer(-1, Device{}, nullptr, "test"), InternalError);
  EXPECT_THROW(Buffer(1, Device{DeviceKind::cuda, cuda::num_devices()}, nullptr, "test"), Error);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // their allocators end the process instead
TEST(Buffer, OutOfMemoryNamesThePurposeAndBooksNothing) {
  MemoryLedger ledger;
  try {
    const Buffer buffer(std::numeric_limits<int64_t>::max() / 4, Device{}, &ledger, "activations");
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("activations"), std::string::npos) << error.what();
  }
  EXPECT_EQ(ledger.num_allocations(), 0);
}
#endif

TEST(MemoryLedger, KeepsCurrentPeakAndCountPerPurpose) {
  MemoryLedger ledger;
  ledger.add("a", 100);
  ledger.add("b", 50);
  ledger.remove("a", 100);
  ledger.add("b", 60);
  ledger.add("a", 30);
  const auto entries = ledger.entries();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries.at("a").current_bytes, 30);
  EXPECT_EQ(entries.at("a").peak_bytes, 100);
  EXPECT_EQ(entries.at("a").num_allocations, 2);
  EXPECT_EQ(entries.at("b").current_bytes, 110);
  EXPECT_EQ(entries.at("b").peak_bytes, 110);
  EXPECT_EQ(ledger.num_allocations(), 4);
  EXPECT_EQ(ledger.peak_bytes(), 150);  // of the sum, not the sum of the peaks (210)
  EXPECT_NE(ledger.report().find("\na "), std::string::npos) << ledger.report();
}

TEST(MemoryLedger, CountsFromManyThreads) {
  MemoryLedger ledger;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&ledger] {
      for (int i = 0; i < 500; ++i) {
        ledger.add("shared", 3);
        ledger.remove("shared", 3);
      }
    });
  for (std::thread& thread : threads) thread.join();
  const auto entry = ledger.entries().at("shared");
  EXPECT_EQ(entry.current_bytes, 0);
  EXPECT_EQ(entry.num_allocations, 2000);
  EXPECT_GE(entry.peak_bytes, 3);
  EXPECT_LE(entry.peak_bytes, 12);
}

}  // namespace
}  // namespace lamina
