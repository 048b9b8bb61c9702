// Any layout trains the Kimi Linear model of one rank: KDA and MLA, experts over expert-parallel ranks, balance loss. The
// matrix of layouts_test.cpp, and data x expert, gates, micro-batch sizes and documents, is too large to run: a fixed sample
// of it in which every two values of any two dimensions meet.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <regex>
#include <set>

#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

struct Scheme {
  Residual residual;
  int64_t block_size;
};
constexpr Scheme schemes[] = {{Residual::standard, 1},
                              {Residual::full_attnres, 1},
                              {Residual::block_attnres, 1},
                              {Residual::block_attnres, 2},
                              {Residual::block_attnres, 3}};
constexpr int degrees[] = {1, 2, 4};  // of data and expert
constexpr ScheduleName schedules[] = {ScheduleName::gpipe, ScheduleName::one_f_one_b, ScheduleName::interleaved_1f1b,
                                      ScheduleName::zero_bubble};
constexpr Recompute recompute_modes[] = {Recompute::none, Recompute::selective, Recompute::full};

enum Dimension : size_t {
  pipeline_ranks,
  virtual_stages,
  data_ranks,
  expert_ranks,
  schedule,
  recompute,
  transport,
  scheme,
  num_microbatches,
  micro_batch_size,
  split,
  gate,
  documents,
  num_dimensions
};
constexpr std::array<int, num_dimensions> num_values = {4, 4, 3, 3, 4, 3, 2, 5, 3, 2, 2, 2, 2};
using Choice = std::array<int, num_dimensions>;  // index of the value in each dimension

std::vector<int64_t> split_of(int64_t layers, int chunks, bool uneven) {
  std::vector<int64_t> even(static_cast<size_t>(chunks), layers / chunks), odd(static_cast<size_t>(chunks), 1);
  for (int64_t i = 0; i < layers % chunks; ++i) ++even[static_cast<size_t>(i)];
  for (int64_t i = 0; i < layers - chunks; ++i) odd[static_cast<size_t>((3 * i * i + 1) % chunks)] += 1;
  if (odd == even) std::reverse(odd.begin(), odd.end());
  return uneven ? odd : even;
}

Config config_of(const Choice& choice) {
  const int P = choice[pipeline_ranks] + 1, V = choice[virtual_stages] + 1;
  const int64_t layers = P * V + 2;
  const Scheme& residual = schemes[choice[scheme]];
  Config c = tiny_kimi_config(residual.residual, layers, residual.block_size);
  c.parallel.pipeline = P;
  c.parallel.virtual_stages = V;
  c.parallel.data = degrees[choice[data_ranks]];
  c.parallel.expert = degrees[choice[expert_ranks]];
  c.parallel.schedule = schedules[choice[schedule]];
  c.parallel.block_transport = choice[transport] == 0 ? BlockTransport::cached : BlockTransport::full;
  c.parallel.split = split_of(layers, P * V, choice[split] == 1);
  c.train.recompute = recompute_modes[choice[recompute]];
  c.train.micro_batch_size = choice[micro_batch_size] + 1;
  const std::array<int, 3> counts = {std::max(1, P - 1), P, P + 3};
  c.train.global_batch_size =
      c.parallel.data * c.train.micro_batch_size * counts[static_cast<size_t>(choice[num_microbatches])];
  if (choice[gate] == 1) c.model.gate_lower_bound = -5;
  c.data.document_mask = choice[documents] == 1;
  return c;
}

bool is_possible(const Choice& choice) {
  const int P = choice[pipeline_ranks] + 1, V = choice[virtual_stages] + 1;
  if (degrees[choice[data_ranks]] % degrees[choice[expert_ranks]] != 0) return false;
  if (schedules[choice[schedule]] == ScheduleName::one_f_one_b && V > 1) return false;
  if (choice[transport] == 1 && (P == 1 || schemes[choice[scheme]].residual == Residual::standard)) return false;
  return choice[split] == 0 || split_of(P * V + 2, P * V, true) != split_of(P * V + 2, P * V, false);
}

using Pair = std::array<int, 4>;  // dimension, value, another dimension, value

