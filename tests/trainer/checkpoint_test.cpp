#include "trainer/checkpoint/checkpoint.h"

#include <gmock/gmock.h>

#include <chrono>
#include <fstream>
#include <limits>
#include <thread>
#include <utility>

#include "core/base/hash.h"
#include "core/io/file.h"
#include "core/io/hdf5.h"
#include "core/tensor/host_copy.h"
#include "parallel/comm/agreement.h"
#include "tests/trainer/checkpoint_support.h"
#include "trainer/checkpoint/checkpoint_files.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/checkpoint_manifest.h"

namespace lamina {
namespace {

using namespace testing_checkpoint;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

TEST(Checkpoint, EqualsWhatWasSavedAtAnyNumberOfRanks) {
  for (int savers : {1, 2, 3}) {
    const TemporaryFolder folder;
    save(folder.path(), 7, savers);
    const fs::path checkpoint = folder.path() / "step-00000007";
    EXPECT_TRUE(verify_checkpoint(checkpoint).empty());
    for (int loaders : {1, 2, 3, 5}) expect_content(checkpoint, 7, loaders);
  }
}

TEST(Checkpoint, KeepsItsInformation) {
  const TemporaryFolder folder;
  save(folder.path(), 12, 2);
  const CheckpointInfo expected = info_of(12), found = read_checkpoint_info(folder.path() / "step-00000012");
  EXPECT_EQ(found.step, 12);
  EXPECT_EQ(found.config_yaml, expected.config_yaml);
  EXPECT_EQ(found.sampler_fingerprint, expected.sampler_fingerprint);
  EXPECT_EQ(found.sequences_consumed, expected.sequences_consumed);
  EXPECT_EQ(found.seed, expected.seed);
  EXPECT_EQ(found.world_size, 2);
  EXPECT_EQ(found.data_parallel, 1);
  EXPECT_EQ(found.program_version, "1.2.3");
  EXPECT_EQ(found.extra, expected.extra);
  EXPECT_EQ(found.tokenizer, expected.tokenizer);
  EXPECT_THAT(found.written_at, testing::MatchesRegex("20..-..-..T..:..:..Z"));
}

TEST(Checkpoint, HasTheFilesOfTheFormat) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 3);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001"));
  EXPECT_THAT(names_in(folder.path() / "step-00000001"),
              ElementsAre("COMMITTED", "checkpoint.h5", "shard-00000.h5", "shard-00001.h5", "shard-00002.h5"));
}

TEST(Checkpoint, LogicalTensorsAreReadableByName) {
  const TemporaryFolder folder;
  save(folder.path(), 5, 3);
  const io::Hdf5File file = io::Hdf5File::open(folder.path() / "step-00000005" / "checkpoint.h5");
  const std::vector<TensorSpec> specs = some_tensors();
  const Shard expected(specs, 0, 1, 5, Shard::Content::expected);
  for (size_t t : {0u, 1u, 2u, 3u}) {
    const io::DatasetInfo info = file.info("/" + specs[t].name);
    EXPECT_EQ(info.shape, std::vector<int64_t>(specs[t].shape.begin(), specs[t].shape.end()));
    std::vector<uint32_t> bits(static_cast<size_t>(info.num_elements()));
    file.read("/" + specs[t].name, io::ElementType::f32, 0, info.num_elements(), bits.data());
    EXPECT_EQ(std::memcmp(bits.data(), expected.pieces()[t].data.data, bits.size() * 4), 0) << specs[t].name;
  }
  EXPECT_EQ(file.read_int("/", "step"), 5);
  EXPECT_EQ(file.read_string("/", "config"), info_of(5).config_yaml);
}

TEST(Checkpoint, ListsItsTensors) {
  const TemporaryFolder folder;
  save(folder.path(), 5, 2);
  const std::vector<CheckpointTensor> tensors = list_checkpoint_tensors(folder.path() / "step-00000005");
  ASSERT_EQ(tensors.size(), some_tensors().size());
  EXPECT_EQ(tensors[0].name, "counters");
  EXPECT_EQ(tensors[0].dtype, DType::i32);
  EXPECT_EQ(tensors[2].name, "optimizer/v/model.embed_tokens.weight");
  EXPECT_EQ(tensors[2].shape, (Shape{37, 19}));
  EXPECT_EQ(tensors[2].dtype, DType::f64);
}

