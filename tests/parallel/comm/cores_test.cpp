#include "parallel/comm/cores.h"

#include <gtest/gtest.h>

#include "parallel/comm/thread.h"

namespace lamina::comm {
namespace {

Cores cores(int32_t machine, uint32_t mask) {
  Cores out;
  out.machine = {machine, 0};
  out.mask[0] = static_cast<int32_t>(mask);
  return out;
}

TEST(Cores, AreSharedByTheRanksThatMayUseThem) {
  EXPECT_EQ(share_of_cores({cores(1, 0xff)}, 0), 8);
  for (int rank : {0, 1}) EXPECT_EQ(share_of_cores({cores(1, 0xff), cores(1, 0xff)}, rank), 4);
  // Bound to cores of their own; and the same cores of different machines.
  for (int rank : {0, 1}) EXPECT_EQ(share_of_cores({cores(1, 0x0f), cores(1, 0xf0)}, rank), 4);
  for (int rank : {0, 1}) EXPECT_EQ(share_of_cores({cores(1, 0x0f), cores(2, 0x0f)}, rank), 4);
  // Two have four cores, one of them also those of a third.
  EXPECT_EQ(share_of_cores({cores(1, 0x0f), cores(1, 0x3f), cores(1, 0x30)}, 1), 3);
  // More ranks than cores.
  EXPECT_DOUBLE_EQ(share_of_cores({cores(1, 1), cores(1, 1), cores(1, 1)}, 2), 1.0 / 3);
}

TEST(Cores, OfRanksThatAreThreadsAreTheSame) {
  run_threads(3, [](Communicator& comm) {
    const std::vector<Cores> all = gather_cores(comm);
    ASSERT_EQ(all.size(), 3u);
    EXPECT_GT(all[0].count(), 0);
    for (const Cores& one : all) {
      EXPECT_EQ(one.machine, all[0].machine);
      EXPECT_EQ(one.mask, all[0].mask);
    }
    EXPECT_DOUBLE_EQ(share_of_cores(all, comm.rank()), all[0].count() / 3.0);
  });
}

}  // namespace
}  // namespace lamina::comm