template <class Body>
void for_each_pair(const Choice& choice, Body&& body) {
  for (size_t a = 0; a < num_dimensions; ++a)
    for (size_t b = a + 1; b < num_dimensions; ++b)
      body(Pair{static_cast<int>(a), choice[a], static_cast<int>(b), choice[b]});
}

bool next(Choice& choice) {
  for (size_t d = 0; d < num_dimensions; ++d) {
    if (++choice[d] < num_values[d]) return true;
    choice[d] = 0;
  }
  return false;
}

// Pairs of values that some possible layout has.
std::set<Pair> possible_pairs() {
  // The others go with everything.
  const std::set<size_t> ruled = {pipeline_ranks, virtual_stages, data_ranks, expert_ranks,
                                  schedule,       transport,      scheme,     split};
  std::set<Pair> pairs;
  Choice choice = {};
  do {
    bool only_ruled = true;
    for (size_t d = 0; d < num_dimensions; ++d) only_ruled = only_ruled && (choice[d] == 0 || ruled.contains(d));
    if (only_ruled && is_possible(choice)) for_each_pair(choice, [&](const Pair& pair) { pairs.insert(pair); });
  } while (next(choice));
  for (int a = 0; a < static_cast<int>(num_dimensions); ++a)
    for (int b = a + 1; b < static_cast<int>(num_dimensions); ++b)
      for (int i = 0; i < num_values[static_cast<size_t>(a)]; ++i)
        for (int j = 0; j < num_values[static_cast<size_t>(b)]; ++j)
          if (!ruled.contains(static_cast<size_t>(a)) || !ruled.contains(static_cast<size_t>(b)))
            pairs.insert({a, i, b, j});
  return pairs;
}

// Covers all pairs with few layouts, then adds drawn ones up to `count`.
std::vector<Choice> sample(const std::set<Pair>& pairs, size_t count) {
  const CounterRng rng(21, "layouts");
  uint64_t draws = 0;
  const auto draw = [&](Choice& choice) {
    for (size_t d = 0; d < num_dimensions; ++d)
      choice[d] = static_cast<int>(rng.below(draws++, static_cast<uint64_t>(num_values[d])));
  };
  std::set<Pair> open = pairs;
  std::vector<Choice> chosen;
  while (!open.empty() || chosen.size() < count) {
    Choice best = {};
    int most = -1;
    for (int tries = open.empty() ? 1 : 50; tries > 0;) {
      Choice choice;
      draw(choice);
      if (!open.empty()) {
        const Pair& wanted = *open.begin();
        choice[static_cast<size_t>(wanted[0])] = wanted[1];
        choice[static_cast<size_t>(wanted[2])] = wanted[3];
      }
      if (!is_possible(choice)) continue;
      --tries;
      int covered = 0;
      for_each_pair(choice, [&](const Pair& pair) { covered += open.contains(pair); });
      if (covered > most) {
        most = covered;
        best = choice;
      }
    }
    for_each_pair(best, [&](const Pair& pair) { open.erase(pair); });
    chosen.push_back(best);
  }
  return chosen;
}

std::string describe(const Config& c) {
  static constexpr const char* names[] = {"gpipe", "1f1b", "interleaved_1f1b", "zero_bubble"};
  std::string layers;
  for (int64_t n : c.parallel.split) layers += fmt::format("{} ", n);
  return fmt::format(
      "pipeline {} x {} x data {} expert {}, {} sequences in micro-batches of {}, residual {} block {}, split {}, {}, "
      "recompute {}, {}, {} gate, {} documents, {}",
      c.parallel.pipeline, c.parallel.virtual_stages, c.parallel.data, c.parallel.expert, c.train.global_batch_size,
      c.train.micro_batch_size, static_cast<int>(c.model.residual), c.model.attn_res_block_size, layers,
      names[static_cast<size_t>(c.parallel.schedule)], static_cast<int>(c.train.recompute),
      c.parallel.block_transport == BlockTransport::full ? "full" : "cached",
      c.model.gate_lower_bound ? "bounded" : "softplus", c.data.document_mask ? "masked" : "joined",
      c.train.precision == Precision::fp64 ? "fp64" : "fp32");
}