TEST(Checkpoint, RefusesAnotherShapeDtypeOrName) {
  const TemporaryFolder folder;
  save(folder.path(), 5, 2);
  const fs::path checkpoint = folder.path() / "step-00000005";
  const auto load = [&](std::string name, Shape shape, DType dtype) {
    std::vector<char> memory(static_cast<size_t>(shape.num_elements() * 8));
    const TensorPiece piece{name, shape, 0, shape.num_elements(),
                            TensorView(memory.data(), dtype, {shape.num_elements()})};
    return message_of([&] { load_checkpoint(checkpoint, std::span(&piece, 1)); });
  };
  const std::string norm = "parameters/model.norm.weight";
  EXPECT_EQ(load(norm, {2}, DType::f32), "no Error");
  EXPECT_EQ(load(norm, {3}, DType::f32), checkpoint.string() + ": tensor " + norm + ": shape [2] found, expected [3]");
  EXPECT_EQ(load(norm, {2}, DType::f64), checkpoint.string() + ": tensor " + norm + ": fp32 found, expected fp64");
  EXPECT_EQ(
      load("parameters/lost", {3}, DType::f32),
      checkpoint.string() + ": tensor parameters/lost [3] expected, not found among the 7 tensors of this checkpoint");
}

TEST(Checkpoint, EveryFlippedBitIsRefusedByNameAndThePreviousIsTaken) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 2);
  save(folder.path(), 2, 2);
  const fs::path damaged = folder.path() / "step-00000002";
  const CounterRng rng(11, "flips");
  uint64_t draw = 0;
  for (const fs::path& file : files_of(damaged)) {
    for (int trial = 0; trial < 60; ++trial) {
      const uint64_t bit = rng.below(draw++, fs::file_size(file) * 8);
      flip_bit(file, bit);
      const std::vector<CheckpointProblem> problems = verify_checkpoint(damaged);
      ASSERT_FALSE(problems.empty()) << file << " bit " << bit;
      EXPECT_EQ(problems[0].file, file.filename().string());
      EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000001");
      flip_bit(file, bit);
    }
  }
  EXPECT_EQ(find_checkpoint(folder.path()), damaged);
}

TEST(Checkpoint, ALoadVerifiesThePiecesItReads) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 2);
  const fs::path checkpoint = folder.path() / "step-00000001";
  const Manifest manifest = read_manifest(checkpoint);
  const Shard wanted(some_tensors(), 0, 1, 1, Shard::Content::poison);
  for (const ShardFile& shard : manifest.shards) {
    for (const StoredPiece& piece : shard.pieces) {
      const auto bit = static_cast<uint64_t>(piece.offset + piece.num_bytes() - 1) * 8;
      flip_bit(checkpoint / shard.name, bit);
      const std::string message = message_of([&] { load_checkpoint(checkpoint, wanted.pieces()); });
      EXPECT_THAT(message, HasSubstr(checkpoint.string() + ": " + shard.name + ": " + piece.dataset() + ": checksum"));
      flip_bit(checkpoint / shard.name, bit);
    }
  }
  load_checkpoint(checkpoint, wanted.pieces());
}

TEST(Checkpoint, TruncatedEmptyAndMissingFilesAreRefused) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 2);
  save(folder.path(), 2, 2);
  const fs::path damaged = folder.path() / "step-00000002";
  const CounterRng rng(12, "truncation");
  uint64_t draw = 0;
  for (const fs::path& file : files_of(damaged)) {
    const std::string whole = io::read_file(file);
    for (int trial = 0; trial < 12; ++trial) {
      fs::resize_file(file, trial == 0 ? 0 : trial == 1 ? whole.size() - 1 : rng.below(draw++, whole.size()));
      const std::vector<CheckpointProblem> problems = verify_checkpoint(damaged);
      ASSERT_FALSE(problems.empty()) << file;
      EXPECT_EQ(problems[0].file, file.filename().string());
      EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000001");
      io::write_file_atomically(file, whole);
    }
    io::write_file_atomically(file, whole + "x");
    EXPECT_FALSE(verify_checkpoint(damaged).empty());
    fs::remove(file);
    ASSERT_FALSE(verify_checkpoint(damaged).empty()) << file;
    EXPECT_EQ(verify_checkpoint(damaged)[0].file, file.filename().string());
    EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000001");
    io::write_file_atomically(file, whole);
  }
  EXPECT_TRUE(verify_checkpoint(damaged).empty());
}

