// Processes that die or run out of disk while they write a checkpoint.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "tests/trainer/checkpoint_support.h"

namespace lamina {
namespace {

using namespace testing_checkpoint;
using testing::ElementsAre;
using testing::HasSubstr;

const std::vector<TensorSpec>& larger_tensors() {
  static const std::vector<TensorSpec> specs{{"parameters/a", {301, 211}, DType::f32},
                                             {"parameters/b", {17}, DType::f32},
                                             {"optimizer/m/a", {301, 211}, DType::f32}};
  return specs;
}

// Saves every step after `step`, for ever.
[[noreturn]] void save_for_ever(const fs::path& dir, int64_t step, int ranks) {
  try {
    comm::run_threads(ranks, [&](comm::Communicator& comm) {
      for (int64_t s = step + 1;; ++s) {
        const Shard shard(larger_tensors(), comm.rank(), comm.size(), s, Shard::Content::expected);
        // Every other one replaces itself, as a run does whose last step is also on the interval.
        for (int64_t repeat = 0; repeat <= s % 2; ++repeat) save_checkpoint(dir, info_of(s), shard.pieces(), comm, 2);
      }
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  std::_Exit(1);
}

TEST(CheckpointKill, AtRandomMomentsNeverGivesABadLoad) {
  const TemporaryFolder folder, elsewhere;
  const CounterRng rng(21, "moments");
  int64_t step = 0;
  int num_interrupted = 0;
  // Kills come within the time of a few saves, whatever this machine and build make of it.
  const auto started = std::chrono::steady_clock::now();
  save(elsewhere.path(), 1, 3, 2, larger_tensors());
  const auto one_save =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - started);
  const auto window = static_cast<uint64_t>(std::clamp<int64_t>(3 * one_save.count(), 30000, 300000));
  for (uint64_t trial = 0; trial < 200; ++trial) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_for_ever(folder.path(), step, static_cast<int>(trial % 3) + 1);
    ::usleep(static_cast<useconds_t>(rng.below(trial, window)));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child failed by itself in trial " << trial;

    for (const std::string& name : names_in(folder.path()))
      if (name.size() > std::string("step-00000000").size()) ++num_interrupted;
    const std::optional<fs::path> found = find_checkpoint(folder.path());  // throws when all are refused
    if (!found) {
      ASSERT_EQ(step, 0) << "trial " << trial;
      continue;
    }
    const int64_t found_step = read_checkpoint_info(*found).step;
    ASSERT_GE(found_step, step) << "a committed checkpoint was lost in trial " << trial;
    step = found_step;
    expect_content(*found, step, 1, larger_tensors());
    ASSERT_FALSE(testing::Test::HasFailure()) << "trial " << trial;
  }
  EXPECT_GT(step, 0);
  EXPECT_GT(num_interrupted, 20);  // enough of the kills came while a checkpoint was being written
}

// In a child whose files may not grow beyond `limit` bytes. Returns its exit code: 0 when `body` returned true.
int run_with_file_limit(rlim_t limit, const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);  // writes fail with EFBIG instead, as they do with ENOSPC on a full disk
    const rlimit file_size{limit, limit};
    ::setrlimit(RLIMIT_FSIZE, &file_size);
    bool ok = false;
    try {
      ok = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    // A normal exit, because the HDF5 library's own clean-up must survive the failed writes, too.
    ::_exit(ok ? 0 : 1);  // what threads of earlier tests hold is not this process's to free
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(CheckpointDiskFull, IsAnErrorOnEveryRankAndLeavesThePreviousOnes) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 2);
  for (const rlim_t limit : {rlim_t{0}, rlim_t{1000}, rlim_t{20000}, rlim_t{200000}}) {
    const int code = run_with_file_limit(limit, [&] {
      std::atomic<int> num_errors{0};
      comm::run_threads(3, [&](comm::Communicator& comm) {
        // The squares in Shard's cuts give rank 2 more than half of everything: at 200000 bytes only rank 2 fails.
        const Shard shard(larger_tensors(), comm.rank(), 3, 2, Shard::Content::expected);
        const std::string message =
            message_of([&] { save_checkpoint(folder.path(), info_of(2), shard.pieces(), comm, 1); });
        if (message.find(folder.path().string()) != std::string::npos) ++num_errors;
      });
      return num_errors == 3;
    });
    EXPECT_EQ(code, 0) << "limit " << limit;
    EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001"));
    expect_content(folder.path() / "step-00000001", 1, 1);
  }
}

TEST(CheckpointDiskFull, TheSameProcessSavesAgainOnceThereIsRoom) {
  const TemporaryFolder folder;
  const int code = run_with_file_limit(RLIM_INFINITY, [&] {
    rlimit limit{30000, RLIM_INFINITY};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    comm::run_threads(2, [&](comm::Communicator& comm) {
      const Shard shard(larger_tensors(), comm.rank(), 2, 2, Shard::Content::expected);
      EXPECT_THROW(save_checkpoint(folder.path(), info_of(2), shard.pieces(), comm, 1), Error);
    });
    limit.rlim_cur = RLIM_INFINITY;
    ::setrlimit(RLIMIT_FSIZE, &limit);
    save(folder.path(), 2, 2, 1, larger_tensors());
    return true;
  });
  EXPECT_EQ(code, 0);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000002"));
  expect_content(folder.path() / "step-00000002", 2, 1, larger_tensors());
}

}  // namespace
}  // namespace lamina
