#include "data/sampler.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "data/permutation.h"
#include "tests/data/support.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class SamplerTest : public DataTest {
 protected:
  // A folder whose tokens are bytes; `seed` makes its content.
  std::string source(const std::string& name, size_t num_tokens, unsigned seed) {
    std::string text(num_tokens - 1, ' ');
    std::mt19937 random(seed);
    for (char& c : text) c = static_cast<char>('a' + random() % 26);
    prepare(options(name, {write(name + ".txt", text)}));
    return path(name);
  }
  static DataConfig config(int64_t seq_len, std::vector<SourceConfig> train, ValidationConfig validation = {}) {
    DataConfig result;
    result.seq_len = seq_len;
    result.train = std::move(train);
    result.validation = std::move(validation);
    return result;
  }
};

TEST(Permutation, IsOneForEverySizeSeedAndStream) {
  for (uint64_t size : {1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097}) {
    std::set<std::vector<uint64_t>> different;
    for (uint64_t stream = 0; stream < 4; ++stream) {
      const Permutation permutation(size, 9, stream);
      std::vector<uint64_t> values(size);
      for (uint64_t i = 0; i < size; ++i) values[i] = permutation(i);
      different.insert(values);
      std::sort(values.begin(), values.end());
      for (uint64_t i = 0; i < size; ++i) ASSERT_EQ(values[i], i) << size;
    }
    if (size >= 16) {
      EXPECT_EQ(different.size(), 4u);
    }
  }
  EXPECT_THROW(Permutation(10, 1, 1)(10), InternalError);
  EXPECT_THROW(Permutation(0, 1, 1), InternalError);
  const Permutation large((uint64_t{1} << 61) + 12345, 1, 1);
  for (uint64_t i = 0; i < 1000; ++i) EXPECT_LT(large(i), (uint64_t{1} << 61) + 12345);
}

TEST(Permutation, LooksRandom) {
  // Mean of |p(i + 1) - p(i)| of a random permutation is size / 3, with a deviation of size * 0.24 / sqrt(2000).
  const uint64_t size = 10'000;
  const Permutation permutation(size, 5, 3);
  double sum = 0;
  int neighbours = 0;
  for (uint64_t i = 0; i < 2000; ++i) {
    const double difference = static_cast<double>(permutation(i + 1)) - static_cast<double>(permutation(i));
    sum += std::abs(difference);
    neighbours += std::abs(difference) == 1 ? 1 : 0;
  }
  EXPECT_NEAR(sum / 2000.0, static_cast<double>(size) / 3, static_cast<double>(size) * 0.027);  // five deviations
  EXPECT_LE(neighbours, 5);                                                                     // expected 0.4
}

TEST(SourceMix, EveryPrefixFollowsTheWeights) {
  const std::vector<double> weights{5.0, 0.0, 2.5, 0.1, 2.4};
  const SourceMix mix(weights);
  std::vector<int64_t> count(weights.size(), 0);
  for (int64_t n = 0; n < 2 * SourceMix::num_slots + 1000; ++n) {
    for (size_t s = 0; n % 997 == 0 && s < weights.size(); ++s)
      ASSERT_EQ(mix.count_before(n, static_cast<int64_t>(s)), count[s]) << n;
    const SourceMix::Slot slot = mix.at(n);
    ASSERT_EQ(slot.index, count[static_cast<size_t>(slot.source)]) << n;
    ++count[static_cast<size_t>(slot.source)];
    // Rounding to slots is off by at most one slot of 65536 per pattern.
    for (size_t s = 0; s < weights.size(); ++s)
      ASSERT_NEAR(static_cast<double>(count[s]), weights[s] / 10.0 * static_cast<double>(n + 1), 4.0) << n;
  }
  EXPECT_EQ(count[1], 0);
}