TEST(Checkpoint, TheQuickCheckSeesSizesAndTheIndex) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 2);
  const fs::path checkpoint = folder.path() / "step-00000001";
  EXPECT_TRUE(check_file_sizes(checkpoint).empty());
  flip_bit(checkpoint / "checkpoint.h5", 9000);
  ASSERT_EQ(check_file_sizes(checkpoint).size(), 1u);
  EXPECT_EQ(check_file_sizes(checkpoint)[0].file, "checkpoint.h5");
  flip_bit(checkpoint / "checkpoint.h5", 9000);
  fs::resize_file(checkpoint / "shard-00001.h5", 50);
  ASSERT_EQ(check_file_sizes(checkpoint).size(), 1u);
  EXPECT_THAT(check_file_sizes(checkpoint)[0].reason, HasSubstr("50 bytes found, expected"));
}

TEST(FindCheckpoint, NothingIsNothingButOnlyRefusedOnesAreAnError) {
  const TemporaryFolder folder;
  EXPECT_EQ(find_checkpoint(folder.path() / "missing"), std::nullopt);
  EXPECT_EQ(find_checkpoint(folder.path()), std::nullopt);
  fs::create_directory(folder.path() / "step-00000003");  // uncommitted
  EXPECT_EQ(find_checkpoint(folder.path()), std::nullopt);
  save(folder.path(), 1, 1);
  flip_bit(folder.path() / "step-00000001" / "shard-00000.h5", 77);
  EXPECT_THAT(message_of([&] { find_checkpoint(folder.path()); }),
              HasSubstr("1 committed checkpoint(s) found and all refused (step-00000001)"));
  comm::run_threads(2, [&](comm::Communicator& comm) { EXPECT_THROW(find_checkpoint(folder.path(), comm), Error); });
}

TEST(FindCheckpoint, AllRanksAgreeWhicheverRankSeesTheDamage) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 3);
  save(folder.path(), 2, 3);
  for (const char* file : {"shard-00000.h5", "shard-00001.h5", "shard-00002.h5", "checkpoint.h5", "COMMITTED"}) {
    flip_bit(folder.path() / "step-00000002" / file, 100);
    comm::run_threads(2, [&](comm::Communicator& comm) {
      EXPECT_EQ(find_checkpoint(folder.path(), comm), folder.path() / "step-00000001");
    });
    flip_bit(folder.path() / "step-00000002" / file, 100);
  }
  comm::run_threads(3, [&](comm::Communicator& comm) {
    EXPECT_EQ(find_checkpoint(folder.path(), comm), folder.path() / "step-00000002");
    EXPECT_EQ(find_checkpoint(folder.path() / "missing", comm), std::nullopt);
  });
}

TEST(Retention, KeepsTheNewest) {
  const TemporaryFolder folder;
  for (int64_t step : {1, 2, 3}) save(folder.path(), step, 1, 2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000002", "step-00000003"));
  for (int64_t step : {4, 5, 6}) save(folder.path(), step, 1, 0);
  EXPECT_EQ(names_in(folder.path()).size(), 5u);
  save(folder.path(), 7, 1, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000007"));
}

TEST(Retention, ALaterRefusedOneDoesNotPushOutAWholeOne) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 1);
  save(folder.path(), 9, 1);
  flip_bit(folder.path() / "step-00000009" / "shard-00000.h5", 5);
  save(folder.path(), 2, 1, 1);  // the run went on from step 1
  EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000002");
  save(folder.path(), 9, 1, 1);
  EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000009");
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000009"));
}

TEST(Save, ReplacesACheckpointOfTheSameStep) {
  const TemporaryFolder folder;
  save(folder.path(), 4, 3);
  save(folder.path(), 4, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000004"));
  EXPECT_EQ(read_checkpoint_info(folder.path() / "step-00000004").world_size, 1);
  expect_content(folder.path() / "step-00000004", 4, 2);
}

TEST(Save, RefusesWhatIsNotFiniteOnEveryRank) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 3);
  const std::vector<TensorSpec> specs = some_tensors();
  for (const auto& [tensor, value] : {std::pair(0, std::numeric_limits<double>::quiet_NaN()),
                                      std::pair(4, -std::numeric_limits<double>::infinity())}) {  // fp32 and fp64
    comm::run_threads(3, [&, tensor = tensor, value = value](comm::Communicator& comm) {
      const Shard shard(specs, comm.rank(), comm.size(), 2, Shard::Content::expected);
      const TensorPiece& piece = shard.pieces()[static_cast<size_t>(tensor)];
      if (comm.rank() == 1) set_element(piece.data, piece.data.num_elements() - 1, value);
      try {
        save_checkpoint(folder.path(), info_of(2), shard.pieces(), comm, /*keep=*/1);
        ADD_FAILURE() << "committed";
      } catch (const NotFinite& refusal) {
        EXPECT_THAT(refusal.what(),
                    StartsWith(fmt::format("{}: element {} is {}", piece.name, 703 * 4 / 9 - 1, value)));
        EXPECT_THAT(refusal.what(), HasSubstr("(rank 1)"));
      }
    });
    EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001"));
  }
  expect_content(*find_checkpoint(folder.path()), 1, 3);
}

