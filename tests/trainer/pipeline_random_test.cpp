// Layouts drawn from a seed: those that are accepted equal one rank, those that are refused are impossible, for the reason
// that the message gives. What is possible is judged here by rules of its own.
#include <gmock/gmock.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>

#include "configs/schema/decode.h"
#include "model/cost_model.h"
#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

struct Draw {
  Config config;
  int num_ranks = 1;
};

class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) {  // both included; the same numbers with every library
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool one_in(int64_t n) { return between(1, n) == 1; }

 private:
  std::mt19937_64 engine_;
};

std::vector<int64_t> draw_split(Dice& dice, int64_t layers, int64_t chunks) {
  if (dice.one_in(12)) chunks += dice.between(-1, 1);
  std::vector<int64_t> split(static_cast<size_t>(std::max<int64_t>(1, chunks)), 0);
  const bool bare_ends = dice.one_in(3);
  const auto count = static_cast<int64_t>(split.size());
  for (int64_t c = 0; c < count && layers > 0; ++c) {
    if (bare_ends && count > 2 && (c == 0 || c == count - 1)) continue;
    ++split[static_cast<size_t>(c)];
    --layers;
  }
  if (dice.one_in(10)) layers += dice.between(-1, 1);
  for (; layers > 0; --layers) ++split[static_cast<size_t>(dice.between(bare_ends && count > 2 ? 1 : 0, count - 1))];
  if (dice.one_in(12)) std::swap(split.front(), split[split.size() / 2]);
  return split;
}

Draw draw(Dice& dice) {
  const int64_t pipeline = dice.between(1, 4), virtual_stages = dice.between(1, 4), data = dice.between(1, 2);
  const int64_t chunks = pipeline * virtual_stages;
  const int64_t layers = std::max<int64_t>(1, chunks + dice.between(-3, 3));
  const Residual residual = std::array{Residual::standard, Residual::full_attnres, Residual::block_attnres,
                                       Residual::block_attnres}[static_cast<size_t>(dice.between(0, 3))];
  Draw out;
  Config& c = out.config = tiny_config(residual, layers, dice.between(1, 4));
  c.model.tie_word_embeddings = dice.one_in(3);
  c.data.train = {{"tokens", 1.0}};
  c.parallel.pipeline = static_cast<int>(pipeline);
  c.parallel.virtual_stages = static_cast<int>(virtual_stages);
  c.parallel.data = dice.one_in(4) ? 0 : static_cast<int>(data);
  c.parallel.schedule = static_cast<ScheduleName>(dice.between(0, 3));
  c.parallel.block_transport = static_cast<BlockTransport>(dice.between(0, 1));
  if (!dice.one_in(3)) c.parallel.split = draw_split(dice, layers, chunks);
  c.train.recompute = static_cast<Recompute>(dice.between(0, 2));
  c.train.num_steps = 1;
  c.train.micro_batch_size = dice.between(1, 2);
  c.train.global_batch_size = c.train.micro_batch_size * data * dice.between(1, 6);
  if (dice.one_in(8)) c.train.global_batch_size += dice.between(1, 3);
  out.num_ranks = static_cast<int>(pipeline * data);
  if (dice.one_in(8)) out.num_ranks += static_cast<int>(dice.between(1, 3));
  return out;
}

// The keys at fault, as messages name them; none for a layout that can run.
std::set<std::string> faults_of(const Config& c, int num_ranks) {
  std::set<std::string> keys;
  const int64_t layers = c.model.num_hidden_layers, chunks = int64_t{c.parallel.pipeline} * c.parallel.virtual_stages;
  if (c.parallel.virtual_stages != 1 && c.parallel.schedule == ScheduleName::one_f_one_b)
    keys.insert("parallel.schedule");
  // Every chunk needs a layer, but for the two that hold the embedding and the head.
  if (chunks - 2 > layers) keys.insert("parallel.pipeline");
  if (!c.parallel.split.empty()) {
    int64_t sum = 0;
    for (size_t i = 0; i < c.parallel.split.size(); ++i) {
      sum += c.parallel.split[i];
      const bool inside = i != 0 && i + 1 != c.parallel.split.size();
      if ((inside && c.parallel.split[i] < 1) || sum > layers) keys.insert(fmt::format("parallel.split[{}]", i));
    }
    if (sum != layers || chunks != static_cast<int64_t>(c.parallel.split.size())) keys.insert("parallel.split");
  }
  if (num_ranks % c.parallel.pipeline != 0) keys.insert("parallel.pipeline");
  const int64_t data = c.parallel.data > 0 ? c.parallel.data : std::max(1, num_ranks / c.parallel.pipeline);
  if (data * c.parallel.pipeline != num_ranks) keys.insert("parallel.data");
  bool whole = false;  // some number of micro-batches makes up the batch
  for (int64_t n = 1; n <= c.train.global_batch_size; ++n)
    whole = whole || n * data * c.train.micro_batch_size == c.train.global_batch_size;
  if (!whole) keys.insert("train.global_batch_size");
  return keys;
}

