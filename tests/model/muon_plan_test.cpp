#include "model/optimizers/muon_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <span>

#include "core/base/error.h"
#include "core/base/rng.h"

namespace lamina::model {
namespace {

using ::testing::HasSubstr;

struct Unit {
  std::string name;
  int64_t rows, columns;
  bool joined = false;
};

// The units as a shard map cuts them.
std::vector<MuonMatrix> sharded(const std::vector<Unit>& units, int num_ranks, int64_t bucket_elements) {
  std::vector<zero::FlatParameter> flat;
  for (const Unit& unit : units) flat.push_back({unit.name, unit.rows * unit.columns, unit.joined});
  const zero::ShardMap map = zero::make_shard_map(flat, num_ranks, bucket_elements);
  std::vector<MuonMatrix> matrices;
  for (size_t p = 0; p < units.size(); ++p)
    matrices.push_back({units[p].name, units[p].rows, units[p].columns, muon_parts(map, flat, static_cast<int>(p))});
  return matrices;
}

// Shapes that repeat and shapes that don't, now and then joined, in buckets that cut through them.
std::vector<MuonMatrix> random_matrices(uint64_t seed, int num_ranks) {
  const CounterRng rng(91, seed);
  const uint64_t count = 1 + rng.below(0, 40);
  std::vector<Unit> units;
  for (uint64_t i = 0; i < count; ++i) {
    const auto side = [&](uint64_t k) {
      return 1 + static_cast<int64_t>(rng.below(10 * i + k, 4) * rng.below(10 * i + k + 1, 9));
    };
    units.push_back({fmt::format("m{}", i), side(1), side(3), i > 0 && rng.below(10 * i + 5, 4) == 0});
  }
  return sharded(units, num_ranks, 1 + static_cast<int64_t>(rng.below(1, 2000)));
}

// The experts of Kimi-Linear-48B-A3B that one rank of expert parallelism holds.
std::vector<Unit> expert_units(int num_experts) {
  std::vector<Unit> units;
  for (int layer = 1; layer < 27; ++layer) {
    for (int e = 0; e < num_experts; ++e) {
      const std::string name = fmt::format("layers.{}.experts.{}.", layer, e);
      units.push_back({name + "w1", 1024, 2304});
      units.push_back({name + "w3", 1024, 2304, true});
      units.push_back({name + "w2", 2304, 1024});
    }
  }
  return units;
}

// And its other matrices, without the embeddings.
std::vector<Unit> dense_units() {
  std::vector<Unit> units;
  const auto add = [&](int layer, const char* name, int64_t rows, int64_t columns, bool joined = false) {
    units.push_back({fmt::format("layers.{}.{}", layer, name), rows, columns, joined});
  };
  for (int layer = 0; layer < 27; ++layer) {
    if (layer % 4 == 3 || layer == 26) {
      add(layer, "q_proj", 6144, 2304);
      add(layer, "kv_a_proj_with_mqa", 576, 2304, true);
      add(layer, "kv_b_proj", 8192, 512);
    } else {
      add(layer, "q_proj", 4096, 2304);
      add(layer, "k_proj", 4096, 2304, true);
      add(layer, "v_proj", 4096, 2304, true);
      add(layer, "f_a_proj", 128, 2304, true);
      add(layer, "g_a_proj", 128, 2304, true);
      add(layer, "b_proj", 32, 2304, true);
      add(layer, "f_b_proj", 4096, 128);
      add(layer, "g_b_proj", 4096, 128);
    }
    add(layer, "o_proj", 2304, 4096);
    if (layer > 0) add(layer, "gate", 256, 2304);
    const int64_t width = layer == 0 ? 9216 : 1024;
    add(layer, "gate_proj", width, 2304);
    add(layer, "up_proj", width, 2304, true);
    add(layer, "down_proj", 2304, width);
  }
  return units;
}

// ---- properties that hold for every plan ----

int64_t total(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

void check_loads(const MuonPlan& plan, const std::vector<MuonMatrix>& matrices) {
  std::vector<int64_t> load(static_cast<size_t>(plan.num_ranks), 0);
  int64_t largest = 0;
  for (size_t m = 0; m < matrices.size(); ++m) {
    const int64_t cost = newton_schulz_cost(matrices[m].rows, matrices[m].columns);
    load[static_cast<size_t>(plan.owner[m])] += cost;
    largest = std::max(largest, cost);
  }
  EXPECT_EQ(plan.load, load);
  const int64_t most = *std::max_element(load.begin(), load.end());
  EXPECT_LE(most * plan.num_ranks, total(load) + largest * plan.num_ranks);
}

// Counts per message agree between the two sides, and no round exceeds the buffers' bounds.
void check_counts(const MuonPlan& plan, const std::vector<MuonMatrix>& matrices,
                  const std::vector<std::vector<MuonRankRound>>& ranks) {
  int64_t largest = 0;
  for (const MuonMatrix& matrix : matrices) largest = std::max(largest, matrix.num_elements());
  for (size_t i = 0; i < plan.rounds.size(); ++i) {
    int64_t moved = 0;
    for (size_t r = 0; r < ranks.size(); ++r) {
      const MuonRankRound& mine = ranks[r][i];
      for (size_t s = 0; s < ranks.size(); ++s) EXPECT_EQ(mine.send_counts[s], ranks[s][i].receive_counts[r]);
      EXPECT_EQ(total(mine.send_counts), mine.num_sent);
      EXPECT_EQ(total(mine.receive_counts), mine.num_received);
      int64_t num_matrices = 0;
      for (const MuonBatch& batch : mine.batches) num_matrices += batch.count;
      EXPECT_TRUE(num_matrices <= 1 || mine.num_received <= plan.max_elements) << mine.num_received;
      EXPECT_LE(mine.num_sent, std::max(plan.max_elements, largest));
      moved += mine.num_received;
    }
    EXPECT_GT(moved, 0) << "round " << i << " is empty";
  }
  for (const auto& rounds : ranks) {
    for (const MuonRankRound& round : rounds) {
      EXPECT_LE(round.num_sent, max_sent(rounds));
      EXPECT_LE(round.num_received, max_received(rounds));
    }
  }
}

using Memory = std::vector<std::vector<int64_t>>;  // [rank][element]

int64_t number(int matrix, int64_t element) {
  return matrix * (int64_t{1} << 40) + element;
}
int64_t update_of(int64_t n) {
  return -2 - n;
}

Memory poisoned(const std::vector<std::vector<MuonRankRound>>& ranks, int64_t (*most)(std::span<const MuonRankRound>)) {
  Memory memory;
  for (const auto& rounds : ranks) memory.emplace_back(static_cast<size_t>(most(rounds)), -1);
  return memory;
}

// all_to_all_v of round i: part d of what s sends becomes part s of what d receives.
void exchange(const std::vector<std::vector<MuonRankRound>>& ranks, size_t i, const Memory& in, Memory& out,
              bool to_owners) {
  std::vector<int64_t> end(ranks.size(), 0);
  for (size_t s = 0; s < ranks.size(); ++s) {
    const std::vector<int64_t>& counts = to_owners ? ranks[s][i].send_counts : ranks[s][i].receive_counts;
    int64_t begin = 0;
    for (size_t d = 0; d < ranks.size(); ++d) {
      std::copy_n(in[s].begin() + begin, counts[d], out[d].begin() + end[d]);
      end[d] += counts[d];
      begin += counts[d];
    }
  }
}

// What an owner does in a round: every batch holds whole matrices of its own, every element at its place.
void update_batches(const MuonPlan& plan, const std::vector<MuonMatrix>& matrices, size_t rank,
                    const MuonRankRound& mine, std::vector<int64_t>& received, std::vector<int>& times_owned) {
  std::vector<int64_t> assembled(static_cast<size_t>(mine.num_received), -1);
  for (const MuonReceive& copy : mine.received)
    std::copy_n(received.begin() + copy.message_offset, copy.num_elements, assembled.begin() + copy.assembled_offset);
  size_t next = 0;
  std::set<std::pair<int64_t, int64_t>> shapes;
  for (const MuonBatch& batch : mine.batches) {
    EXPECT_TRUE(shapes.emplace(batch.rows, batch.columns).second) << "a shape in two batches of one round";
    EXPECT_EQ(static_cast<size_t>(batch.offset), next);
    for (int64_t b = 0; b < batch.count; ++b) {
      const auto m = static_cast<int>(assembled[next] >> 40);
      const MuonMatrix& matrix = matrices[static_cast<size_t>(m)];
      ASSERT_EQ(plan.owner[static_cast<size_t>(m)], static_cast<int>(rank));
      ASSERT_EQ(std::pair(matrix.rows, matrix.columns), std::pair(batch.rows, batch.columns));
      ++times_owned[static_cast<size_t>(m)];
      for (int64_t e = 0; e < matrix.num_elements(); ++e, ++next) {
        ASSERT_EQ(assembled[next], number(m, e));
        assembled[next] = update_of(number(m, e));
      }
    }
  }
  EXPECT_EQ(static_cast<int64_t>(next), mine.num_received);
  for (const MuonReceive& copy : mine.received)
    std::copy_n(assembled.begin() + copy.assembled_offset, copy.num_elements, received.begin() + copy.message_offset);
}

// Plays the rounds as the header tells, with one number for each element of each matrix: every element reaches its owner
// once, at its place in its matrix, and what the owner makes of it comes back to where it came from.
void play(const MuonPlan& plan, const std::vector<MuonMatrix>& matrices,
          const std::vector<std::vector<MuonRankRound>>& ranks) {
  std::vector<std::vector<int>> times_back;
  for (const MuonMatrix& matrix : matrices) times_back.emplace_back(static_cast<size_t>(matrix.num_elements()), 0);
  std::vector<int> times_owned(matrices.size(), 0);
  for (size_t i = 0; i < plan.rounds.size(); ++i) {
    Memory message = poisoned(ranks, max_sent), received = poisoned(ranks, max_received);
    for (size_t r = 0; r < ranks.size(); ++r)
      for (const MuonSend& piece : ranks[r][i].sent)
        for (int64_t e = piece.begin; e < piece.end; ++e)
          message[r][static_cast<size_t>(piece.message_offset + e - piece.begin)] = number(piece.matrix, e);
    exchange(ranks, i, message, received, true);
    for (size_t r = 0; r < ranks.size(); ++r) update_batches(plan, matrices, r, ranks[r][i], received[r], times_owned);
    message = poisoned(ranks, max_sent);
    exchange(ranks, i, received, message, false);
    for (size_t r = 0; r < ranks.size(); ++r) {
      for (const MuonSend& piece : ranks[r][i].sent) {
        const auto& parts = matrices[static_cast<size_t>(piece.matrix)].parts;
        const MuonPart part{static_cast<int>(r), piece.begin, piece.end};
        EXPECT_TRUE(std::find(parts.begin(), parts.end(), part) != parts.end());
        for (int64_t e = piece.begin; e < piece.end; ++e) {
          ASSERT_EQ(message[r][static_cast<size_t>(piece.message_offset + e - piece.begin)],
                    update_of(number(piece.matrix, e)));
          ++times_back[static_cast<size_t>(piece.matrix)][static_cast<size_t>(e)];
        }
      }
    }
  }
  for (const auto& times : times_back)
    EXPECT_EQ(std::count(times.begin(), times.end(), 1), static_cast<int64_t>(times.size()));
  EXPECT_EQ(std::count(times_owned.begin(), times_owned.end(), 1), static_cast<int64_t>(times_owned.size()));
}

std::vector<std::vector<MuonRankRound>> of_all_ranks(const MuonPlan& plan, const std::vector<MuonMatrix>& matrices) {
  std::vector<std::vector<MuonRankRound>> ranks;
  for (int r = 0; r < plan.num_ranks; ++r) ranks.push_back(muon_rank_rounds(plan, matrices, r));
  return ranks;
}

TEST(MuonPlan, EveryElementTravelsOnceToItsOwnerAndBack) {
  for (int num_ranks = 1; num_ranks <= 8; ++num_ranks) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      const std::vector<MuonMatrix> matrices = random_matrices(seed, num_ranks);
      for (int64_t max_elements : {1, 100, 1000, 1 << 20}) {
        SCOPED_TRACE(fmt::format("{} ranks, seed {}, at most {} elements", num_ranks, seed, max_elements));
        const MuonPlan plan = make_muon_plan(matrices, num_ranks, max_elements);
        validate(plan, matrices);
        check_loads(plan, matrices);
        const auto ranks = of_all_ranks(plan, matrices);
        check_counts(plan, matrices, ranks);
        play(plan, matrices, ranks);
      }
    }
  }
}

TEST(MuonPlan, IsAFunctionOfItsInputs) {
  for (int num_ranks : {1, 3, 8}) {
    const std::vector<MuonMatrix> matrices = random_matrices(5, num_ranks);
    const MuonPlan a = make_muon_plan(matrices, num_ranks, 300), b = make_muon_plan(matrices, num_ranks, 300);
    EXPECT_EQ(a.owner, b.owner);
    EXPECT_EQ(a.to_string(matrices), b.to_string(matrices));
  }
}

TEST(MuonPlan, TheExpertsOf48BAreBalancedAndMostlyStayWhereTheyAre) {
  for (int num_ranks = 1; num_ranks <= 8; ++num_ranks) {
    const std::vector<MuonMatrix> matrices = sharded(expert_units(256), num_ranks, int64_t{1} << 28);
    ASSERT_EQ(matrices.size(), 19968u);
    constexpr int64_t max_elements = int64_t{1} << 27;
    const MuonPlan plan = make_muon_plan(matrices, num_ranks, max_elements);
    validate(plan, matrices);
    check_loads(plan, matrices);
    check_counts(plan, matrices, of_all_ranks(plan, matrices));
    int64_t elements = 0, travelling = 0;
    for (size_t m = 0; m < matrices.size(); ++m) {
      elements += matrices[m].num_elements();
      for (const MuonPart& part : matrices[m].parts)
        if (part.rank != plan.owner[m]) travelling += part.size();
    }
    EXPECT_EQ(elements, int64_t{19968} * 1024 * 2304);
    // A rank's share of a bucket is a run of whole matrices but for its two ends.
    EXPECT_LT(travelling, elements / 20) << num_ranks << " ranks";
    // Rounds are full: a rank takes 56 matrices of 2^21.17 elements at a time, but in the last rounds of each shape.
    const auto least = (19968 + 56 * num_ranks - 1) / (56 * num_ranks);
    EXPECT_LE(static_cast<int>(plan.rounds.size()), least + least / 4 + 2) << num_ranks << " ranks";
  }
}

TEST(MuonPlan, TheOtherMatricesOf48BAreBalanced) {
  for (int num_ranks = 1; num_ranks <= 8; ++num_ranks) {
    const std::vector<MuonMatrix> matrices = sharded(dense_units(), num_ranks, int64_t{1} << 26);
    const MuonPlan plan = make_muon_plan(matrices, num_ranks, int64_t{1} << 26);
    validate(plan, matrices);
    check_loads(plan, matrices);
    check_counts(plan, matrices, of_all_ranks(plan, matrices));
  }
}

TEST(MuonPlan, EqualShapesOfARoundAreOneBatch) {
  std::vector<Unit> units;
  for (int i = 0; i < 6; ++i) {
    units.push_back({fmt::format("a{}", i), 4, 8});
    units.push_back({fmt::format("b{}", i), 8, 4});
  }
  const std::vector<MuonMatrix> matrices = sharded(units, 1, 100);
  const MuonPlan plan = make_muon_plan(matrices, 1, 1000);
  const std::vector<MuonRankRound> rounds = muon_rank_rounds(plan, matrices, 0);
  ASSERT_EQ(rounds.size(), 1u);
  ASSERT_EQ(rounds[0].batches.size(), 2u);
  EXPECT_EQ(rounds[0].batches[0].count, 6);
  EXPECT_EQ(rounds[0].batches[1].count, 6);
  EXPECT_EQ(rounds[0].batches[1].offset, 6 * 32);
}

TEST(MuonPlan, AmongEqualCostsAndLoadsARankGetsWhatItHolds) {
  std::vector<Unit> units;
  for (int i = 0; i < 8; ++i) units.push_back({fmt::format("m{}", i), 16, 16});
  const std::vector<MuonMatrix> matrices = sharded(units, 4, 1 << 20);
  EXPECT_EQ(make_muon_plan(matrices, 4, 1 << 20).owner, (std::vector<int>{0, 0, 1, 1, 2, 2, 3, 3}));
  // The cheap one goes to the rank with least to do, wherever it lies; a rank's several parts count together.
  const std::vector<MuonMatrix> uneven{{"large", 8, 8, {{1, 0, 64}}},
                                       {"small", 2, 8, {{1, 0, 16}}},
                                       {"split", 2, 8, {{2, 0, 5}, {0, 5, 11}, {2, 11, 16}}}};
  EXPECT_EQ(make_muon_plan(uneven, 3, 100).owner, (std::vector<int>{1, 0, 2}));
}

TEST(MuonPlan, OfNoMatricesHasNoRounds) {
  const MuonPlan plan = make_muon_plan({}, 3, 10);
  validate(plan, {});
  EXPECT_TRUE(plan.rounds.empty());
  const std::vector<MuonRankRound> rounds = muon_rank_rounds(plan, {}, 2);
  EXPECT_EQ(max_sent(rounds) + max_received(rounds), 0);
}

TEST(MuonPlan, CostsAreThoseOfFiveIterations) {
  // X X^T, its square, and the product with X: 2 m^2 n, 2 m^3, 2 m^2 n.
  EXPECT_EQ(newton_schulz_cost(3, 7), 5 * (2 * 9 * 7 + 2 * 27 + 2 * 9 * 7));
  EXPECT_EQ(newton_schulz_cost(7, 3), newton_schulz_cost(3, 7));
  int64_t experts = 0;
  for (const Unit& unit : expert_units(256)) experts += newton_schulz_cost(unit.rows, unit.columns);
  EXPECT_NEAR(static_cast<double>(experts), 0.95 * 1.24e15, 0.01e15);  // Kimi Linear 48B: 95 % of 1.24 PFLOP
}

TEST(MuonPlan, PartsOfAParameterAreThoseTheRanksOwn) {
  const std::vector<zero::FlatParameter> flat{{"a", 100, false}, {"b", 50, true}, {"c", 333, false}, {"d", 7, false}};
  for (int num_ranks = 1; num_ranks <= 5; ++num_ranks) {
    const zero::ShardMap map = zero::make_shard_map(flat, num_ranks, 200);
    std::map<int, std::vector<MuonPart>> want;
    for (int r = 0; r < num_ranks; ++r)
      for (const zero::OwnedPart& part : map.owned_parts(flat, r))
        want[part.parameter].push_back({r, part.begin, part.end});
    for (int p = 0; p < 4; ++p) EXPECT_EQ(muon_parts(map, flat, p), want[p]);
  }
}

TEST(MuonPlan, TheTextNamesOwnersAndRounds) {
  const std::vector<MuonMatrix> matrices{{"first", 4, 4, {{0, 0, 10}, {1, 10, 16}}}, {"second", 2, 2, {{1, 0, 4}}}};
  const std::string text = make_muon_plan(matrices, 2, 16).to_string(matrices);
  EXPECT_EQ(text,
            "2 matrices of 20 elements on 2 ranks in 1 rounds; 6 elements travel and return\n"
            "rank 0  1 matrices, 0.000 GFLOP\n"
            "rank 1  1 matrices, 0.000 GFLOP\n"
            "round 0\n"
            "  rank 0  sends 10, receives 16\n"
            "    [4, 4]  first  from 0, 1\n"
            "  rank 1  sends 10, receives 4\n"
            "    [2, 2]  second  from 1\n");
}

// ---- failures ----

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const InternalError& failure) {
    return failure.what();
  }
  return "nothing was thrown";
}

