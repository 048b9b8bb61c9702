#include "parallel/comm/staged.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/comm/thread.h"
#include "tests/parallel/comm/collective_cases.h"

namespace lamina::comm {
namespace {

using ::testing::HasSubstr;

// Ranks as threads, each behind a staged communicator. run_threads() owns the communicators underneath, so these are their twins:
// sub-groups of all ranks.
void run_staged(int size, const std::function<void(Communicator&)>& body, const CommunicatorOptions& options = {}) {
  run_threads(
      size,
      [&](Communicator& comm) {
        const auto staged = make_staged_communicator(comm.split(0, comm.rank()), options.ledger);
        body(*staged);
      },
      options);
}

class StagedCommunicatorOfSize : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, StagedCommunicatorOfSize, ::testing::Values(1, 2, 3));

TEST_P(StagedCommunicatorOfSize, ViewsOfTheHostGoStraightThrough) {
  run_staged(GetParam(), [](Communicator& comm) {
    testing::check_all_dtypes(comm, testing::small_counts());
    testing::check_dtype<float>(comm, testing::large_counts());
    testing::check_point_to_point(comm);
    testing::check_many_in_flight(comm);
    testing::check_uneven_in_flight(comm);
    testing::check_moved_requests(comm);
    testing::check_split(comm);
    testing::check_bytes_sent(comm);
  });
}

TEST(StagedCommunicator, NoMemoryIsStagedForTheHostsViews) {
  MemoryLedger ledger;
  const auto comm = make_staged_communicator(make_self_communicator(), &ledger);
  testing::check_dtype<float>(*comm, {17});
  EXPECT_EQ(ledger.entries().count("communication staging"), 0u);
}

TEST(StagedCommunicator, AbortEndsTheHostsJob) {
  const auto ended = [] {
    run_staged(2, [](Communicator& comm) {
      if (comm.rank() == 1) comm.split(1, 0)->abort("loss is not finite");
      comm.split(0, 0)->barrier();
      comm.barrier();
    });
  };
  try {
    ended();
    FAIL() << "nothing was thrown";
  } catch (const AbortedError& failure) {
    EXPECT_THAT(failure.what(), HasSubstr("rank 1 aborted the job: loss is not finite"));
  }
}

TEST(StagedCommunicator, OperandsOfTwoPlacesAreRefused) {
  const auto comm = make_staged_communicator(make_self_communicator(), nullptr);
  Stream stream;
  std::vector<float> x(6), y(6);
  const TensorView host = testing::view_of(x);
  TensorView device = testing::view_of(y), other = host;
  device.device = {DeviceKind::cuda, 0};
  other.device = {DeviceKind::cuda, 1};
  const std::vector<int64_t> all{6};
  EXPECT_THROW(comm->reduce_scatter(host, device, ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(comm->reduce_scatter(device, host, ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(comm->all_gather(host, device, stream), InternalError);
  EXPECT_THROW(comm->all_to_all(device, host, stream), InternalError);
  EXPECT_THROW(comm->all_to_all(device, other, stream), InternalError);
  EXPECT_THROW(comm->all_to_all_v(host, all, device, all, stream), InternalError);
  // A view of a GPU on the CPU's stream.
  EXPECT_THROW(comm->send(device, 0, 0, stream), InternalError);
  EXPECT_THROW(comm->recv(device, 0, 0, stream), InternalError);
  EXPECT_THROW(comm->all_reduce(device, ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(comm->broadcast(device, 0, stream), InternalError);
  EXPECT_THROW(make_staged_communicator(nullptr, nullptr), InternalError);
}

}  // namespace
}  // namespace lamina::comm