TEST(Shard, OfAnOlderProgramIsNotWholeWithAValueThatIsNotFinite) {
  const TemporaryFolder folder;
  std::vector<float> values(1000, 1.5F);
  const TensorPiece piece{"x", {1000}, 0, 1000, TensorView(values.data(), DType::f32, {1000})};
  ShardFile shard = write_shard(folder.path(), 0, std::span(&piece, 1), /*max_elements=*/600);
  EXPECT_TRUE(verify_shard(folder.path(), shard).empty());
  values[700] = std::numeric_limits<float>::infinity();
  {
    std::fstream file(folder.path() / shard.name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(shard.pieces[1].offset);
    file.write(reinterpret_cast<const char*>(values.data() + 600), 1600);
  }
  shard.pieces[1].hash = hash64(values.data() + 600, 1600);
  const std::vector<CheckpointProblem> problems = verify_shard(folder.path(), shard);
  ASSERT_EQ(problems.size(), 1U);
  EXPECT_THAT(problems[0].reason, HasSubstr("element 700 is infinite or not a number"));
}

TEST(Retention, WhatWasSetAsideIsNotTakenAndGoesWithTheNextSave) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 1);
  save(folder.path(), 2, 1);
  set_checkpoint_aside(folder.path(), 3);  // there is none
  set_checkpoint_aside(folder.path(), 2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001", "step-00000002.diverged"));
  EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000001");
  remove_older_checkpoints(folder.path(), 2, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001", "step-00000002.diverged"));
  save(folder.path(), 2, 1, /*keep=*/0);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001", "step-00000002"));
  set_checkpoint_aside(folder.path(), 2);
  set_checkpoint_aside(folder.path(), 1);
  EXPECT_EQ(find_checkpoint(folder.path()), std::nullopt);
}

TEST(Save, CleansWhatAKillLeftBehind) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 1);
  for (const char* name : {"step-00000002.tmp", "step-00000003", "step-00000000.tmp-delete"}) {
    fs::create_directory(folder.path() / name);
    io::write_file_atomically(folder.path() / name / "shard-00000.h5", "half");
  }
  fs::create_directory(folder.path() / "step-by-step");  // not ours
  save(folder.path(), 5, 2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001", "step-00000005", "step-by-step"));
}

