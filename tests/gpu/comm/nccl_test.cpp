// NCCL with ranks as threads, each with a GPU of its own: NCCL refuses two ranks on one.
#include "parallel/comm/nccl/nccl_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "parallel/comm/thread.h"
#include "tests/gpu/comm/device_cases.h"

namespace lamina::comm {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// Of emulated GPUs there are as many as the tests want; before the first of them is asked for.
const bool has_emulated_gpus = setenv("LAMINA_EMULATOR_DEVICES", "4", 0) == 0;

#define NEEDS_GPUS(size)                                  \
  if (!has_emulated_gpus || cuda::num_devices() < (size)) \
  GTEST_SKIP() << "NCCL needs a GPU for each of " << (size) << " ranks"

void run_nccl(int size, const std::function<void(Communicator&, Stream&)>& body,
              const NcclOptions& options = {.timeout_seconds = 30}) {
  run_threads(size, [&](Communicator& comm) {
    const Device device{DeviceKind::cuda, comm.rank() % cuda::num_devices()};
    const auto nccl = make_nccl_communicator(comm.split(0, comm.rank()), device, options);
    Stream stream(device);
    body(*nccl, stream);
  });
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& failure) {
    return failure.what();
  }
  return "nothing was thrown";
}

class NcclOfSize : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override { NEEDS_GPUS(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Sizes, NcclOfSize, ::testing::Values(1, 2, 3, 4));

TEST_P(NcclOfSize, CollectivesEqualLoops) {
  run_nccl(GetParam(), [](Communicator& comm, Stream& stream) {
    testing::check_device_all_dtypes(comm, testing::small_counts(), testing::Sums::rounded, stream);
    testing::check_device_dtype<float>(comm, testing::large_counts(), testing::Sums::rounded, stream);
  });
}
TEST_P(NcclOfSize, PointToPoint) {
  run_nccl(GetParam(), [](Communicator& comm, Stream& stream) {
    testing::check_device_point_to_point(comm, testing::Sums::rounded, stream);
  });
}
TEST_P(NcclOfSize, ManyInFlight) {
  run_nccl(GetParam(), testing::check_device_many_in_flight);
}
TEST_P(NcclOfSize, RequestsMove) {
  run_nccl(GetParam(), testing::check_device_moved_requests);
}
TEST_P(NcclOfSize, Splits) {
  run_nccl(GetParam(), testing::check_device_split);
}
TEST_P(NcclOfSize, CountsPayloadBytes) {
  run_nccl(GetParam(), testing::check_device_bytes_sent);
}
TEST_P(NcclOfSize, ViewsOfTheHostGoToTheHostsTransport) {
  run_nccl(GetParam(), [](Communicator& comm, Stream&) {
    testing::check_all_dtypes(comm, {0, 17});
    testing::check_point_to_point(comm);
    testing::check_split(comm);
  });
}

// Micro-batches through a pipeline and back: every receive is posted before anything is sent, the last micro-batch's first.
TEST(Nccl, ReceivesPostedEarlyHoldUpNothing) {
  constexpr int size = 3, microbatches = 4;
  NEEDS_GPUS(size);
  run_nccl(size, [](Communicator& comm, Stream& stream) {
    const int rank = comm.rank();
    std::vector<Channel> channels;
    for (int m = 0; m < microbatches; ++m) {
      if (rank + 1 < size) channels.insert(channels.end(), {{true, rank + 1, m}, {false, rank + 1, 10 + m}});
      if (rank > 0) channels.insert(channels.end(), {{true, rank - 1, 10 + m}, {false, rank - 1, m}});
    }
    comm.connect(channels, false, stream);
    EXPECT_EQ(comm.take_bytes_sent(), 0);
    std::vector<testing::DeviceArray<float>> forward, backward;
    for (uint64_t m = 0; m < microbatches; ++m) {
      forward.emplace_back(rank == 0 ? testing::input<float>(0, 501, m) : testing::poison<float>(501), stream);
      backward.emplace_back(rank == size - 1 ? testing::input<float>(9, 77, m) : testing::poison<float>(77), stream);
    }
    std::vector<Request> gradients, activations, sends;
    for (int m = microbatches - 1; m >= 0; --m) {
      const auto index = static_cast<size_t>(m);
      if (rank + 1 < size) gradients.push_back(comm.recv(backward[index].view(), rank + 1, 10 + m, stream));
      if (rank > 0) activations.push_back(comm.recv(forward[index].view(), rank - 1, m, stream));
    }
    for (int m = 0; m < microbatches; ++m) {
      const auto index = static_cast<size_t>(m);
      if (rank > 0) activations[microbatches - 1 - index].wait();
      if (rank + 1 < size) sends.push_back(comm.send(forward[index].view(), rank + 1, m, stream));
    }
    for (int m = 0; m < microbatches; ++m) {
      const auto index = static_cast<size_t>(m);
      if (rank + 1 < size) gradients[microbatches - 1 - index].wait();
      if (rank > 0) sends.push_back(comm.send(backward[index].view(), rank - 1, 10 + m, stream));
    }
    for (Request& request : sends) request.wait();
    for (uint64_t m = 0; m < microbatches; ++m) {
      EXPECT_TRUE(testing::same_bits(forward[m].get(stream), testing::input<float>(0, 501, m))) << m;
      EXPECT_TRUE(testing::same_bits(backward[m].get(stream), testing::input<float>(9, 77, m))) << m;
    }
  });
}

// ---- failures ----

TEST(NcclFailure, APeerThatNeverComesIsNamed) {
  NEEDS_GPUS(2);
  NcclOptions options;
  options.timeout_seconds = 0.3;
  std::atomic<int> checked{0};
  run_nccl(
      2,
      [&](Communicator& comm, Stream& stream) {
        testing::DeviceArray<float> x(std::vector<float>(5), stream);
        if (comm.rank() == 0) {
          const std::string message = message_of([&] { comm.recv(x.view(), 1, 6, stream).wait(); });
          EXPECT_THAT(message, HasSubstr("rank 0: recv of 20 bytes from rank 1 with tag 6 is not finished after 0."));
          EXPECT_THAT(message, HasSubstr("waiting for rank 1: it was never begun there"));
          EXPECT_THAT(message_of([&] { comm.all_reduce(x.view(), ReduceOp::sum, stream); }),
                      HasSubstr("communication failed before: " + message));
          ++checked;
        }
        while (checked == 0) std::this_thread::yield();
      },
      options);
}

// The connection exists and the host waits for the stream only: synchronize() notices.
TEST(NcclFailure, SynchronizeNoticesATransferThatDoesNotEnd) {
  NEEDS_GPUS(2);
  NcclOptions options;
  options.timeout_seconds = 0.3;
  std::atomic<int> checked{0};
  run_nccl(
      2,
      [&](Communicator& comm, Stream& stream) {
        testing::DeviceArray<float> x(std::vector<float>(5), stream);
        comm.all_reduce(x.view(), ReduceOp::sum, stream).wait();
        stream.synchronize();
        if (comm.rank() == 0) {
          const std::string message = message_of([&] {
            comm.all_reduce(x.view(), ReduceOp::sum, stream).wait();  // does not wait for the peer
            stream.synchronize();
          });
          EXPECT_THAT(message, HasSubstr("all_reduce of 20 bytes in a group of 2 is not finished after 0."));
          EXPECT_THAT(message, HasSubstr("waiting for one of the ranks 1: the transfer does not end"));
          ++checked;
        }
        while (checked == 0) std::this_thread::yield();
      },
      options);
}

// The same where the host waits for values.
TEST(NcclFailure, ACopyToTheHostNoticesATransferThatDoesNotEnd) {
  NEEDS_GPUS(2);
  NcclOptions options;
  options.timeout_seconds = 0.3;
  std::atomic<int> checked{0};
  run_nccl(
      2,
      [&](Communicator& comm, Stream& stream) {
        testing::DeviceArray<float> x(std::vector<float>(5), stream);
        comm.all_reduce(x.view(), ReduceOp::sum, stream).wait();
        stream.synchronize();
        if (comm.rank() == 0) {
          comm.all_reduce(x.view(), ReduceOp::sum, stream).wait();  // does not wait for the peer
          x.set(std::vector<float>(5), stream);                     // nor does this
          EXPECT_THAT(message_of([&] { HostCopy(x.view(), stream); }), HasSubstr("the transfer does not end"));
          ++checked;
        }
        while (checked == 0) std::this_thread::yield();
      },
      options);
}

// Everywhere, and without a word of the other end's.
TEST(NcclFailure, AConnectionThatNobodyAnswersIsNamed) {
  NEEDS_GPUS(2);
  NcclOptions options;
  options.timeout_seconds = 0.3;
  std::atomic<int> checked{0};
  run_nccl(
      2,
      [&](Communicator& comm, Stream& stream) {
        if (comm.rank() == 1) {
          const Channel channel{false, 0, 6};
          EXPECT_THAT(message_of([&] {
                        comm.connect({&channel, 1}, false, stream);
                      }),
                      HasSubstr("rank 1: the connection from rank 0 with tag 6 is not there after 0.3 s: it was never "
                                "begun at the other end"));
          ++checked;
        }
        while (checked == 0) std::this_thread::yield();
      },
      options);
}

TEST(NcclFailure, AbortFreesAStreamThatWaits) {
  NEEDS_GPUS(3);
  std::atomic<int> ended{0};
  const std::string message = message_of([&] {
    run_nccl(3, [&](Communicator& comm, Stream& stream) {
      testing::DeviceArray<float> x(std::vector<float>(50), stream);
      comm.all_reduce(x.view(), ReduceOp::sum, stream).wait();
      stream.synchronize();
      if (comm.rank() == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        comm.abort("loss is not finite");
      }
      try {
        comm.all_reduce(x.view(), ReduceOp::sum, stream).wait();
        stream.synchronize();
      } catch (const std::exception&) {
        EXPECT_THROW(comm.all_reduce(x.view(), ReduceOp::sum, stream), AbortedError);
        ++ended;
        throw;
      }
    });
  });
  EXPECT_THAT(message, HasSubstr("loss is not finite"));
  EXPECT_EQ(ended.load(), 2);
}

TEST(NcclFailure, UnwindingWithPendingRequestsDoesNotHang) {
  NEEDS_GPUS(2);
  const std::string message = message_of([] {
    run_nccl(2, [](Communicator& comm, Stream& stream) {
      testing::DeviceArray<float> a(std::vector<float>(5000), stream), b(std::vector<float>(3), stream);
      const Request never = comm.recv(b.view(), 1 - comm.rank(), 1, stream);
      if (comm.rank() == 0) throw Error("a bad batch");
      comm.all_reduce(a.view(), ReduceOp::sum, stream).wait();
      stream.synchronize();
    });
  });
  EXPECT_THAT(message, HasSubstr("a bad batch"));
}

TEST(NcclFailure, WrongArgumentsAreRefused) {
  run_nccl(1, [](Communicator& comm, Stream& stream) {
    testing::DeviceArray<float> x(std::vector<float>(6), stream), y(std::vector<float>(6), stream);
    std::vector<float> on_host(6);
    const TensorView host = testing::view_of(on_host);
    Stream of_host;
    const std::vector<int64_t> five{5}, negative{-6};
    EXPECT_THROW(comm.reduce_scatter(host, x.view(), ReduceOp::sum, stream), InternalError);
    EXPECT_THROW(comm.all_to_all(x.view(), host, stream), InternalError);
    EXPECT_THROW(comm.all_to_all(x.view(), x.view(), stream), InternalError);
    EXPECT_THROW(comm.all_to_all_v(x.view(), five, y.view(), five, stream), InternalError);
    EXPECT_THROW(comm.all_to_all_v(x.view(), negative, y.view(), negative, stream), InternalError);
    EXPECT_THROW(comm.all_reduce(x.view(), ReduceOp::sum, of_host), InternalError);
    EXPECT_THROW(comm.all_gather(x.view(), x.part(0, 5), stream), InternalError);
    EXPECT_THROW(comm.send(x.view(), 1, 0, stream), InternalError);
    EXPECT_THROW(comm.recv(x.view(), 0, -1, stream), InternalError);
    EXPECT_THROW(comm.broadcast(x.view(), 1, stream), InternalError);
    EXPECT_THROW(comm.all_reduce(x.view().reshaped({2, 3}).transposed(), ReduceOp::sum, stream), InternalError);
  });
  EXPECT_THROW(make_nccl_communicator(nullptr, Device{DeviceKind::cuda, 0}), InternalError);
  EXPECT_THROW(make_nccl_communicator(make_self_communicator(), Device{}), InternalError);
}

TEST(Nccl, KnowsItsVersions) {
  EXPECT_THAT(nccl_built_version(), MatchesRegex("2\\.[0-9]+\\.[0-9]+"));
  EXPECT_THAT(nccl_loaded_version(), MatchesRegex("2\\.[0-9]+\\.[0-9]+"));
}

}  // namespace
}  // namespace lamina::comm