TEST(SourceMix, WrongWeights) {
  const auto error = [](std::vector<double> weights) {
    try {
      SourceMix mix(weights);
    } catch (const Error& failure) {
      return std::string(failure.what());
    }
    return std::string("none");
  };
  EXPECT_THAT(error({}), HasSubstr("0 data sources"));
  EXPECT_THAT(error({1, -1}), HasSubstr("-1"));
  EXPECT_THAT(error({0, 0}), HasSubstr("more than 0"));
  EXPECT_THAT(error({1, std::nan("")}), HasSubstr("nan"));
  EXPECT_THAT(error({1, 1e-9}), AllOf(HasSubstr("1e-09"), HasSubstr("65536")));
}

TEST_F(SamplerTest, EveryEpochOfEverySourceVisitsEachWindowOnce) {
  const Sampler sampler(config(10, {{source("a", 371, 1), 3.0}, {source("b", 500, 2), 1.0}}), 7, 8, 257);
  EXPECT_EQ(sampler.num_windows(0), 37);
  EXPECT_EQ(sampler.num_windows(1), 49);
  std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>> visits;  // (source, epoch) -> windows in order
  std::map<int64_t, int64_t> last_epoch;
  for (int64_t step = 0; step < 100; ++step)
    for (int64_t i = 0; i < 8; ++i) {
      const SampleRef ref = sampler.sample(step, i);
      visits[{ref.source, ref.epoch}].push_back(ref.window);
      EXPECT_GE(ref.epoch, last_epoch[ref.source]) << "epochs follow one another";
      last_epoch[ref.source] = ref.epoch;
    }
  int64_t whole_epochs = 0;
  std::set<std::vector<int64_t>> orders;
  for (auto& [key, windows] : visits) {
    orders.insert(windows);
    const std::set<int64_t> unique(windows.begin(), windows.end());
    EXPECT_EQ(unique.size(), windows.size()) << "a window twice in an epoch";
    EXPECT_TRUE(*unique.begin() >= 0 && *unique.rbegin() < sampler.num_windows(key.first));
    if (key.second == last_epoch[key.first]) continue;
    EXPECT_EQ(static_cast<int64_t>(windows.size()), sampler.num_windows(key.first));
    ++whole_epochs;
  }
  EXPECT_EQ(whole_epochs, 600 / 37 + 200 / 49);
  EXPECT_EQ(orders.size(), visits.size()) << "an order was repeated";
  const std::vector<double> epochs = sampler.epochs(100);
  EXPECT_NEAR(epochs[0], 600.0 / 37, 0.1);
  EXPECT_NEAR(epochs[1], 200.0 / 49, 0.1);
  EXPECT_EQ(sampler.epochs(0), (std::vector<double>{0.0, 0.0}));
}

TEST_F(SamplerTest, SamplesAreAPureFunctionOfSeedAndNumber) {
  const DataConfig data = config(10, {{source("a", 3000, 1), 1.0}, {source("b", 5000, 2), 2.0}});
  const Sampler a(data, 7, 12, 257), again(data, 7, 12, 257), other_seed(data, 8, 12, 257), wider(data, 7, 24, 257);
  int different = 0;
  for (int64_t step : {int64_t{1'000'000'000}, int64_t{5}, int64_t{0}, int64_t{123'456}})
    for (int64_t i = 11; i >= 0; --i) {
      const SampleRef x = a.sample(step, i), y = again.sample(step, i);
      EXPECT_TRUE(x.source == y.source && x.window == y.window && x.epoch == y.epoch);
      different += x.window != other_seed.sample(step, i).window ? 1 : 0;
      // Only the number step * global_batch_size + i counts.
      const int64_t n = step * 12 + i;
      EXPECT_EQ(wider.sample(n / 24, n % 24).window, x.window);
    }
  EXPECT_GT(different, 40);
  EXPECT_THROW((void)a.sample(0, 12), InternalError);
  EXPECT_THROW((void)a.sample(-1, 0), InternalError);
}