// What the program says to a user who gives it this file and this many ranks; empty when it accepts them.
std::string refusal_of(const Config& drawn, int num_ranks) {
  try {
    const Config c = parse_config(to_yaml(drawn), "drawn.yaml");
    EXPECT_EQ(resolve_data_parallel(c, num_ranks) * c.parallel.pipeline, num_ranks);
    return "";
  } catch (const Error& refusal) {
    return refusal.what();
  }
}

// The key that a message is about: what stands before the first ": found".
std::string key_in(const std::string& message) {
  const std::string head = message.substr(0, message.find(": found"));
  const size_t at = head.rfind(' ');
  return at == std::string::npos ? head : head.substr(at + 1);
}

// Advice has to help: the nearest batch sizes and the expected number of data-parallel ranks.
void check_advice(Config c, int num_ranks, const std::string& message) {
  int64_t below = 0, above = 0;
  if (const size_t at = message.find("the nearest are "); at != std::string::npos) {
    ASSERT_EQ(std::sscanf(message.c_str() + at, "the nearest are %ld and %ld", &below, &above), 2);
  } else if (const size_t one = message.find("the nearest is "); one != std::string::npos) {
    ASSERT_EQ(std::sscanf(message.c_str() + one, "the nearest is %ld", &above), 1);
  }
  const std::string key = key_in(message);
  for (const int64_t advised : {below, above}) {
    if (advised == 0 || key != "train.global_batch_size") continue;
    Config better = c;
    better.train.global_batch_size = advised;
    EXPECT_EQ(faults_of(better, num_ranks).count(key), 0u) << advised << ": " << message;
  }
  if (key == "parallel.pipeline" && num_ranks % c.parallel.pipeline != 0 && above > 0) {
    EXPECT_EQ(above % c.parallel.pipeline, 0) << message;
  }
  if (int64_t expected = 0; key == "parallel.data") {
    const size_t at = message.find("expected ");
    ASSERT_EQ(std::sscanf(message.c_str() + at, "expected %ld", &expected), 1) << message;
    c.parallel.data = static_cast<int>(expected);
    EXPECT_EQ(faults_of(c, num_ranks).count(key), 0u) << message;
  }
}

std::string describe(const Draw& drawn) {
  return fmt::format("{} ranks of\n{}", drawn.num_ranks, to_yaml(drawn.config));
}

void expect_equal_to_one_rank(const Draw& drawn) {
  const Config parsed = parse_config(to_yaml(drawn.config), "drawn.yaml");
  Config alone = parsed;
  alone.parallel = {};
  alone.train.recompute = Recompute::none;
  const StepResult expected = run_step(alone, 1), found = run_step(parsed, drawn.num_ranks);
  const auto [difference, name] = worst_difference(found.gradients, expected.gradients);
  EXPECT_LE(difference, 1e-12) << name << " with " << describe(drawn);
  EXPECT_EQ(found.gradients.size(), expected.gradients.size());
  EXPECT_NEAR(found.loss, expected.loss, 1e-12 * expected.loss) << describe(drawn);
  const auto routes = pipeline::make_block_routes(pipeline::make_chunk_split(model::resolve_split(parsed)),
                                                  pipeline::make_block_layout(parsed.model), parsed.parallel.pipeline,
                                                  parsed.parallel.block_transport);
  EXPECT_EQ(found.summary_bytes, 2 * routes.num_sent() * (parsed.train.global_batch_size * parsed.data.seq_len) *
                                     parsed.model.hidden_size * 8)
      << describe(drawn);
}

TEST(RandomLayouts, AcceptedOnesEqualOneRankAndRefusalsAreTrue) {
  // Under a sanitizer, a tenth.
  const int wanted = std::getenv("LAMINA_TEST_LAYOUTS") == nullptr ? 100 : 10;
  Dice dice(20260314);
  int accepted = 0;
  std::map<std::string, int> refused;
  while (accepted < wanted) {
    const Draw drawn = draw(dice);
    const std::set<std::string> faults = faults_of(drawn.config, drawn.num_ranks);
    const std::string refusal = refusal_of(drawn.config, drawn.num_ranks);
    if (refusal.empty()) {
      ++accepted;
      EXPECT_THAT(faults, ::testing::IsEmpty()) << "accepted: " << describe(drawn);
      if (faults.empty()) expect_equal_to_one_rank(drawn);
    } else {
      const std::string key = key_in(refusal);
      ++refused[key.substr(0, key.find('['))];
      EXPECT_EQ(faults.count(key), 1u) << refusal << "\n" << describe(drawn);
      EXPECT_EQ(refusal.find('\n'), std::string::npos) << refusal;
      check_advice(drawn.config, drawn.num_ranks, refusal);
    }
    if (::testing::Test::HasFailure()) return;
  }
  if (wanted < 100) return;
  for (const char* key :
       {"parallel.schedule", "parallel.pipeline", "parallel.split", "parallel.data", "train.global_batch_size"})
    EXPECT_GE(refused[key], 2) << key;
}

}  // namespace
}  // namespace lamina