TEST(MuonPlan, RefusesMatricesThatAreNotCutIntoParts) {
  const auto plan = [](MuonMatrix matrix) { return message_of([&] { make_muon_plan({{std::move(matrix)}}, 2, 10); }); };
  EXPECT_EQ(plan({"x", 2, 3, {{1, 0, 2}, {0, 2, 6}}}), "nothing was thrown");
  EXPECT_THAT(plan({"x", 0, 3, {}}), HasSubstr("x is [0, 3]"));
  EXPECT_THAT(plan({"x", 2, 3, {{2, 0, 6}}}), HasSubstr("x: a part of rank 2 of 2"));
  EXPECT_THAT(plan({"x", 2, 3, {{-1, 0, 6}}}), HasSubstr("x: a part of rank -1 of 2"));
  EXPECT_THAT(plan({"x", 2, 3, {{0, 0, 2}, {1, 3, 6}}}), HasSubstr("x: a part [3, 6) after element 2"));
  EXPECT_THAT(plan({"x", 2, 3, {{0, 0, 2}, {1, 2, 2}, {1, 2, 6}}}), HasSubstr("x: a part [2, 2) after element 2"));
  EXPECT_THAT(plan({"x", 2, 3, {{0, 0, 5}}}), HasSubstr("x: parts of 5 elements, the matrix has 6"));
  EXPECT_THAT(message_of([] { make_muon_plan({}, 0, 10); }), HasSubstr("a group of 0 ranks"));
  EXPECT_THAT(message_of([] { make_muon_plan({}, 1, 0); }), HasSubstr("at most 0 elements"));
  EXPECT_THAT(message_of([] { muon_rank_rounds(make_muon_plan({}, 2, 1), {}, 2); }), HasSubstr("rank 2 of 2"));
}

