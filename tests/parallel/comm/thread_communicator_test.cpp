#include "parallel/comm/thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/parallel/comm/collective_cases.h"

namespace lamina::comm {
namespace {

using ::testing::HasSubstr;

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& failure) {
    return failure.what();
  }
  return "nothing was thrown";
}

class ThreadCommunicatorOfSize : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, ThreadCommunicatorOfSize, ::testing::Values(1, 2, 3, 4, 5));

TEST_P(ThreadCommunicatorOfSize, CollectivesEqualRankOrderLoopsToTheBit) {
  run_threads(GetParam(), [](Communicator& comm) {
    testing::check_all_dtypes(comm, testing::small_counts());
    testing::check_dtype<bf16>(comm, testing::large_counts());
    testing::check_dtype<float>(comm, testing::large_counts());
  });
}

TEST_P(ThreadCommunicatorOfSize, TheAlgorithmDoesNotChangeTheBits) {
  CommunicatorOptions options;
  options.small_all_reduce_bytes = -1;  // reduce_scatter and all_gather for every count, also below the group's size
  options.max_message_bytes = 60;       // and messages in several pieces
  run_threads(
      GetParam(), [](Communicator& comm) { testing::check_all_dtypes(comm, testing::small_counts()); }, options);
}

TEST_P(ThreadCommunicatorOfSize, PointToPoint) {
  run_threads(GetParam(), testing::check_point_to_point);
}
TEST_P(ThreadCommunicatorOfSize, ManyInFlight) {
  run_threads(GetParam(), testing::check_many_in_flight);
}
TEST_P(ThreadCommunicatorOfSize, UnevenExchangesInFlight) {
  run_threads(GetParam(), testing::check_uneven_in_flight);
}
TEST_P(ThreadCommunicatorOfSize, RequestsMove) {
  run_threads(GetParam(), testing::check_moved_requests);
}
TEST_P(ThreadCommunicatorOfSize, Splits) {
  run_threads(GetParam(), testing::check_split);
}
TEST_P(ThreadCommunicatorOfSize, CountsPayloadBytes) {
  run_threads(GetParam(), testing::check_bytes_sent);
}

TEST(ThreadCommunicator, TreesOfLargerGroupsGiveTheSameBits) {
  for (int size : {17, 21}) {
    run_threads(size, [](Communicator& comm) {
      testing::check_dtype<float>(comm, {0, 1, 65});
      testing::check_dtype<bf16>(comm, {13});
      comm.barrier();
    });
  }
}

