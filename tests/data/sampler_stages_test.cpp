// What a run with stages reads, against a reader that goes from sequence to sequence.
#include <array>
#include <map>
#include <optional>
#include <set>

#include "core/base/hash.h"
#include "data/permutation.h"
#include "data/sampler.h"
#include "tests/data/support.h"

namespace lamina {
namespace {

class SamplerStagesTest : public DataTest {
 protected:
  std::string source(const std::string& name, size_t num_tokens, unsigned seed) {
    std::string text(num_tokens - 1, ' ');
    std::mt19937 random(seed);
    for (char& c : text) c = static_cast<char>('a' + random() % 26);
    prepare(options(name, {write(name + ".txt", text)}));
    return path(name);
  }
};

constexpr uint64_t seed = 7;

// One source: knows the windows of the round that it is in, and takes them one by one.
class SlowReader {
 public:
  SlowReader(int64_t source, int64_t num_targets) : source_(source), num_targets_(num_targets) {}

  // First token of the next sequence.
  int64_t next(int64_t seq_len, int64_t piece_len) {
    if (piece_len != piece_len_) {  // an epoch that has begun is over
      if (piece_len_ > 0 && (in_order_ > 0 || !round_.empty())) ++epoch_;
      piece_len_ = piece_len;
      in_order_ = 0;
      round_.clear();
    } else if (seq_len != seq_len_) {
      round_.clear();
    }
    seq_len_ = seq_len;
    const int64_t num_pieces = num_targets_ / piece_len;
    if (round_.empty()) {
      if (in_order_ == num_pieces) {
        in_order_ = 0;
        ++epoch_;
      }
      begin_round(num_pieces);
    }
    const int64_t begin = round_.front();
    round_.erase(round_.begin());
    return begin;
  }
  int64_t epoch() const { return epoch_; }

 private:
  void begin_round(int64_t num_pieces) {
    const std::array<int64_t, 3> key{0x6570'6f63'68, source_, epoch_};
    const Permutation order(static_cast<uint64_t>(num_pieces), seed, hash64(key.data(), sizeof(key)));
    const int64_t size = std::min(std::clamp<int64_t>(num_pieces / 64, 1, 4096), num_pieces - in_order_);
    for (int64_t at = 0; at < piece_len_; at += seq_len_)
      for (int64_t p = 0; p < size; ++p)
        round_.push_back(static_cast<int64_t>(order(static_cast<uint64_t>(in_order_ + p))) * piece_len_ + at);
    in_order_ += size;
  }