TEST(MuonPlan, ValidationFindsWhatIsWrong) {
  const std::vector<MuonMatrix> matrices = sharded({{"a", 4, 4}, {"b", 4, 4}, {"c", 2, 4}, {"d", 2, 2}}, 2, 1000);
  const MuonPlan good = make_muon_plan(matrices, 2, 40);
  ASSERT_EQ(good.owner, (std::vector<int>{0, 1, 1, 0}));
  ASSERT_EQ(good.rounds.size(), 1u);
  const auto changed = [&](const std::function<void(MuonPlan&)>& change) {
    MuonPlan plan = good;
    change(plan);
    return message_of([&] { validate(plan, matrices); });
  };
  const auto one = [](MuonPlan& plan) -> std::vector<int>& { return plan.rounds[0].matrices[1]; };
  ASSERT_EQ(changed([](MuonPlan&) {}), "nothing was thrown");
  EXPECT_THAT(changed([&](MuonPlan& plan) { one(plan).pop_back(); }), HasSubstr("is in no round"));
  EXPECT_THAT(changed([&](MuonPlan& plan) { plan.rounds.push_back(plan.rounds[0]); }), HasSubstr("a second time"));
  EXPECT_THAT(changed([&](MuonPlan& plan) { one(plan)[0] = 4; }), HasSubstr("round 0: matrix 4 of 4"));
  EXPECT_THAT(changed([&](MuonPlan& plan) { std::swap(plan.rounds[0].matrices[0], one(plan)); }),
              HasSubstr("its owner is rank"));
  EXPECT_THAT(changed([&](MuonPlan& plan) { plan.load[0] += 1; }), HasSubstr("said to be"));
  EXPECT_THAT(changed([&](MuonPlan& plan) { plan.load.push_back(0); }), HasSubstr("3 loads of 2 ranks"));
  EXPECT_THAT(changed([&](MuonPlan& plan) { plan.owner.pop_back(); }), HasSubstr("3 owners of 4 matrices"));
  EXPECT_THAT(changed([&](MuonPlan& plan) { plan.rounds[0].matrices.pop_back(); }), HasSubstr("round 0 of 1 ranks"));
  EXPECT_THAT(changed([&](MuonPlan& plan) { plan.max_elements = 17; }), HasSubstr("elements, at most 17"));
  // The round suits its owners, but all of it comes from one rank.
  const std::vector<MuonMatrix> crowded{{"a", 4, 4, {{0, 0, 16}}}, {"b", 4, 4, {{0, 0, 16}}}};
  EXPECT_EQ(make_muon_plan(crowded, 2, 16).rounds.size(), 2u);
  MuonPlan plan = make_muon_plan(crowded, 2, 32);
  EXPECT_EQ(plan.rounds.size(), 1u);
  plan.max_elements = 16;
  EXPECT_THAT(message_of([&] { validate(plan, crowded); }), HasSubstr("rank 0 sends 32 elements, at most 16"));
}

}  // namespace
}  // namespace lamina::model
