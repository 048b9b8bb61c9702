#include "launch/report/comparison.h"

#include <gmock/gmock.h>

#include "tests/launch/report/report_support.h"

namespace lamina::report {
namespace {

using namespace testing_report;
using testing::ElementsAre;
using testing::HasSubstr;

json& layer_of(MadeRun& run, int64_t step, int64_t layer, const std::string& sublayer) {
  for (json& row : run.layers)
    if (row["step"] == step && row["layer"] == layer && row["sublayer"] == sublayer) return row;
  throw std::logic_error("no such row");
}

TEST(Comparison, SameRunsHaveNoDifference) {
  const MadeRun a = make_run(), b = make_run();
  EXPECT_FALSE(compare_metrics(a, b).exact);
  EXPECT_FALSE(compare_layers(a, b).exact);
  EXPECT_THAT(describe_differences(a, b),
              ElementsAre("4 steps in common, 1 to 4.", "Loss and gradient norm, bit for bit: no difference.",
                          "Sublayers, bit for bit: no difference."));
}

TEST(Comparison, OneBitIsADifferenceAndIsBelowRounding) {
  const MadeRun a = make_run();
  MadeRun b = make_run();
  const double loss = b.metrics[1]["loss"];
  b.metrics[1]["loss"] = std::nextafter(loss, 10.0);
  b.metrics[3]["grad_norm"] = b.metrics[3]["grad_norm"].get<double>() * (1 + 3e-6);
  const auto exact = compare_metrics(a, b).exact;
  ASSERT_TRUE(exact);
  EXPECT_EQ(exact->step, 2);
  EXPECT_EQ(exact->quantity, "loss");
  EXPECT_EQ(exact->first, loss);
  const auto beyond = compare_metrics(a, b).beyond_rounding;
  ASSERT_TRUE(beyond);
  EXPECT_EQ(beyond->step, 4);
  EXPECT_EQ(beyond->quantity, "grad_norm");
  EXPECT_NEAR(beyond->relative(), 3e-6, 1e-8);
  EXPECT_THAT(describe_differences(a, b)[2],
              HasSubstr("beyond rounding: step 4, grad_norm: 1.4 against 1.4000042 (relative difference 3e-06)"));
}

TEST(Comparison, TheLossComesBeforeTheGradientNormOfItsStep) {
  const MadeRun a = make_run();
  MadeRun b = make_run();
  b.metrics[2]["grad_norm"] = 9.0;
  b.metrics[2]["loss"] = 9.0;
  EXPECT_EQ(compare_metrics(a, b).exact->quantity, "loss");
}

TEST(Comparison, SublayersAreSearchedByStepThenDepth) {
  const MadeRun a = make_run();
  MadeRun b = make_run();
  layer_of(b, 4, 0, "mixer")["hidden_rms"] = 1.0;
  layer_of(b, 2, 3, "output")["hidden_rms"] = 1.0;
  layer_of(b, 2, 1, "mlp")["grad_norm"] = 1.0;
  auto found = compare_layers(a, b).beyond_rounding;
  ASSERT_TRUE(found);
  EXPECT_EQ(found->step, 2);
  EXPECT_EQ(found->place, "layer 1 mlp");
  EXPECT_EQ(found->quantity, "grad_norm");
  layer_of(b, 2, 1, "mlp") = layer_of(b, 2, 1, "mlp");
  layer_of(b, 2, 1, "mlp")["grad_norm"] = 21.0 / 7;
  EXPECT_EQ(compare_layers(a, b).beyond_rounding->place, "output");
}

TEST(Comparison, ArraysAreComparedElementByElement) {
  MadeRun a = make_run(), b = make_run();
  layer_of(a, 2, 1, "mixer")["depth_weights"] = {0.5, 0.25, 0.25};
  layer_of(b, 2, 1, "mixer")["depth_weights"] = {0.5, 0.25, 0.26};
  const auto found = compare_layers(a, b).exact;
  ASSERT_TRUE(found);
  EXPECT_EQ(found->quantity, "depth_weights[2]");
  EXPECT_EQ(found->second, 0.26);
}

TEST(Comparison, OnlyCommonStepsAndPlacesCount) {
  const MadeRun a = make_run();
  MadeRun b = make_run();
  b.metrics.erase(b.metrics.begin());
  b.metrics.push_back(metric_row(5));
  b.layers.clear();
  EXPECT_THAT(describe_differences(a, b),
              ElementsAre("3 steps in common, 2 to 4.", "Loss and gradient norm, bit for bit: no difference.",
                          "Sublayers: no step of layers.jsonl in common."));
  b.metrics = {metric_row(9)};
  EXPECT_THAT(describe_differences(a, b), ElementsAre("The runs have no step in common: nothing to compare."));
}

TEST(Comparison, ListsTheKeysThatDiffer) {
  const std::vector<study::RunData> runs = {make_run({.name = "a"}), make_run({.name = "b", .lr = "2.0e-3"}),
                                            make_run({.name = "c", .residual = "standard"})};
  const json document = comparison_document(runs);
  std::vector<std::string> keys;
  for (const json& entry : document["configuration"]) keys.push_back(entry["key"]);
  EXPECT_THAT(keys, ElementsAre("model.attn_res_block_size", "model.residual", "parallel.block_transport", "run.name",
                                "train.optimizer.attn_res_lr_factor", "train.optimizer.lr"));
  EXPECT_EQ(document["configuration"][5]["values"], json({"0.001", "0.002", "0.001"}));
  ASSERT_EQ(document["against"].size(), 2u);
  EXPECT_EQ(document["against"][1]["run"], 2);
}

}  // namespace
}  // namespace lamina::report