  int64_t source_, num_targets_, epoch_ = 0;
  int64_t seq_len_ = 0, piece_len_ = 0;
  int64_t in_order_ = 0;        // pieces of the epoch whose round has begun
  std::vector<int64_t> round_;  // first tokens of the windows that are left
};

// (source, epoch) -> targets that were read
using Seen = std::map<std::pair<int64_t, int64_t>, std::set<int64_t>>;

Seen walk(const Config& config, const Sampler& sampler, const std::vector<int64_t>& num_targets, int64_t batches) {
  std::vector<SlowReader> readers;
  for (size_t s = 0; s < num_targets.size(); ++s) readers.emplace_back(static_cast<int64_t>(s), num_targets[s]);
  const BatchPlan plan(config);
  std::optional<SourceMix> mix;
  int64_t in_pattern = 0;
  Seen seen;
  for (int64_t batch = 1; batch <= batches; ++batch) {
    const BatchStage& stage = plan.at(batch);
    if (!mix || !has_same_mixture(plan.at(batch - 1), stage)) {
      mix.emplace(stage.weights);
      in_pattern = 0;
    }
    for (int64_t i = 0; i < stage.global_batch_size; ++i) {
      const int64_t source = mix->at(in_pattern++).source;
      SlowReader& reader = readers[static_cast<size_t>(source)];
      const int64_t begin = reader.next(stage.seq_len, stage.piece_len);
      const SampleRef found = sampler.sample(batch - 1, i);
      EXPECT_EQ(found.source, source) << batch << " " << i;
      EXPECT_EQ(found.window * stage.seq_len, begin) << batch << " " << i;
      EXPECT_EQ(found.epoch, reader.epoch()) << batch << " " << i;
      std::set<int64_t>& targets = seen[{source, found.epoch}];
      for (int64_t k = 1; k <= stage.seq_len; ++k)
        EXPECT_TRUE(targets.insert(begin + k).second) << "token " << begin + k << " twice, batch " << batch;
      EXPECT_LE(begin + stage.seq_len, num_targets[static_cast<size_t>(source)]);
      if (::testing::Test::HasFailure()) return seen;
    }
  }
  return seen;
}

Config experiment(const std::string& a, const std::string& b) {
  Config config;
  config.run.seed = seed;
  config.model.vocab_size = 257;
  config.data.seq_len = 10;
  config.data.train = {{a, 2.0}, {b, 1.0}};
  config.train.global_batch_size = 12;
  config.train.micro_batch_size = 2;
  return config;
}

TEST_F(SamplerStagesTest, AreThoseOfASlowWalk) {
  // Rounds of several pieces and of one; epochs that end inside stages and rounds.
  Config config = experiment(source("a", 6111, 1), source("b", 950, 2));
  config.train.batch_ramp = {4, 20, 2};
  config.stages.resize(6);
  config.stages[0] = {8, {}, {}, 5, {}, {}};          // inside the ramp
  config.stages[1] = {31, 7, 1, {}, {1.0, 1.0}, {}};  // mixture and batch
  config.stages[2] = {55, 4, {}, 20, {}, {}};         // one batch of longer ones
  config.stages[3] = {56, 6, {}, 2, {1.0, 2.0}, {}};
  config.stages[4] = {90, {}, {}, {}, {0.0, 1.0}, 0.5};  // one source only
  config.stages[5] = {120, 16, {}, 10, {3.0, 1.0}, {}};  // the first source is back
  const Sampler sampler(config);
  const Seen seen = walk(config, sampler, {6100, 940}, 400);
  EXPECT_GE(seen.size(), 8u) << "epochs";
}

TEST_F(SamplerStagesTest, ChangesOfMixtureAndBatchLeaveNothingOut) {
  Config config = experiment(source("a", 6111, 1), source("b", 950, 2));
  config.data.piece_len = 30;
  config.train.batch_ramp = {4, 20, 2};
  config.stages.resize(2);
  config.stages[0] = {31, 7, {}, {}, {1.0, 1.0}, {}};
  config.stages[1] = {60, 5, {}, {}, {1.0, 5.0}, {}};
  const Sampler sampler(config);
  const Seen seen = walk(config, sampler, {6090, 930}, 900);
  for (const auto& [key, targets] : seen)
    if (seen.contains({key.first, key.second + 1})) {
      EXPECT_EQ(targets.size(), key.first == 0 ? 6090u : 930u) << "epoch " << key.second;
    }
  const std::vector<double> epochs = sampler.epochs(900);
  for (int64_t s = 0; s < 2; ++s) {
    const auto last = std::prev(seen.upper_bound({s, 1 << 20}));
    EXPECT_NEAR(
        epochs[static_cast<size_t>(s)],
        static_cast<double>(last->first.second) + static_cast<double>(last->second.size()) / (s == 0 ? 6090 : 930),
        1e-9);
  }
}

TEST_F(SamplerStagesTest, AChangeOfLengthLeavesOutAtMostARound) {
  Config config = experiment(source("a", 20'011, 1), source("b", 950, 2));  // 500 pieces of 40: rounds of 7
  config.stages.resize(1);
  for (int64_t from = 40; from < 60; from += 3) {
    config.stages[0] = {from, {}, {}, 40, {}, {}};
    const Seen seen = walk(config, Sampler(config), {20'000, 920}, from + 60);
    ASSERT_TRUE(seen.contains({0, 1}));
    EXPECT_GE(static_cast<int64_t>(seen.at({0, 0}).size()), 20'000 - 7 * 40);
  }
}

TEST_F(SamplerStagesTest, LongerThanAllThatWasPlannedBeginsAnEpoch) {
  Config config = experiment(source("a", 6111, 1), source("b", 950, 2));
  const Sampler before(config);
  config.data.piece_len = 10;
  config.stages.resize(2);
  config.stages[0] = {20, {}, {}, 30, {}, {}};
  config.stages[1] = {40, {}, {}, 10, {}, {}};
  const Sampler sampler(config);
  walk(config, sampler, {6110, 940}, 19);
  EXPECT_EQ(sampler.fingerprint(), before.fingerprint());
  for (int64_t batch = 0; batch < 19; ++batch)
    for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(sampler.sample(batch, i).window, before.sample(batch, i).window);
  std::set<int64_t> epochs;
  for (int64_t i = 0; i < 12; ++i) epochs.insert(sampler.sample(19, i).epoch);
  EXPECT_EQ(epochs, std::set<int64_t>{1});
  const Seen seen = walk(config, sampler, {6110, 940}, 50);
  EXPECT_EQ(std::prev(seen.upper_bound({0, 1 << 20}))->first.second, 1) << "the pieces stay long";
}

TEST_F(SamplerStagesTest, ReservedSequencesStayUnread) {
  const std::string a = source("a", 6111, 1);
  Config config = experiment(a, source("b", 950, 2));
  config.data.validation = {a, 7, 100};  // windows of 10: 604 to train on
  config.stages.resize(1);
  config.stages[0] = {30, {}, {}, 40, {}, {}};
  walk(config, Sampler(config), {6040, 940}, 200);
}

TEST_F(SamplerStagesTest, LoadsWindowsOfTheStage) {
  const std::string a = source("a", 6111, 1);
  Config config = experiment(a, source("b", 950, 2));
  config.stages.resize(1);
  config.stages[0] = {3, 4, {}, 20, {1.0, 0.0}, {}};
  const Sampler sampler(config);
  std::vector<int32_t> all(6111);
  TokenFile::open(a).read(0, all);
  std::vector<int32_t> tokens(2 * 20), targets(2 * 20);
  sampler.load(4, 1, 3, tokens, targets);
  for (int64_t i = 0; i < 2; ++i) {
    const auto begin = sampler.sample(4, 1 + i).window * 20;
    EXPECT_TRUE(std::equal(tokens.begin() + 20 * i, tokens.begin() + 20 * (i + 1), all.begin() + begin));
    EXPECT_TRUE(std::equal(targets.begin() + 20 * i, targets.begin() + 20 * (i + 1), all.begin() + begin + 1));
  }
  EXPECT_THROW((void)sampler.sample(4, 4), InternalError);
}

TEST_F(SamplerStagesTest, SourcesMayBeAddedForLater) {
  const std::string a = source("a", 6111, 1), b = source("b", 950, 2), c = source("c", 800, 3);
  Config config = experiment(a, b);
  const std::string before = Sampler(config).fingerprint();
  config.data.train.push_back({c, 0.0});
  config.stages.resize(1);
  config.stages[0] = {30, {}, {}, {}, {1.0, 1.0, 1.0}, {}};
  const Sampler sampler(config);
  EXPECT_NE(sampler.fingerprint(), before);
  EXPECT_TRUE(sampler.continues(before, 29));
  EXPECT_FALSE(sampler.continues(before, 30));
  EXPECT_TRUE(sampler.continues(sampler.fingerprint(), 300));
  std::swap(config.data.train[0].path, config.data.train[1].path);
  EXPECT_FALSE(Sampler(config).continues(before, 29));
}

}  // namespace
}  // namespace lamina