// One rank's result for this model and batch, whatever the layout says.
class OneRank {
 public:
  const StepResult& of(Config c) {
    c.parallel = {};
    c.train.recompute = Recompute::none;
    c.train.micro_batch_size = 1;
    const auto key =
        std::tuple(c.model.residual, c.model.attn_res_block_size, c.model.num_hidden_layers, c.train.global_batch_size,
                   c.train.precision, c.model.gate_lower_bound.has_value(), c.data.document_mask);
    const auto found = results_.find(key);
    if (found != results_.end()) return found->second;
    return results_.emplace(key, run_step(c, 1)).first->second;
  }

 private:
  std::map<std::tuple<Residual, int64_t, int64_t, int64_t, Precision, bool, bool>, StepResult> results_;
};

// Rows to other ranks: a token's row goes once to each distinct rank that holds some of its experts.
int64_t count_rows(const StepResult& one_rank, const Config& c) {
  const auto k = static_cast<size_t>(c.model.num_experts_per_token);
  const int64_t per_rank = c.model.num_experts / c.parallel.expert;
  const int64_t tokens_of_rank = c.train.global_batch_size * c.data.seq_len / c.parallel.data;
  int64_t rows = 0;
  for (const std::vector<int32_t>& chosen : one_rank.choices)
    for (size_t token = 0; token < chosen.size() / k; ++token) {
      const int64_t home = static_cast<int64_t>(token) / tokens_of_rank % c.parallel.expert;
      for (int64_t rank = 0; rank < c.parallel.expert; ++rank)
        rows += rank != home && std::any_of(chosen.begin() + static_cast<int64_t>(token * k),
                                            chosen.begin() + static_cast<int64_t>((token + 1) * k),
                                            [&](int32_t expert) { return expert / per_rank == rank; });
    }
  return rows;
}

double norm_of_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double square = 0;
  for (size_t i = 0; i < a.size(); ++i) square += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(square);
}

// A_log's gradient adds up over the channels of a head what dt_bias's is per channel, with both signs: its rounding is of the size of
// those, however small the sum happens to be.
double size_before_sums(const std::string& name, const Tensors& tensors) {
  const auto norm_of = [&](const std::string& which) {
    const std::vector<double>& values = tensors.at(which);
    return norm_of_difference(values, std::vector<double>(values.size(), 0));
  };
  if (!name.ends_with("A_log")) return norm_of(name);
  return std::max(norm_of(name), norm_of(name.substr(0, name.size() - 5) + "dt_bias"));
}

// Whose roundings are judged together. A few numbers may all be right by chance: of small tensors, those of all layers say it.
std::string judged_together(const std::string& name, size_t num_elements) {
  static const std::regex layer("layers\\.[0-9]+\\.");
  return num_elements < 64 ? std::regex_replace(name, layer, "") : name;
}

// Within 1e-5 in single precision; but norms and gates of so small a model enlarge roundings, so that one rank itself is up to
// 1e-4 from its float64 result. Where it is, any order of its sums is about as far from it: then four times that passes.
void expect_single_precision(const Tensors& found, const Tensors& one_rank, const Tensors& exact, const Config& c) {
  ASSERT_EQ(found.size(), exact.size()) << describe(c);
  std::map<std::string, double> rounding;  // relative
  for (const auto& [name, values] : exact) {
    const std::vector<double>& expected = one_rank.at(name);
    ASSERT_EQ(found.at(name).size(), expected.size()) << name << " at " << describe(c);
    const double size = size_before_sums(name, exact), distance = norm_of_difference(expected, values);
    EXPECT_LE(distance, 1e-3 * size) << name << " at " << describe(c);
    double& largest = rounding[judged_together(name, values.size())];
    if (size > 0) largest = std::max(largest, distance / size);
  }
  for (const auto& [name, values] : exact) {
    const double tolerance = std::max(1e-5, 4 * rounding[judged_together(name, values.size())]);
    EXPECT_LE(norm_of_difference(found.at(name), one_rank.at(name)), tolerance * size_before_sums(name, exact))
        << name << " at " << describe(c);
  }
}