TEST(Save, EveryMomentOfAReplacementLeavesAWholeCheckpoint) {
  const TemporaryFolder folder;
  save(folder.path(), 4, 1);
  const fs::path current = folder.path() / "step-00000004", old = folder.path() / "step-00000004.old";
  fs::rename(current, old);  // killed before the new one had its name
  EXPECT_EQ(find_checkpoint(folder.path()), old);
  fs::create_directory(current);  // killed before the new one was committed
  EXPECT_EQ(find_checkpoint(folder.path()), old);
  save(folder.path(), 5, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000004", "step-00000005"));
  expect_content(current, 4, 1);
  fs::copy(current, old, fs::copy_options::recursive);  // killed before the old one was removed
  EXPECT_EQ(list_committed_checkpoints(folder.path()).size(), 3u);
  save(folder.path(), 6, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000004", "step-00000005", "step-00000006"));
}

TEST(Save, AnUnusableFolderIsAnErrorOnEveryRank) {
  const TemporaryFolder folder;
  io::write_file_atomically(folder.path() / "file", "in the way");
  comm::run_threads(3, [&](comm::Communicator& comm) {
    const Shard shard(some_tensors(), comm.rank(), 3, 1, Shard::Content::expected);
    const fs::path dir = folder.path() / "file" / "checkpoints";
    EXPECT_THAT(message_of([&] { save_checkpoint(dir, info_of(1), shard.pieces(), comm, 1); }),
                HasSubstr(dir.string()));
  });
}

TEST(Save, RefusesElementsOwnedTwiceOrByNobody) {
  const TemporaryFolder folder;
  save(folder.path(), 1, 1);
  for (int pretended_size : {1, 3}) {
    comm::run_threads(2, [&](comm::Communicator& comm) {
      const int rank = pretended_size == 1 ? 0 : comm.rank();
      const Shard shard(some_tensors(), rank, pretended_size, 2, Shard::Content::expected);
      EXPECT_ANY_THROW(save_checkpoint(folder.path(), info_of(2), shard.pieces(), comm, 1));
    });
  }
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001"));
}

TEST(Shard, LargePiecesAreCut) {
  const TemporaryFolder folder;
  const std::vector<TensorSpec> specs{{"parameters/w", {10, 10}, DType::f32}};
  const Shard data(specs, 0, 1, 3, Shard::Content::expected);
  ShardFile shard = write_shard(folder.path(), 0, data.pieces(), 33);
  EXPECT_EQ(shard.pieces.size(), 4u);
  const std::string marker = write_index(folder.path(), Manifest{.info = info_of(3), .shards = {shard}});
  io::write_file_atomically(folder.path() / "COMMITTED", marker);
  EXPECT_TRUE(verify_checkpoint(folder.path()).empty());
  expect_content(folder.path(), 3, 3, specs);
}

TEST(RawFile, Moves) {
  const TemporaryFolder folder;
  io::write_file_atomically(folder.path() / "a", "first");
  io::write_file_atomically(folder.path() / "b", "second");
  RawFile a(folder.path() / "a");
  RawFile moved = std::move(a);
  EXPECT_EQ(moved.num_bytes(), 5);
  RawFile b(folder.path() / "b");
  moved = std::move(b);
  char text[6];
  moved.read(0, 6, text);
  EXPECT_EQ(std::string(text, 6), "second");
  EXPECT_THROW(moved.read(3, 4, text), Error);
  EXPECT_THROW(RawFile(folder.path() / "c"), Error);
}

TEST(CheckpointComm, TextTravels) {
  comm::run_threads(3, [](comm::Communicator& comm) {
    const std::string mine(static_cast<size_t>(comm.rank() * 5), static_cast<char>('a' + comm.rank()));
    const std::vector<std::string> texts = gather_text(comm, mine);
    if (comm.rank() == 0) {
      EXPECT_THAT(texts, ElementsAre("", "bbbbb", "cccccccccc"));
    } else {
      EXPECT_TRUE(texts.empty());
    }
    EXPECT_EQ(broadcast_text(comm, comm.rank() == 0 ? "hello" : "other"), "hello");
    EXPECT_EQ(broadcast_text(comm, comm.rank() == 0 ? "" : "other"), "");
  });
}

TEST(CheckpointComm, OneFailureIsEveryonesFailure) {
  comm::run_threads(3, [](comm::Communicator& comm) {
    EXPECT_NO_THROW(run_and_agree(comm, [] {}));
    const std::string message = message_of([&] {
      run_and_agree(comm, [&] {
        if (comm.rank() == 1) throw Error("the disk of rank one");
      });
    });
    EXPECT_EQ(message, comm.rank() == 1 ? "the disk of rank one" : "rank 1: the disk of rank one");
  });
}

TEST(RunAndAgree, WaitsForSlowFiles) {
  comm::CommunicatorOptions options;
  options.timeout_seconds = 0.1;
  comm::run_threads(
      2,
      [](comm::Communicator& comm) {
        run_and_agree(comm, [&] {
          if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(350));
        });
      },
      options);
}

// What all find alike, the first tells; what one finds, that one. Kinds that callers tell apart stay what they are.
TEST(RunAndAgree, OneRankTells) {
  const auto kinds = [](const std::function<void(int)>& body) {
    std::vector<std::string> found(3);
    comm::run_threads(3, [&](comm::Communicator& comm) {
      std::string& mine = found[static_cast<size_t>(comm.rank())];
      try {
        run_and_agree(comm, [&] { body(comm.rank()); });
      } catch (const ErrorElsewhere& error) {
        mine = fmt::format("elsewhere: {}", error.what());
      } catch (const NotFinite& error) {
        mine = fmt::format("not finite: {}", error.what());
      } catch (const Error& error) {
        mine = error.what();
      }
    });
    return found;
  };
  EXPECT_THAT(kinds([](int) { throw Error("no file"); }),
              ElementsAre("no file", "elsewhere: rank 0: no file", "elsewhere: rank 0: no file"));
  EXPECT_THAT(kinds([](int rank) {
                if (rank == 1) throw Error("disk full");
              }),
              ElementsAre("elsewhere: rank 1: disk full", "disk full", "elsewhere: rank 1: disk full"));
  EXPECT_THAT(kinds([](int rank) {
                if (rank > 0) throw Error("file {}", rank);
              }),
              ElementsAre("elsewhere: rank 1: file 1", "file 1", "file 2"));
  EXPECT_THAT(kinds([](int) { throw NotFinite("w"); }), ElementsAre("not finite: w", "not finite: w", "not finite: w"));
}

}  // namespace
}  // namespace lamina
