#include "trainer/record/step_dump.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "core/io/file.h"
#include "tests/trainer/checkpoint_support.h"

namespace lamina {
namespace {

using namespace testing_checkpoint;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<TensorSpec> parameters_of(const std::string& group) {
  return {{group + "/model.embed_tokens.weight", {13, 7}, DType::f32}, {group + "/model.norm.weight", {2}, DType::f32}};
}

template <class T>
std::vector<T> read_all(const io::Hdf5File& file, const std::string& name, io::ElementType type) {
  std::vector<T> values(static_cast<size_t>(file.info(name).num_elements()));
  file.read(name, type, 0, file.info(name).num_elements(), values.data());
  return values;
}

TEST(StepDump, GathersWhatTheRanksOwn) {
  for (int ranks : {1, 2, 3, 5}) {
    const TemporaryFolder folder;
    const fs::path path = folder.path() / "deep" / "dump.h5";
    constexpr int64_t seq_len = 4, global_batch = 15;
    comm::run_threads(ranks, [&](comm::Communicator& comm) {
      StepDump dump(path, "run: {}\n", 3, comm);
      const int64_t per_rank = global_batch / ranks, rest = comm.rank() == ranks - 1 ? global_batch % ranks : 0;
      const int64_t begin = comm.rank() * per_rank * seq_len, end = begin + (per_rank + rest) * seq_len;
      std::vector<int32_t> tokens;
      std::vector<double> losses;
      for (int64_t i = begin; i < end; ++i) tokens.push_back(static_cast<int32_t>(i * 3));
      for (int64_t i = begin; i < end; ++i) losses.push_back(static_cast<double>(i) / 7);
      // Two micro-batches, the later one first.
      const int64_t middle = begin + seq_len;
      const Shape whole{global_batch, seq_len};
      const std::vector<TensorPiece> rows{
          {"tokens", whole, middle, end, TensorView(tokens.data() + seq_len, DType::i32, {end - middle})},
          {"tokens", whole, begin, middle, TensorView(tokens.data(), DType::i32, {1, seq_len})},
          {"token_loss", whole, begin, end, TensorView(losses.data(), DType::f64, {end - begin})}};
      dump.add(rows);
      for (const char* group : {"parameters", "gradients", "parameters_after"})
        dump.add(Shard(parameters_of(group), comm.rank(), ranks, 3, Shard::Content::expected).pieces());
      dump.add_scalar("loss", comm.rank() == 0 ? 2.25 : -1);
      dump.add_scalar("aux_loss", 1.0 / 3, DType::f64);
      EXPECT_FALSE(fs::exists(path));
      comm.barrier();  // another rank may be done with finish() by then
      dump.finish();
    });
    EXPECT_THAT(names_in(folder.path() / "deep"), ElementsAre("dump.h5"));
    const io::Hdf5File file = io::Hdf5File::open(path);
    EXPECT_EQ(file.read_string("/", "config"), "run: {}\n");
    EXPECT_EQ(file.read_int("/", "step"), 3);
    EXPECT_THAT(file.list("/"),
                ElementsAre("aux_loss", "gradients", "loss", "parameters", "parameters_after", "token_loss", "tokens"));
    EXPECT_EQ(file.info("/tokens").shape, (std::vector<int64_t>{global_batch, seq_len}));
    EXPECT_EQ(file.info("/tokens").type, io::ElementType::i32);
    EXPECT_EQ(file.info("/token_loss").type, io::ElementType::f64);
    EXPECT_EQ(file.info("/loss").type, io::ElementType::f32);
    EXPECT_TRUE(file.info("/loss").shape.empty());
    const auto tokens = read_all<int32_t>(file, "/tokens", io::ElementType::i32);
    const auto losses = read_all<double>(file, "/token_loss", io::ElementType::f64);
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(tokens[i], static_cast<int32_t>(3 * i));
      EXPECT_EQ(losses[i], static_cast<double>(i) / 7);
    }
    EXPECT_EQ(read_all<double>(file, "/loss", io::ElementType::f64)[0], 2.25);
    EXPECT_EQ(read_all<double>(file, "/aux_loss", io::ElementType::f64)[0], 1.0 / 3);
    for (const char* group : {"parameters", "gradients", "parameters_after"}) {
      const std::vector<TensorSpec> specs = parameters_of(group);
      const Shard expected(specs, 0, 1, 3, Shard::Content::expected);
      for (size_t t = 0; t < specs.size(); ++t) {
        EXPECT_EQ(file.info("/" + specs[t].name).shape,
                  std::vector<int64_t>(specs[t].shape.begin(), specs[t].shape.end()));
        const auto found = read_all<uint32_t>(file, "/" + specs[t].name, io::ElementType::f32);
        EXPECT_EQ(std::memcmp(found.data(), expected.pieces()[t].data.data, found.size() * 4), 0) << specs[t].name;
      }
    }
  }
}

TEST(StepDump, AbandonedLeavesNothing) {
  const TemporaryFolder folder;
  const auto self = comm::make_self_communicator();
  {
    StepDump dump(folder.path() / "dump.h5", "", 1, *self);
    EXPECT_EQ(names_in(folder.path()).size(), 1u);  // the temporary one
  }
  EXPECT_THAT(names_in(folder.path()), ElementsAre());
}

TEST(StepDump, Moves) {
  const TemporaryFolder folder;
  const auto self = comm::make_self_communicator();
  StepDump first(folder.path() / "first.h5", "", 1, *self);
  StepDump moved = std::move(first);
  EXPECT_THROW(first.add_scalar("loss", 1.0), InternalError);  // NOLINT: moved from, on purpose
  moved.add_scalar("loss", 1.0);
  StepDump second(folder.path() / "second.h5", "", 2, *self);
  second = std::move(moved);  // the second's file goes
  second.finish();
  EXPECT_THAT(names_in(folder.path()), ElementsAre("first.h5"));
}

TEST(StepDump, RefusesMissingElementsOnEveryRank) {
  const TemporaryFolder folder;
  comm::run_threads(2, [&](comm::Communicator& comm) {
    StepDump dump(folder.path() / "dump.h5", "", 1, comm);
    const Shard shard(parameters_of("parameters"), comm.rank(), 3, 1, Shard::Content::expected);  // a third is missing
    EXPECT_ANY_THROW(dump.add(shard.pieces()));
  });
  EXPECT_THAT(names_in(folder.path()), ElementsAre());
}

TEST(StepDump, AnUnusableFolderIsAnErrorOnEveryRank) {
  const TemporaryFolder folder;
  io::write_file_atomically(folder.path() / "file", "in the way");
  comm::run_threads(2, [&](comm::Communicator& comm) {
    EXPECT_THAT(message_of([&] { StepDump(folder.path() / "file" / "dump.h5", "", 1, comm); }),
                HasSubstr((folder.path() / "file").string()));
  });
}

TEST(StepDump, AFullDiskIsAnErrorOnEveryRankAndLeavesNothing) {
  const TemporaryFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);  // writes fail with EFBIG instead, as they do with ENOSPC on a full disk
    const rlimit limit{100000, 100000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    std::atomic<int> num_errors{0};
    comm::run_threads(3, [&](comm::Communicator& comm) {
      const std::string message = message_of([&] {
        StepDump dump(folder.path() / "dump.h5", "", 1, comm);
        const std::vector<TensorSpec> specs{{"parameters/a", {100, 400}, DType::f32},
                                            {"parameters/b", {9}, DType::f32}};
        dump.add(Shard(specs, comm.rank(), 3, 1, Shard::Content::expected).pieces());
        dump.finish();
      });
      if (message.find(folder.path().string()) != std::string::npos) ++num_errors;
    });
    ::_exit(num_errors == 3 ? 0 : 1);  // what threads of earlier tests hold is not this process's to free
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_THAT(names_in(folder.path()), ElementsAre());
}

}  // namespace
}  // namespace lamina