TEST(ThreadCommunicator, BarrierHoldsEveryoneUntilTheLastHasCome) {
  std::atomic<int> arrived{0};
  for (int size : {4, 18}) {
    arrived = 0;
    run_threads(size, [&](Communicator& comm) {
      if (comm.rank() == size - 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
      ++arrived;
      comm.barrier();
      EXPECT_EQ(arrived.load(), size);
    });
  }
}

TEST(ThreadCommunicator, WaitsAsleep) {
  run_threads(3, [](Communicator& comm) { testing::check_waits_asleep(comm, 1); });
}

TEST(ThreadCommunicator, SelfIsAGroupOfOne) {
  const std::unique_ptr<Communicator> comm = make_self_communicator();
  EXPECT_EQ(comm->rank(), 0);
  EXPECT_EQ(comm->size(), 1);
  testing::check_all_dtypes(*comm, {0, 5});
  testing::check_point_to_point(*comm);
  comm->barrier();
}

TEST(ThreadCommunicator, MembersWorkWithoutRunThreads) {
  auto comms = make_thread_communicators(2);
  ASSERT_EQ(comms.size(), 2u);
  std::thread peer([&] { testing::check_dtype<float>(*comms[1], {3}); });
  testing::check_dtype<float>(*comms[0], {3});
  peer.join();
}

TEST(ThreadCommunicator, SteadyStateAllocatesNoReceiveMemory) {
  MemoryLedger ledger;
  CommunicatorOptions options;
  options.ledger = &ledger;
  std::atomic<int64_t> after_first{0};
  run_threads(
      3,
      [&](Communicator& comm) {
        Stream stream;
        std::vector<float> a(40001), b(11);
        for (int step = 0; step < 5; ++step) {
          Request large = comm.all_reduce(testing::view_of(a), ReduceOp::sum, stream);
          comm.all_reduce(testing::view_of(b), ReduceOp::sum, stream).wait();
          large.wait();
          comm.barrier();
          if (step == 0 && comm.rank() == 0) after_first = ledger.num_allocations();
          comm.barrier();
        }
      },
      options);
  EXPECT_GT(after_first.load(), 0);
  EXPECT_EQ(ledger.num_allocations(), after_first.load());
  EXPECT_EQ(ledger.entries().at("communication").current_bytes, 0);  // given back with the communicators
}

// ---- failures ----

TEST(ThreadCommunicatorFailure, AThrowingRankFreesTheOthersAndIsNamed) {
  std::atomic<int> freed{0};
  const std::string message = message_of([&] {
    run_threads(4, [&](Communicator& comm) {
      if (comm.rank() == 2) throw Error("the disk is full");
      try {
        comm.barrier();
      } catch (const AbortedError& failure) {
        EXPECT_THAT(failure.what(), HasSubstr("rank 2 failed: the disk is full"));
        ++freed;
        throw;
      }
    });
  });
  EXPECT_EQ(message, "rank 2: the disk is full");
  EXPECT_EQ(freed.load(), 3);
}

TEST(ThreadCommunicatorFailure, TheKindOfTheFirstFailureIsKept) {
  const auto fail_with = [](auto thrown) {
    return [thrown](Communicator& comm) {
      if (comm.rank() == 1) throw thrown;
      comm.barrier();
    };
  };
  EXPECT_THROW(run_threads(2, fail_with(Error("x"))), Error);
  EXPECT_THROW(run_threads(2, fail_with(InternalError("x"))), InternalError);
  EXPECT_THROW(run_threads(2, fail_with(7)), Error);
}

// The pending requests of the failing rank are given up, not waited for, and their memory is not touched any more.
TEST(ThreadCommunicatorFailure, UnwindingWithPendingRequestsDoesNotHang) {
  const std::string message = message_of([] {
    run_threads(3, [](Communicator& comm) {
      Stream stream;
      std::vector<float> a(50000), b(3);
      Request large = comm.all_reduce(testing::view_of(a), ReduceOp::sum, stream);
      Request never = comm.recv(testing::view_of(b), (comm.rank() + 1) % 3, 1, stream);
      if (comm.rank() == 0) throw Error("a bad batch");
      large.wait();
      never.wait();
    });
  });
  EXPECT_EQ(message, "rank 0: a bad batch");
}

TEST(ThreadCommunicatorFailure, AbortEndsEveryRankWithItsReason) {
  std::atomic<int> ended{0};
  std::atomic<int> others_ready{0};  // the abort must not meet a rank that is still inside split
  const std::string message = message_of([&] {
    run_threads(3, [&](Communicator& comm) {
      Stream stream;
      const std::unique_ptr<Communicator> sub = comm.split(comm.rank() == 1 ? 1 : 0, 0);
      float x = 0;
      if (comm.rank() == 1) {
        while (others_ready.load() < 2) std::this_thread::yield();
        sub->abort("loss is not finite");  // from a group that the others are not in
      }
      ++others_ready;
      try {
        comm.recv({&x, DType::f32, {1}}, 1, 0, stream).wait();
      } catch (const AbortedError&) {
        EXPECT_THROW(sub->send({&x, DType::f32, {1}}, 0, 0, stream), AbortedError);  // future calls too
        EXPECT_THROW(comm.barrier(), AbortedError);
        ++ended;
        throw;
      }
    });
  });
  EXPECT_THAT(message, HasSubstr("rank 1 aborted the job: loss is not finite"));
  EXPECT_EQ(ended.load(), 2);
}

TEST(ThreadCommunicatorFailure, TimeoutNamesTheOperationAndThePeersThatDidNotCome) {
  CommunicatorOptions options;
  options.timeout_seconds = 0.2;
  std::atomic<int> checked{0};
  run_threads(
      4,
      [&](Communicator& comm) {
        if (comm.rank() != 2) {
          Stream stream;
          std::vector<float> x(5);
          const std::string message =
              message_of([&] { comm.all_reduce(testing::view_of(x), ReduceOp::sum, stream).wait(); });
          EXPECT_THAT(message, HasSubstr(fmt::format("rank {}: all_reduce #0 (20 bytes, group of 4)", comm.rank())));
          EXPECT_THAT(message, HasSubstr("did not arrive from ranks: 2; was not taken by ranks: 2"));
          // Transfers are in an unknown state now: nothing more goes out.
          EXPECT_THAT(message_of([&] { comm.barrier(); }), HasSubstr("communication failed before: " + message));
          ++checked;
        }
        while (checked < 3) std::this_thread::yield();  // the late one is alive, but elsewhere
      },
      options);
}

// As where a rank writes to a slow disk: no time limit then, of any group, and the old one afterwards.
TEST(ThreadCommunicator, PatientWaitsOutlastTheTimeLimit) {
  CommunicatorOptions options;
  options.timeout_seconds = 0.1;
  run_threads(
      3,
      [&](Communicator& comm) {
        Stream stream;
        const std::unique_ptr<Communicator> group = comm.split(0, comm.rank());
        float one = 1;
        {
          const Patience patience(comm);
          if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(400));
          group->all_reduce({&one, DType::f32, {1}}, ReduceOp::sum, stream).wait();
        }
        EXPECT_EQ(one, 3.0f);
        EXPECT_FALSE(comm.set_patient(false));
        float nothing = 0;
        if (comm.rank() == 0) {
          EXPECT_THAT(message_of([&] {
                        comm.recv({&nothing, DType::f32, {1}}, 1, 7, stream).wait();
                      }),
                      HasSubstr("is not finished after"));
        }
      },
      options);
}

