// Run by mpirun on every rank. With `--scenario NAME` it plays a failure instead of the tests: what ends the job and what
// the log says is checked from outside.
#include "parallel/comm/mpi/mpi_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <map>
#include <thread>

#include "parallel/comm/thread.h"
#include "parallel/zero/gradient_reducer.h"
#include "tests/parallel/comm/collective_cases.h"

namespace lamina::comm {
namespace {

// MPI starts once per process; main() owns it.
Communicator* world = nullptr;
const MpiEnvironment* environment = nullptr;

TEST(MpiCommunicator, CollectivesEqualRankOrderLoopsToTheBit) {
  testing::check_all_dtypes(*world, testing::small_counts());
  testing::check_dtype<bf16>(*world, testing::large_counts());
  testing::check_dtype<float>(*world, testing::large_counts());
}

TEST(MpiCommunicator, TheAlgorithmDoesNotChangeTheBits) {
  CommunicatorOptions options;
  options.small_all_reduce_bytes = -1;
  options.max_message_bytes = 60;
  const std::unique_ptr<Communicator> comm = make_mpi_world(options);
  testing::check_all_dtypes(*comm, testing::small_counts());
}

TEST(MpiCommunicator, PointToPoint) {
  testing::check_point_to_point(*world);
}
TEST(MpiCommunicator, ManyInFlight) {
  testing::check_many_in_flight(*world);
}
TEST(MpiCommunicator, UnevenExchangesInFlight) {
  testing::check_uneven_in_flight(*world);
}
TEST(MpiCommunicator, RequestsMove) {
  testing::check_moved_requests(*world);
}
TEST(MpiCommunicator, Splits) {
  testing::check_split(*world);
}
TEST(MpiCommunicator, CountsPayloadBytes) {
  testing::check_bytes_sent(*world);
}
TEST(MpiCommunicator, WaitsAsleep) {
  testing::check_waits_asleep(*world, 10);
}

// The same sums by N threads of one process, and by N processes.
TEST(MpiCommunicator, GivesTheBitsOfTheThreadCommunicator) {
  constexpr int64_t count = 20011;
  std::vector<bf16> mine = testing::input<bf16>(world->rank(), count, 77);
  Stream stream;
  world->all_reduce(testing::view_of(mine), ReduceOp::sum, stream).wait();
  run_threads(world->size(), [&](Communicator& comm) {
    std::vector<bf16> theirs = testing::input<bf16>(comm.rank(), count, 77);
    Stream thread_stream;
    comm.all_reduce(testing::view_of(theirs), ReduceOp::sum, thread_stream).wait();
    EXPECT_TRUE(testing::same_bits(mine, theirs));
  });
}

TEST(MpiCommunicator, ReducesBucketsAndGathersParameters) {
  const std::vector<zero::FlatParameter> parameters{{"a", 1000, false}, {"b", 333, false}, {"c", 50000, false}};
  const zero::ShardMap map = zero::make_shard_map(parameters, world->size(), 1000);
  std::vector<double> flat(static_cast<size_t>(map.num_padded));
  for (size_t e = 0; e < flat.size(); ++e) flat[e] = static_cast<double>(e) + world->rank();
  Stream stream;
  const TensorView view = testing::view_of(flat);
  zero::GradientReducer reducer(*world, map, view, stream);
  reducer.begin_step();
  for (int p : {2, 0, 1}) reducer.parameter_ready(p);
  reducer.finish();
  zero::ParameterGatherer gatherer(*world, map, view, stream);
  gatherer.start();
  gatherer.finish();
  const int size = world->size();
  for (size_t e = 0; e < flat.size(); ++e) ASSERT_EQ(flat[e], static_cast<double>(e) * size + 0.5 * size * (size - 1));
}

TEST(MpiCommunicator, KnowsTheRanksOfThisMachine) {
  // The tests run on one.
  EXPECT_EQ(environment->local_size(), environment->size());
  EXPECT_EQ(environment->local_rank(), environment->rank());
  EXPECT_EQ(world->size(), environment->size());
  EXPECT_EQ(world->rank(), environment->rank());
}

TEST(MpiEnvironment, KnowsTheHostOfEachRank) {
  ASSERT_EQ(environment->hosts().size(), static_cast<size_t>(environment->size()));
  std::array<char, 256> name{};
  ASSERT_EQ(gethostname(name.data(), name.size() - 1), 0);
  for (const std::string& host : environment->hosts()) EXPECT_EQ(host, name.data());  // the tests use one machine
  EXPECT_EQ(rank_and_host(0, environment->hosts()), std::string("0 (") + name.data() + ")");
  EXPECT_EQ(rank_and_host(environment->size(), environment->hosts()), std::to_string(environment->size()));
}

TEST(MpiCommunicator, ASecondEnvironmentIsABug) {
  EXPECT_THROW(MpiEnvironment(), InternalError);
}

TEST(MpiCommunicator, WrongArgumentsAreRefused) {
  Stream stream;
  std::vector<float> x(static_cast<size_t>(6 * world->size() + 1));
  EXPECT_THROW(world->send(testing::view_of(x), world->size(), 0, stream), InternalError);
  EXPECT_THROW(world->send(testing::view_of(x), 0, -1, stream), InternalError);
  EXPECT_THROW(world->reduce_scatter(testing::view_of(x), testing::part_of(x, 0, 6), ReduceOp::sum, stream),
               InternalError);
  world->barrier();  // and the refusals have left nothing behind
}

// ---- ways to die ----

void sit_in_barrier(Communicator& comm) {
  try {
    comm.barrier();
  } catch (const std::exception& failure) {
    comm.abort(failure.what());
  }
}

void play_abort(Communicator& comm) {
  if (comm.rank() == 1) comm.abort("loss is not finite");
  sit_in_barrier(comm);
}

void play_throw(Communicator& comm) {
  if (comm.rank() == 1) {
    Stream stream;
    std::vector<float> x(100000);
    const Request pending = comm.all_reduce(testing::view_of(x), ReduceOp::sum, stream);
    throw Error("a bad batch");
  }
  sit_in_barrier(comm);
}

void play_kill(Communicator& comm) {
  if (comm.rank() == 1) std::raise(SIGKILL);
  sit_in_barrier(comm);
}

void play_absent(Communicator& comm) {
  if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(60));
  sit_in_barrier(comm);
}

// One rank sends `sent` elements where the other expects `expected`.
void play_mismatch(Communicator& comm, int64_t sent, int64_t expected) {
  Stream stream;
  std::vector<float> x(200);
  try {
    if (comm.rank() == 1) comm.send(testing::part_of(x, 0, sent), 0, 7, stream).wait();
    if (comm.rank() == 0) comm.recv(testing::part_of(x, 0, expected), 1, 7, stream).wait();
  } catch (const std::exception& failure) {
    comm.abort(failure.what());
  }
  sit_in_barrier(comm);
}

// Rank 1 announces 10 elements to rank 0, which expects 5: multiples of the largest message.
void play_contradiction(Communicator& comm) {
  Stream stream;
  std::vector<int64_t> send_counts(static_cast<size_t>(comm.size()), 0), receive_counts = send_counts;
  if (comm.rank() == 1) send_counts[0] = 10;
  if (comm.rank() == 0) receive_counts[1] = 5;
  std::vector<float> in(comm.rank() == 1 ? 10 : 0), out(comm.rank() == 0 ? 5 : 0);
  try {
    comm.all_to_all_v(testing::view_of(in), send_counts, testing::view_of(out), receive_counts, stream).wait();
  } catch (const std::exception& failure) {
    comm.abort(failure.what());
  }
  sit_in_barrier(comm);
}

int play(const std::string& name) {
  const std::map<std::string, std::function<void(Communicator&)>> scenarios{
      {"abort", play_abort},
      {"throw", play_throw},
      {"kill", play_kill},
      {"absent", play_absent},
      {"short", [](Communicator& comm) { play_mismatch(comm, 10, 20); }},
      {"long", [](Communicator& comm) { play_mismatch(comm, 20, 10); }},
      {"contradiction", play_contradiction},
  };
  const auto scenario = scenarios.find(name);
  if (scenario == scenarios.end()) return 2;
  try {
    const MpiEnvironment mpi;
    CommunicatorOptions options;
    if (name == "absent") options.timeout_seconds = 0.5;
    options.hosts = mpi.hosts();
    if (name == "contradiction") options.max_message_bytes = 20;
    const std::unique_ptr<Communicator> comm = make_mpi_world(options);
    scenario->second(*comm);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 3;
  }
  return 0;
}

}  // namespace
}  // namespace lamina::comm

int main(int argc, char** argv) {
  using namespace lamina;
  if (argc == 3 && std::string(argv[1]) == "--scenario") return comm::play(argv[2]);
  ::testing::InitGoogleMock(&argc, argv);
  comm::MpiEnvironment started;
  const comm::MpiEnvironment mpi = std::move(started);  // it moves; the last owner finalizes
  comm::environment = &mpi;
  int32_t failed = 0;
  {
    const std::unique_ptr<comm::Communicator> world = comm::make_mpi_world();
    comm::world = world.get();
    // One report is enough; the others only speak of failures.
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    if (world->rank() != 0) {
      class Failures : public ::testing::EmptyTestEventListener {
        void OnTestPartResult(const ::testing::TestPartResult& result) override {
          if (result.failed())
            std::fprintf(stderr, "[rank %d] %s:%d: %s\n", comm::environment->rank(), result.file_name(),
                         result.line_number(), result.message());
        }
      };
      delete listeners.Release(listeners.default_result_printer());
      listeners.Append(new Failures);
    }
    failed = RUN_ALL_TESTS();
    Stream stream;
    world->all_reduce({&failed, DType::i32, {1}}, comm::ReduceOp::max, stream).wait();
  }
  return failed;
}