TEST_F(SamplerTest, LoadsTheWindowsHoweverTheBatchIsSplit) {
  const std::string folder = source("a", 1000, 1);
  const Sampler sampler(config(16, {{folder, 1.0}}), 3, 6, 257);
  const std::vector<int32_t> all = all_tokens(TokenFile::open(folder));
  std::vector<int32_t> tokens(6 * 16, -1), targets(6 * 16, -1);
  sampler.load(4, 0, 6, tokens, targets);
  for (int64_t i = 0; i < 6; ++i) {
    const int64_t begin = sampler.sample(4, i).window * 16;
    for (int64_t k = 0; k < 16; ++k) {
      EXPECT_EQ(tokens[static_cast<size_t>(i * 16 + k)], all[static_cast<size_t>(begin + k)]);
      EXPECT_EQ(targets[static_cast<size_t>(i * 16 + k)], all[static_cast<size_t>(begin + k + 1)]);
    }
  }
  for (int64_t begin = 0; begin < 6; begin += 2) {
    std::vector<int32_t> some_tokens(2 * 16, -1), some_targets(2 * 16, -1);
    sampler.load(4, begin, begin + 2, some_tokens, some_targets);
    EXPECT_TRUE(std::equal(some_tokens.begin(), some_tokens.end(), tokens.begin() + begin * 16));
    EXPECT_TRUE(std::equal(some_targets.begin(), some_targets.end(), targets.begin() + begin * 16));
  }
  EXPECT_THROW(sampler.load(4, 0, 7, tokens, targets), InternalError);
  EXPECT_THROW(sampler.load(4, 0, 5, tokens, targets), InternalError);
}

TEST_F(SamplerTest, ValidationIsNeverTrainedOn) {
  const std::string folder = source("a", 1000, 1);  // 99 windows of 10
  const std::string other = source("b", 1000, 2);
  fs::create_directory_symlink(folder, path("link"));
  fs::copy(folder, path("copy"), fs::copy_options::recursive);
  for (const std::string& same : {folder, folder + "/../a", path("link"), path("copy")}) {
    const Sampler sampler(config(10, {{same, 1.0}, {other, 1.0}}, {folder, 7, 100}), 1, 4, 257);
    EXPECT_EQ(sampler.num_validation_sequences(), 7);
    EXPECT_EQ(sampler.num_windows(0), 92);
    EXPECT_EQ(sampler.num_windows(1), 99) << "another source keeps all its windows";
    std::set<int64_t> trained;  // positions that were targets
    for (int64_t step = 0; step < 100; ++step)
      for (int64_t i = 0; i < 4; ++i)
        if (const SampleRef ref = sampler.sample(step, i); ref.source == 0)
          for (int64_t k = 1; k <= 10; ++k) trained.insert(ref.window * 10 + k);
    EXPECT_EQ(trained.size(), 920u);
    EXPECT_LE(*trained.rbegin(), 920);
    const std::vector<int32_t> all = all_tokens(TokenFile::open(folder));
    std::vector<int32_t> tokens(70, -1), targets(70, -1);
    sampler.load_validation(0, 7, tokens, targets);
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), all.begin() + 920));
    EXPECT_TRUE(std::equal(targets.begin(), targets.end(), all.begin() + 921)) << "validation targets begin at 921";
    std::vector<int32_t> part(20, -1), part_targets(20, -1);
    sampler.load_validation(3, 5, part, part_targets);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.begin() + 30));
    EXPECT_THROW(sampler.load_validation(6, 8, part, part_targets), InternalError);
  }
}

TEST_F(SamplerTest, CountsTheBytesOfTheValidationTargets) {
  PrepareOptions o = options("a", {write("a.txt", words(20'000, 1)), write("b.txt", words(3'000, 2))});
  o.tokenizer = "sentencepiece:" + train_model();
  prepare(o);
  const Sampler sampler(config(32, {{path("a"), 1.0}}, {path("a"), 40, 100}), 1, 4, 400);
  std::vector<int32_t> tokens(40 * 32), targets(40 * 32);
  sampler.load_validation(0, 40, tokens, targets);
  const std::string text = sampler.tokenizer().decode(targets);
  EXPECT_EQ(sampler.num_validation_bytes(0, 40), static_cast<int64_t>(text.size()));
  EXPECT_EQ(sampler.num_validation_bytes(0, 15) + sampler.num_validation_bytes(15, 40),
            static_cast<int64_t>(text.size()));
  EXPECT_GT(text.size(), targets.size());
}