TEST(ThreadCommunicatorFailure, ARequestThatDiesAfterItsTimeoutDoesNotThrowOrHang) {
  CommunicatorOptions options;
  options.timeout_seconds = 0.05;
  auto comms = make_thread_communicators(2, options);
  Stream stream;
  float x = 0;
  { const Request dropped = comms[0]->recv({&x, DType::f32, {1}}, 1, 3, stream); }
  EXPECT_THAT(message_of([&] { comms[0]->barrier(); }), HasSubstr("recv with tag 3 (4 bytes"));
}

TEST(ThreadCommunicatorFailure, DifferentCountsAreNamed) {
  const std::string message = message_of([] {
    run_threads(2, [](Communicator& comm) {
      Stream stream;
      std::vector<float> x(comm.rank() == 0 ? 10 : 20);
      comm.all_gather(
              testing::view_of(x),
              TensorView(std::vector<float>(2 * x.size()).data(), DType::f32, {static_cast<int64_t>(2 * x.size())}),
              stream)
          .wait();
    });
  });
  EXPECT_THAT(message, HasSubstr("bytes where rank"));
}

// Rank 0 sends `sent` elements to rank 1, which expects `expected`, in messages of at most 60 bytes.
std::string message_of_contradiction(int64_t sent, int64_t expected) {
  CommunicatorOptions options;
  options.max_message_bytes = 60;
  options.timeout_seconds = 20;
  return message_of([&] {
    run_threads(
        2,
        [&](Communicator& comm) {
          Stream stream;
          const std::vector<int64_t> none{0, 0}, to_one{0, sent}, from_zero{expected, 0};
          std::vector<float> in(static_cast<size_t>(comm.rank() == 0 ? sent : 0));
          std::vector<float> out(static_cast<size_t>(comm.rank() == 0 ? 0 : expected));
          comm.all_to_all_v(testing::view_of(in), comm.rank() == 0 ? to_one : none, testing::view_of(out),
                            comm.rank() == 0 ? none : from_zero, stream)
              .wait();
        },
        options);
  });
}

