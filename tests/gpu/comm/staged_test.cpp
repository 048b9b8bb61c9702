#include <gtest/gtest.h>

#include "parallel/comm/staged.h"
#include "parallel/comm/thread.h"
#include "tests/gpu/comm/device_cases.h"

namespace lamina::comm {
namespace {

constexpr Device gpu{DeviceKind::cuda, 0};

void run_staged(int size, const std::function<void(Communicator&, Stream&)>& body,
                const CommunicatorOptions& options = {}) {
  run_threads(
      size,
      [&](Communicator& comm) {
        const auto staged = make_staged_communicator(comm.split(0, comm.rank()), options.ledger);
        Stream stream(gpu);
        body(*staged, stream);
      },
      options);
}

class StagedOnDevice : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, StagedOnDevice, ::testing::Values(1, 2, 3, 4));

TEST_P(StagedOnDevice, CollectivesEqualRankOrderLoopsToTheBit) {
  run_staged(GetParam(), [](Communicator& comm, Stream& stream) {
    testing::check_device_all_dtypes(comm, testing::small_counts(), testing::Sums::exact, stream);
    testing::check_device_dtype<float>(comm, testing::large_counts(), testing::Sums::exact, stream);
  });
}
TEST_P(StagedOnDevice, PointToPoint) {
  run_staged(GetParam(), [](Communicator& comm, Stream& stream) {
    testing::check_device_point_to_point(comm, testing::Sums::exact, stream);
  });
}
TEST_P(StagedOnDevice, ManyInFlight) {
  run_staged(GetParam(), testing::check_device_many_in_flight);
}
TEST_P(StagedOnDevice, RequestsMove) {
  run_staged(GetParam(), testing::check_device_moved_requests);
}
TEST_P(StagedOnDevice, Splits) {
  run_staged(GetParam(), testing::check_device_split);
}
TEST_P(StagedOnDevice, CountsPayloadBytes) {
  run_staged(GetParam(), testing::check_device_bytes_sent);
}
TEST_P(StagedOnDevice, ViewsOfTheHostGoStraightThrough) {
  run_staged(GetParam(), [](Communicator& comm, Stream&) {
    testing::check_all_dtypes(comm, {0, 17});
    testing::check_many_in_flight(comm);
  });
}

TEST(StagedOnDevice, SteadyStateAllocatesNothing) {
  MemoryLedger ledger;
  CommunicatorOptions options;
  options.ledger = &ledger;
  std::atomic<int64_t> after_first{0};
  run_staged(
      2,
      [&](Communicator& comm, Stream& stream) {
        testing::DeviceArray<float> a(std::vector<float>(40001), stream), b(std::vector<float>(11), stream);
        testing::DeviceArray<float> c(std::vector<float>(501), stream);
        for (int step = 0; step < 5; ++step) {
          Request large = comm.all_reduce(a.view(), ReduceOp::sum, stream);
          Request received = comm.recv(c.view(), 1 - comm.rank(), 3, stream);
          comm.all_reduce(b.view(), ReduceOp::sum, stream).wait();
          comm.send(a.part(0, 501), 1 - comm.rank(), 3, stream).wait();
          received.wait();
          large.wait();
          comm.barrier();
          if (step == 0 && comm.rank() == 0) after_first = ledger.num_allocations();
          comm.barrier();
        }
      },
      options);
  EXPECT_GT(after_first.load(), 0);
  EXPECT_EQ(ledger.num_allocations(), after_first.load());
  EXPECT_EQ(ledger.entries().at("communication staging").current_bytes, 0);
}

// The pending requests of the failing rank are given up, not waited for.
TEST(StagedOnDevice, UnwindingWithPendingRequestsDoesNotHang) {
  const auto fail = [] {
    run_staged(2, [](Communicator& comm, Stream& stream) {
      testing::DeviceArray<float> a(std::vector<float>(5000), stream), b(std::vector<float>(3), stream);
      Request large = comm.all_reduce(a.view(), ReduceOp::sum, stream);
      Request never = comm.recv(b.view(), 1 - comm.rank(), 1, stream);
      if (comm.rank() == 0) throw Error("a bad batch");
      large.wait();
      never.wait();
    });
  };
  EXPECT_THROW(fail(), Error);
}

}  // namespace
}  // namespace lamina::comm