void expect_equal_to_one_rank(OneRank& one_rank, const Config& c) {
  const double tolerance = c.train.precision == Precision::fp64 ? 1e-12 : 1e-5;
  const StepResult& expected = one_rank.of(c);
  const StepResult found = run_step(c, c.parallel.pipeline * c.parallel.data);
  if (c.train.precision == Precision::fp64) {
    const auto [difference, name] = worst_difference(found.gradients, expected.gradients);
    EXPECT_LE(difference, tolerance) << name << " at " << describe(c);
  } else {
    Config exact = c;
    exact.train.precision = Precision::fp64;
    expect_single_precision(found.gradients, expected.gradients, one_rank.of(exact).gradients, c);
  }
  EXPECT_NEAR(found.loss, expected.loss, tolerance * expected.loss) << describe(c);
  EXPECT_NEAR(found.forward_loss, expected.loss, tolerance * expected.loss) << describe(c);

  EXPECT_EQ(found.choices, expected.choices) << describe(c);
  EXPECT_EQ(found.expert_counts, expected.expert_counts) << describe(c);
  EXPECT_GT(expected.aux_loss, 0) << describe(c);
  EXPECT_NEAR(found.aux_loss, expected.aux_loss, tolerance * expected.aux_loss) << describe(c);
  // There and back, forward and backward; recomputation sends rows there again.
  const int64_t rows = count_rows(expected, c), journeys = c.train.recompute == Recompute::full ? 5 : 4;
  EXPECT_EQ(rows == 0, c.parallel.expert == 1) << describe(c);
  EXPECT_EQ(found.expert_row_bytes, journeys * rows * c.model.hidden_size * size_of(compute_dtype(c.train.precision)))
      << describe(c);
}

// Under a sanitizer, a sample of the sample: LAMINA_TEST_LAYOUTS=n runs every n-th layout.
size_t stride() {
  const char* text = std::getenv("LAMINA_TEST_LAYOUTS");
  return text == nullptr ? 1 : static_cast<size_t>(std::max<int64_t>(1, std::atoll(text)));
}

class KimiLayouts : public ::testing::TestWithParam<int> {};
constexpr size_t num_layouts = 360;
constexpr int num_parts = 4;  // each ends at its first failure

TEST_P(KimiLayouts, EqualOneRank) {
  const std::set<Pair> pairs = possible_pairs();
  const std::vector<Choice> layouts = sample(pairs, num_layouts);
  std::set<Pair> covered;
  for (const Choice& choice : layouts) {
    ASSERT_TRUE(is_possible(choice));
    for_each_pair(choice, [&](const Pair& pair) { covered.insert(pair); });
  }
  EXPECT_EQ(covered, pairs);
  OneRank one_rank;
  for (size_t i = static_cast<size_t>(GetParam()); i < layouts.size(); i += num_parts * stride()) {
    Config c = config_of(layouts[i]);
    expect_equal_to_one_rank(one_rank, c);
    // Hyper-connections go the standard residual's ways: every second of its layouts with them, too.
    if (c.model.residual == Residual::standard && i / num_parts % 2 == 0) {
      Config streams = c;
      streams.model.residual = Residual::mhc;
      expect_equal_to_one_rank(one_rank, streams);
    }
    if (i % 5 == 0) {
      c.train.precision = Precision::fp32;
      expect_equal_to_one_rank(one_rank, c);
    }
    if (::testing::Test::HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(All, KimiLayouts, ::testing::Range(0, num_parts),
                         [](const auto& p) { return fmt::format("part{}of{}", p.param + 1, num_parts); });

// What makes the sample one: a value of each dimension meets each value of every other, but where a rule forbids it.
TEST(KimiLayoutSample, PossiblePairsAreAllButTheForbiddenOnes) {
  const std::set<Pair> pairs = possible_pairs();
  size_t all = 0;
  for (size_t a = 0; a < num_dimensions; ++a)
    for (size_t b = a + 1; b < num_dimensions; ++b) all += static_cast<size_t>(num_values[a] * num_values[b]);
  // Expert ranks that don't divide the data ranks (1, 2), (1, 4), (2, 4); 1f1b with V = 2, 3, 4; full transport on one
  // pipeline rank, and with the standard residual.
  EXPECT_EQ(pairs.size(), all - 3 - 3 - 1 - 1);
  EXPECT_LE(sample(pairs, 0).size(), 60U);
}

}  // namespace
}  // namespace lamina