TEST(ThreadCommunicatorFailure, PeersWithContradictoryCountsAreNamed) {
  EXPECT_EQ(message_of_contradiction(7, 7), "nothing was thrown");
  // Also where one size is a multiple of the largest message, so that all common pieces agree.
  for (const auto& [sent, expected] : std::vector<std::pair<int64_t, int64_t>>{
           {3, 4}, {4, 3}, {0, 1}, {1, 0}, {15, 30}, {30, 15}, {0, 15}, {15, 0}, {15, 16}, {16, 15}})
    EXPECT_THAT(message_of_contradiction(sent, expected), HasSubstr("rank 0 of the group sent"))
        << sent << " against " << expected;
}

TEST(ThreadCommunicatorFailure, WrongCountsAreRefused) {
  const auto refused = [](std::vector<int64_t> send_counts, std::vector<int64_t> receive_counts, const char* why) {
    const auto comms = make_thread_communicators(2);
    Stream stream;
    std::vector<float> in(6), out(4);
    EXPECT_THAT(message_of([&] {
                  comms[0]->all_to_all_v(testing::view_of(in), send_counts, testing::view_of(out), receive_counts,
                                         stream);
                }),
                HasSubstr(why));
  };
  refused({1, 6, -1}, {1, 3}, "all_to_all_v to 3 counts for 2 ranks");
  refused({1, 5}, {4}, "all_to_all_v from 1 counts for 2 ranks");
  refused({7, -1}, {1, 3}, "all_to_all_v to rank 1: -1 elements");
  refused({1, 5}, {-1, 5}, "all_to_all_v from rank 0: -1 elements");
  refused({1, 4}, {1, 3}, "all_to_all_v to all ranks: 5 elements in a view of fp32 [6]");
  refused({1, 5}, {1, 2}, "all_to_all_v from all ranks: 3 elements in a view of fp32 [4]");
  refused({1, 5}, {2, 2}, "rank 0 sends 1 elements to itself and expects 2");
}

TEST(ThreadCommunicatorFailure, WrongArgumentsAreRefused) {
  const std::unique_ptr<Communicator> comm = make_self_communicator();
  Stream stream;
  std::vector<float> x(6);
  std::vector<double> y(6);
  const TensorView six = testing::view_of(x);
  const TensorView matrix = six.reshaped({2, 3});
  EXPECT_THROW(comm->send(six, 1, 0, stream), InternalError);
  EXPECT_THROW(comm->send(six, 0, -1, stream), InternalError);
  EXPECT_THROW(comm->recv(six, -1, 0, stream), InternalError);
  EXPECT_THROW(comm->recv(six, 0, -1, stream), InternalError);
  EXPECT_THROW(comm->broadcast(six, 1, stream), InternalError);
  EXPECT_THROW(comm->all_reduce(matrix.transposed(), ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(comm->all_reduce(TensorView(nullptr, DType::f32, {2}), ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(comm->reduce_scatter(six, six.slice(0, 0, 5), ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(comm->reduce_scatter(six, testing::view_of(y), ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(comm->all_gather(six.slice(0, 0, 5), six, stream), InternalError);
  EXPECT_THROW(comm->all_gather(six, testing::view_of(y), stream), InternalError);
  EXPECT_THROW(comm->all_to_all(six, six, stream), InternalError);
  const std::vector<int64_t> all{6};
  EXPECT_THROW(comm->all_to_all_v(six, all, six, all, stream), InternalError);
  EXPECT_THROW(comm->all_to_all_v(six, all, testing::view_of(y), all, stream), InternalError);
  EXPECT_THROW(comm->all_to_all_v(matrix.transposed(), all, six, all, stream), InternalError);
  TensorView on_device = six;
  on_device.device.kind = DeviceKind::cuda;
  EXPECT_THROW(comm->all_reduce(on_device, ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(make_thread_communicators(0), InternalError);
  EXPECT_THROW(run_threads(0, [](Communicator&) {}), InternalError);
}

}  // namespace
}  // namespace lamina::comm