TEST_F(SamplerTest, TheFingerprintTellsDataApart) {
  const std::string a = source("a", 1000, 1), b = source("b", 1000, 2);
  const auto fingerprint = [](const DataConfig& data) { return Sampler(data, 1, 4, 257).fingerprint(); };
  const std::string first = fingerprint(config(10, {{a, 1.0}}));
  EXPECT_EQ(first.find('\n'), std::string::npos);
  fs::copy(a, path("moved"), fs::copy_options::recursive);
  EXPECT_EQ(fingerprint(config(10, {{path("moved"), 1.0}})), first);
  EXPECT_NE(fingerprint(config(10, {{b, 1.0}})), first);
  EXPECT_NE(fingerprint(config(11, {{a, 1.0}})), first);
  EXPECT_NE(fingerprint(config(10, {{a, 1.0}}, {a, 3, 100})), first);
  EXPECT_NE(fingerprint(config(10, {{a, 1.0}, {b, 1.0}})), fingerprint(config(10, {{b, 1.0}, {a, 1.0}})));
}

TEST_F(SamplerTest, TheFingerprintIsReadBack) {
  const std::string a = source("a", 1000, 1), b = source("b", 500, 2);
  for (const DataConfig& data : {config(10, {{a, 1.0}}), config(7, {{a, 1.0}, {b, 2.0}}, {b, 3, 100})}) {
    const Sampler sampler(data, 1, 4, 257);
    const std::optional<DataIdentity> read = parse_data_identity(sampler.fingerprint());
    ASSERT_TRUE(read.has_value()) << sampler.fingerprint();
    EXPECT_EQ(*read, sampler.identity());
    EXPECT_EQ(read->tokenizer_hash, make_tokenizer("bytes")->hash());
  }
  const std::string good = Sampler(config(10, {{a, 1.0}}, {a, 3, 100}), 1, 4, 257).fingerprint();
  for (const std::string& bad : {std::string(), std::string("none"), good + "; more", good.substr(0, good.size() - 17),
                                 "seq_len x" + good.substr(9), good + " "})
    EXPECT_FALSE(parse_data_identity(bad).has_value()) << bad;
}

TEST_F(SamplerTest, ValidationSequencesThatAnotherRunTrainedOn) {
  const std::string a = source("a", 1005, 1), b = source("b", 1005, 2);  // 100 sequences of 10, 4 tokens left over
  const auto identity = [](const DataConfig& data) { return Sampler(data, 1, 4, 257).identity(); };
  const auto trained = [](const DataConfig& data, const DataIdentity& other) {
    return Sampler(data, 1, 4, 257).num_trained_validation_sequences(other);
  };
  const DataIdentity reserved = identity(config(10, {{a, 1.0}}, {a, 8, 100}));
  EXPECT_EQ(trained(config(10, {{a, 1.0}}, {a, 8, 100}), reserved), 0);
  EXPECT_EQ(trained(config(10, {{a, 1.0}}, {a, 5, 100}), reserved), 0) << "the last 5 of the 8";
  EXPECT_EQ(trained(config(10, {{a, 1.0}}, {a, 9, 100}), reserved), 1);
  EXPECT_EQ(trained(config(10, {{b, 1.0}}, {a, 60, 100}), reserved), 52);
  EXPECT_EQ(trained(config(10, {{a, 1.0}}, {b, 60, 100}), reserved), 0) << "other text";
  EXPECT_EQ(trained(config(10, {{a, 1.0}}), reserved), 0) << "no validation";
  // Targets 921 to 1000 are reserved: 2 sequences of 40 begin there, and 27 of 3, the first with the target 922.
  EXPECT_EQ(trained(config(40, {{a, 1.0}}, {a, 2, 100}), reserved), 0);
  EXPECT_EQ(trained(config(40, {{a, 1.0}}, {a, 3, 100}), reserved), 1);
  EXPECT_EQ(trained(config(3, {{a, 1.0}}, {a, 27, 100}), reserved), 0);
  EXPECT_EQ(trained(config(3, {{a, 1.0}}, {a, 28, 100}), reserved), 1) << "of its targets only 919 and 920";
  const DataIdentity none = identity(config(10, {{a, 1.0}}));
  EXPECT_EQ(trained(config(10, {{a, 1.0}}, {a, 8, 100}), none), 8);
  EXPECT_EQ(trained(config(10, {{a, 1.0}}, {a, 8, 100}), identity(config(10, {{a, 1.0}, {b, 1.0}}, {b, 8, 100}))), 8);
}

TEST_F(SamplerTest, EvaluatesWithoutTrainingSources) {
  const std::string a = source("a", 1000, 1);
  const Sampler both(config(10, {{a, 1.0}}, {a, 7, 100}), 1, 4, 257), alone(config(10, {}, {a, 7, 100}), 1, 4, 257);
  std::vector<int32_t> tokens(70), targets(70), expected_tokens(70), expected_targets(70);
  alone.load_validation(0, 7, tokens, targets);
  both.load_validation(0, 7, expected_tokens, expected_targets);
  EXPECT_EQ(tokens, expected_tokens);
  EXPECT_EQ(targets, expected_targets);
  EXPECT_EQ(alone.end_of_document(), 256);
  EXPECT_EQ(alone.tokenizer().hash(), both.tokenizer().hash());
  EXPECT_EQ(alone.num_trained_validation_sequences(both.identity()), 0);
  // All of it may be evaluated, and nothing trained on.
  EXPECT_EQ(Sampler(config(10, {}, {a, 99, 100}), 1, 4, 257).num_validation_sequences(), 99);
  EXPECT_THROW((void)alone.sample(0, 0), InternalError);
  EXPECT_THAT(error_of([&] { Sampler sampler(config(10, {}), 1, 4, 257); }), HasSubstr("no sources"));
}

TEST_F(SamplerTest, WrongSourcesAreNamed) {
  const std::string a = source("a", 1000, 1), small = source("small", 20, 2);
  PrepareOptions o = options("pieces", {path("a.txt")});
  o.tokenizer = "sentencepiece:" + train_model();
  prepare(o);
  EXPECT_EQ(data_vocab_size(config(10, {{a, 1.0}})), 257);
  EXPECT_EQ(data_vocab_size(config(10, {{path("pieces"), 1.0}})), 400);
  EXPECT_THAT(error_of([&] { (void)data_vocab_size(config(10, {})); }), HasSubstr("no sources"));
  const auto error = [&](const DataConfig& data, int64_t vocab_size = 257) {
    return error_of([&] { Sampler sampler(data, 1, 4, vocab_size); });
  };
  EXPECT_THAT(error(config(10, {{path("missing"), 1.0}})), HasSubstr("missing: no such folder"));
  EXPECT_THAT(error(config(10, {{a, 1.0}}), 256),
              AllOf(HasSubstr("/a"), HasSubstr("257"), HasSubstr("vocab_size 256")));
  EXPECT_THAT(error(config(10, {{a, 1.0}, {path("pieces"), 1.0}}), 400),
              AllOf(HasSubstr("/a has bytes"), HasSubstr("/pieces has the tokenizer sentencepiece")));
  EXPECT_THAT(error(config(20, {{small, 1.0}})),
              AllOf(HasSubstr("/small: found 20 tokens"), HasSubstr("at least 21"), HasSubstr("seq_len 20")));
  EXPECT_THAT(error(config(10, {{a, 1.0}}, {a, 100, 10})),
              AllOf(HasSubstr("99 sequences"), HasSubstr("at least the 100 of data.validation.num_sequences")));
  EXPECT_THAT(error(config(10, {{a, 1.0}}, {a, 99, 10})), HasSubstr("99 sequences reserved for validation"));
  EXPECT_THAT(error(config(10, {{a, 0.0}})), HasSubstr("more than 0"));
}

}  // namespace
}  // namespace lamina
