#include <gmock/gmock.h>

#include "launch/report/layer_document.h"
#include "launch/report/run_document.h"
#include "launch/report/sweep_document.h"
#include "launch/report/trace_document.h"
#include "tests/launch/report/report_support.h"

namespace lamina::report {
namespace {

using namespace testing_report;
using testing::HasSubstr;

// ---- metrics.jsonl ----

TEST(RunDocument, HoldsEveryRowOfAShortRun) {
  const json document = run_document(make_run({.name = "a", .num_steps = 10}), limits_for(1));
  EXPECT_EQ(document["series"]["loss"]["value"], json({5.0, 2.5, 5.0 / 3, 1.25}));
  EXPECT_EQ(document["series"]["loss"]["tokens"], json({64, 128, 192, 256}));
  EXPECT_EQ(document["series"]["comm_bytes.data"]["value"], json({12.0, 24.0, 36.0, 48.0}));
  EXPECT_FALSE(document["series"].contains("validation_loss"));
  EXPECT_EQ(document["summary"]["state"], "at step 4 of 10");
  EXPECT_EQ(document["summary"]["residual"], "block_attnres");
  EXPECT_DOUBLE_EQ(document["summary"]["seconds_in_steps"], 4 * 64 / 1000.0);
  EXPECT_FALSE(document["summary"].contains("ranks"));  // no row says how many
  EXPECT_EQ(document["trace"], json::array());
}

TEST(RunDocument, DrawsTheTasksThatWereAnswered) {
  MadeRun run = make_run();
  run.metrics[1]["tasks"] = {{"piqa", {{"acc", 0.5}, {"acc_norm", 0.25}}}};
  run.metrics[3]["tasks"] = {{"piqa", {{"acc", 0.75}}}, {"arc.easy", {{"acc", 0.25}}}};
  const json series = run_document(run, limits_for(1))["series"];
  EXPECT_EQ(series["tasks.piqa.acc"]["step"], json({2, 4}));
  EXPECT_EQ(series["tasks.piqa.acc"]["value"], json({0.5, 0.75}));
  EXPECT_EQ(series["tasks.arc.easy.acc"]["value"], json({0.25}));
}

TEST(RunDocument, TellsSpikesOfTheirFile) {
  const TemporaryFolder folder;
  MadeRun run = make_run();
  run.folder = folder.path();
  EXPECT_EQ(run_document(run, limits_for(1))["spikes"], json::array());
  io::write_file_atomically(
      folder.path() / "spikes.jsonl",
      "{\"step\": 3, \"batch\": 7, \"action\": \"skip\", \"passed\": \"7\", \"reason\": \"loss 9\"}\n");
  const json spikes = run_document(run, limits_for(1))["spikes"];
  EXPECT_EQ(spikes, json::parse(R"([{"step": 3, "batch": 7, "action": "skip", "passed": "7", "reason": "loss 9"}])"));
  io::write_file_atomically(folder.path() / "spikes.jsonl", "nonsense\n");
  EXPECT_THAT(message_of([&] { run_document(run, limits_for(1)); }), HasSubstr("spikes.jsonl:1: found `nonsense`"));
}

TEST(RunDocument, KnowsTheRanksFromTheLastPeaks) {
  MadeRun run = make_run();
  run.config.parallel.pipeline = 2;
  run.metrics[1]["peak_bytes"] = {{"activations", {1, 2, 3, 4, 5, 6}}};
  run.metrics[3]["peak_bytes"] = {{"activations", {7, 8, 9, 10}}};
  const json summary = run_document(run, limits_for(1))["summary"];
  EXPECT_EQ(summary["ranks"], 4);
  EXPECT_EQ(summary["data"], 2);
  EXPECT_EQ(summary["peak_bytes"]["activations"], json({7, 8, 9, 10}));
  EXPECT_EQ(summary["state"], "done");
}

TEST(RunDocument, RefusesBrokenRowsByFileAndStep) {
  const auto message = [](const std::function<void(MadeRun&)>& breaks) {
    MadeRun run = make_run();
    breaks(run);
    return message_of([&] { run_document(run, limits_for(1)); });
  };
  EXPECT_EQ(message([](MadeRun& run) { run.metrics[2].erase("loss"); }),
            "runs/made-up/metrics.jsonl: step 3: found no 'loss', expected a number");
  EXPECT_EQ(message([](MadeRun& run) { run.metrics[2]["lr"] = "high"; }),
            "runs/made-up/metrics.jsonl: step 3: found '\"high\"' for 'lr', expected a number");
  EXPECT_EQ(message([](MadeRun& run) { run.metrics[2]["step"] = 2; }),
            "runs/made-up/metrics.jsonl: found step 2 after step 2, expected steps that rise from 1");
  EXPECT_THAT(message([](MadeRun& run) { run.layers[0]["layer"] = 3; }),
              HasSubstr("runs/made-up/layers.jsonl: step 2: found layer 3 with sublayer \"mixer\""));
  EXPECT_THAT(message([](MadeRun& run) { run.layers[0].erase("sublayer"); }), HasSubstr("sublayer null"));
  EXPECT_EQ(message([](MadeRun& run) { run.layers[1] = run.layers[0]; }),
            "runs/made-up/layers.jsonl: step 2: found layer 0 \"mixer\" twice");
}

TEST(RunDocument, TakesALossThatIsNoNumber) {
  MadeRun run = make_run();
  run.metrics[2]["loss"] = nullptr;  // as written of NaN
  const json value = json::parse(run_document(run, limits_for(1))["series"]["loss"]["value"].dump());
  EXPECT_EQ(value, json({5.0, 2.5, nullptr, 1.25}));
}

TEST(RunDocument, OfALongRunIsSmall) {
  MadeRun run = make_run();
  run.metrics.clear();
  run.layers.clear();
  for (int64_t step = 1; step <= 20000; ++step) run.metrics.push_back(metric_row(step));
  for (int64_t step = 10; step <= 20000; step += 10)
    for (int64_t layer = 0; layer < 3; ++layer)
      for (const char* sublayer : {"mixer", "mlp"}) run.layers.push_back(layer_row(step, layer, sublayer, 1.0 / 3));
  const json document = run_document(run, limits_for(1));
  EXPECT_LE(document["series"]["loss"]["step"].size(), 4002u);
  EXPECT_EQ(document["series"]["loss"]["rows"], 20000);
  EXPECT_EQ(document["series"]["loss"]["stretch"], 16);
  EXPECT_EQ(document["layers"]["logged"], 2000);
  EXPECT_EQ(document["layers"]["per_column"], 16);
  EXPECT_EQ(document["layers"]["steps"].size(), 125u);
  EXPECT_EQ(document["layers"]["last_steps"].back(), 20000);
  EXPECT_LT(document.dump().size(), 1000000u);
}

// ---- layers.jsonl ----

TEST(LayerDocument, IsSublayersByLoggedSteps) {
  const json layers = layer_document(make_run(), limits_for(1));
  EXPECT_EQ(layers["steps"], json({2, 4}));
  EXPECT_EQ(layers["rows"].size(), 7u);
  EXPECT_EQ(layers["rows"][3], json({{"layer", 1}, {"sublayer", "mlp"}}));
  EXPECT_EQ(layers["rows"][6], json({{"layer", 3}, {"sublayer", "output"}}));
  EXPECT_EQ(layers["quantities"]["hidden_rms"][3], json({21.0, 41.0}));
  EXPECT_EQ(layers["quantities"]["grad_norm"][6], json({nullptr, nullptr}));
  EXPECT_EQ(layers["quantities"]["grad_norm"][0], json({2.85714, 5.71429}));
  EXPECT_FALSE(layers["quantities"].contains("max_logit"));
  EXPECT_TRUE(layers["depth"].is_null());
  EXPECT_TRUE(layers["experts"].is_null());
}

TEST(LayerDocument, AColumnOfManyStepsHasTheirExtremes) {
  MadeRun run = make_run();
  run.layers.clear();
  for (int64_t step = 1; step <= 100; ++step)
    run.layers.push_back(layer_row(step, 0, "mixer", step == 70 ? 900 : 10.0 + step));
  Limits limits = limits_for(1);
  limits.map_cells = 7 * 16;  // sublayers, the output among them, x columns
  const json layers = layer_document(run, limits);
  EXPECT_EQ(layers["logged"], 100);
  EXPECT_EQ(layers["per_column"], 8);
  EXPECT_EQ(layers["steps"], json({1, 9, 17, 25, 33, 41, 49, 57, 65, 73, 81, 89, 97}));
  EXPECT_EQ(layers["last_steps"].back(), 100);
  EXPECT_EQ(layers["quantities"]["hidden_rms"][0][8], 900);
  EXPECT_EQ(layers["smallest"]["hidden_rms"][0][8], 75);
  EXPECT_EQ(layers["smallest"]["hidden_rms"][0][12], 107);
  EXPECT_EQ(layers["quantities"]["hidden_rms"][0][12], 110);
}

TEST(LayerDocument, FramesAreEvenlySpreadAndEndWithTheLast) {
  MadeRun run = make_run();
  run.layers.clear();
  for (int64_t step = 1; step <= 100; ++step) {
    run.layers.push_back(layer_row(step, 0, "mixer", 1));
    run.layers.back()["depth_weights"] = {1.0};
  }
  Limits limits = limits_for(1);
  limits.map_values = 8 * 16;  // eight steps; the reads have 1 + 2 + 2 + 2 + 2 + 3 + 3 weights
  const json depth = layer_document(run, limits)["depth"];
  EXPECT_EQ(depth["steps"], json({1, 17, 33, 49, 65, 81, 97, 100}));
  EXPECT_EQ(depth["weights"].size(), 8u);
}

TEST(LayerDocument, RefusesStepsThatFall) {
  MadeRun run = make_run();
  run.layers.push_back(layer_row(2, 0, "mixer", 1));
  EXPECT_THAT(message_of([&] { layer_document(run, limits_for(1)); }),
              HasSubstr("layers.jsonl: found step 2 after step 4, expected steps that rise"));
}

MadeRun with_depth_weights(const std::string& residual, const std::vector<size_t>& counts) {
  MadeRun run = make_run({.residual = residual});
  for (size_t i = 0; i < run.layers.size(); ++i)
    run.layers[i]["depth_weights"] = std::vector<double>(counts[i % 7], 1.0 / static_cast<double>(counts[i % 7]));
  return run;
}

// Blocks of two layers, four sublayers: the first read of each block sees no open sum.
TEST(LayerDocument, DepthWeightsOfBlocksStandInTheirSourcesColumns) {
  const json depth = layer_document(with_depth_weights("block_attnres", {1, 2, 2, 2, 2, 3, 3}), limits_for(1))["depth"];
  EXPECT_EQ(depth["sources"], json({"embedding", "block 0", "open sum"}));
  EXPECT_EQ(depth["columns"], json::parse("[[0], [0,2], [0,2], [0,2], [0,1], [0,1,2], [0,1,2]]"));
  EXPECT_EQ(depth["reads"][6]["sublayer"], "output");
  EXPECT_EQ(depth["weights"].size(), 2u);
  EXPECT_EQ(depth["weights"][1][1], json({0.5, 0.5}));
}

TEST(LayerDocument, FullDepthWeightsHaveAColumnPerSublayer) {
  const json depth = layer_document(with_depth_weights("full_attnres", {1, 2, 3, 4, 5, 6, 7}), limits_for(1))["depth"];
  EXPECT_EQ(depth["sources"], json({"embedding", "0 mixer", "0 mlp", "1 mixer", "1 mlp", "2 mixer", "2 mlp"}));
  EXPECT_EQ(depth["columns"][2], json({0, 1, 2}));
  EXPECT_EQ(depth["columns"][6], json({0, 1, 2, 3, 4, 5, 6}));
}

TEST(LayerDocument, CosinesAreOfTheOutputsSources) {
  MadeRun run = with_depth_weights("block_attnres", {1, 2, 2, 2, 2, 3, 3});
  for (size_t i = 6; i < run.layers.size(); i += 7) run.layers[i]["source_cosines"] = {0.5, -0.25, 0.125};
  const json cosines = layer_document(run, limits_for(1))["cosines"];
  EXPECT_EQ(cosines["sources"], json({"embedding", "block 0", "block 1"}));
  EXPECT_EQ(cosines["cosines"].size(), cosines["steps"].size());
  EXPECT_EQ(cosines["cosines"][1], json({0.5, -0.25, 0.125}));
  EXPECT_TRUE(
      layer_document(with_depth_weights("block_attnres", {1, 2, 2, 2, 2, 3, 3}), limits_for(1))["cosines"].is_null());
  run.layers[6]["source_cosines"] = {0.5};
  EXPECT_THAT(message_of([&] { layer_document(run, limits_for(1)); }),
              HasSubstr("source_cosines of sublayer 6, expected 3 numbers"));
}

TEST(LayerDocument, RefusesDepthWeightsOfAnotherModel) {
  EXPECT_THAT(message_of([] {
                layer_document(with_depth_weights("block_attnres", {1, 2, 2, 2, 2, 2, 3}), limits_for(1));
              }),
              HasSubstr("layers.jsonl: step 2: found '[0.5,0.5]' for depth_weights of sublayer 5, expected 3 numbers"));
}

TEST(LayerDocument, HasTheLoadOfEveryExpert) {
  MadeRun run = make_run();
  for (json& row : run.layers)
    if (row["layer"] == 1 && row["sublayer"] == "mlp") row["expert_load"] = {0.25, 1.75};
  const json experts = layer_document(run, limits_for(1))["experts"];
  EXPECT_EQ(experts["layers"], json({1}));
  EXPECT_EQ(experts["load"], json::parse("[[[0.25, 1.75]], [[0.25, 1.75]]]"));
}

// ---- traces ----

json action(int rank, const char* kind, double start, double end) {
  return {{"rank", rank}, {"chunk", rank}, {"microbatch", 0}, {"kind", kind}, {"start", start}, {"end", end}};
}

class Traces : public testing::Test {
 protected:
  Traces() {
    run.folder = folder.path();
    fs::create_directories(folder.path() / "traces");
    trace = {{"version", 1},
             {"step", 7},
             {"ranks", 2},
             {"pipeline", 2},
             {"data", 1},
             {"schedule", "1f1b"},
             {"real", {action(0, "F", 0.5, 1.5), action(1, "F", 2.5, 3.5), action(1, "B", 3.5, 4.5)}},
             {"simulated", {action(0, "F", 0.5, 1.5), action(1, "F", 1.5, 2.5)}}};
  }
  void write(const std::string& name = "step-00000007.json") {
    io::write_file_atomically(folder.path() / "traces" / name,
                              json({{"traceEvents", json::array()}, {"lamina", trace}}).dump());
  }
  std::string message() {
    write();
    return message_of([&] { trace_document(run, limits_for(1)); });
  }
  TemporaryFolder folder;
  MadeRun run = make_run();
  json trace;
};

TEST_F(Traces, GiveTimelinesFromTheFirstActionAndTheirBubbles) {
  write();
  const json document = trace_document(run, limits_for(1));
  ASSERT_EQ(document.size(), 1u);
  EXPECT_EQ(document[0]["step"], 7);
  EXPECT_DOUBLE_EQ(document[0]["real"]["makespan"], 4.0);
  EXPECT_DOUBLE_EQ(document[0]["real"]["bubble"], 1 - 3.0 / 8);
  EXPECT_DOUBLE_EQ(document[0]["simulated"]["bubble"], 0.5);
  EXPECT_EQ(document[0]["real"]["actions"][1], json::parse(R"([1, 1, 0, "F", 2.0, 3.0])"));
}

TEST_F(Traces, OfALargeJobShowTheFirstRanksAndCountAll) {
  write();
  Limits limits = limits_for(1);
  limits.timeline_ranks = 1;
  const json document = trace_document(run, limits);
  EXPECT_EQ(document[0]["shown_ranks"], 1);
  EXPECT_EQ(document[0]["real"]["actions"].size(), 1u);
  EXPECT_DOUBLE_EQ(document[0]["real"]["bubble"], 1 - 3.0 / 8);
}

TEST_F(Traces, TheNewestAreShown) {
  for (int step = 1; step <= 6; ++step) {
    trace["step"] = step;
    write(fmt::format("step-{:08}.json", step));
  }
  const json document = trace_document(run, limits_for(1));
  ASSERT_EQ(document.size(), 4u);
  EXPECT_EQ(document[0]["step"], 3);
  EXPECT_EQ(document[3]["step"], 6);
}

TEST_F(Traces, BrokenOnesAreNamed) {
  const json whole = trace;
  trace.erase("real");
  EXPECT_THAT(message(), HasSubstr("step-00000007.json: found no 'real', expected a trace"));
  trace = whole;
  trace["real"][0]["kind"] = "X";
  EXPECT_THAT(message(), HasSubstr("expected a kind of F, B, Bi or W"));
  trace = whole;
  trace["simulated"][0]["end"] = 0.25;
  EXPECT_THAT(message(), HasSubstr("an end after its start"));
  trace = whole;
  trace["real"][0].erase("chunk");
  EXPECT_THAT(message(), HasSubstr("expected rank, chunk, microbatch, kind, start and end"));
  trace = whole;
  trace["ranks"] = "two";
  EXPECT_THAT(message(), HasSubstr("expected two numbers"));
  io::write_file_atomically(folder.path() / "traces" / "step-00000007.json", "[{");
  EXPECT_THAT(message_of([&] { trace_document(run, limits_for(1)); }), HasSubstr("found no JSON object"));
}

// ---- sweeps ----

study::SweepData make_sweep(const fs::path& folder) {
  study::SweepData sweep{folder, "ladder", {}};
  for (uint64_t seed : {1, 2, 3}) sweep.runs.push_back({fmt::format("s-a-{}", seed), "s", "a", seed});
  sweep.runs.push_back({"s-b-1", "s", "b", 1});
  return sweep;
}

TEST(SweepDocument, TellsRunsNormsAndWhyThereIsNoFit) {
  const TemporaryFolder folder;
  const study::SweepData sweep = make_sweep(folder.path());
  MadeRun run = make_run();
  write_run(run, folder.path() / "s-a-1");
  for (json& row : run.layers) row["hidden_rms"] = 3 * row["hidden_rms"].get<double>();
  write_run(run, folder.path() / "s-a-2");
  run = make_run({.num_steps = 9});
  write_run(run, folder.path() / "s-a-3");
  const json document = sweep_document(sweep);
  EXPECT_EQ(document["variants"], json({"a", "b"}));
  EXPECT_EQ(document["sizes"], json({"s"}));
  EXPECT_EQ(document["runs"][0]["state"], "done");
  EXPECT_EQ(document["runs"][0]["loss"], 1.25);
  EXPECT_TRUE(document["runs"][0]["validation_loss"].is_null());
  EXPECT_GT(document["runs"][0]["compute"].get<double>(), 0);
  EXPECT_EQ(document["runs"][2]["state"], "at step 4 of 9");
  EXPECT_EQ(document["runs"][3]["state"], "not started");
  ASSERT_EQ(document["norms"].size(), 1u);  // of the finished runs
  EXPECT_EQ(document["norms"][0]["num_runs"], 2);
  EXPECT_EQ(document["norms"][0]["hidden_rms"][2], 2 * 41.0);  // mean of one and three times 41
  EXPECT_EQ(document["norms"][0]["sites"][6]["sublayer"], "output");
  EXPECT_FALSE(document["fit"]["problem"].get<std::string>().empty());
}

TEST(SweepDocument, TellsWhyARunWasStoppedEarly) {
  const TemporaryFolder folder;
  write_run(make_run({.name = "a", .num_steps = 9}), folder.path() / "s-a-1");
  write_run(make_run({.name = "a", .num_steps = 4}), folder.path() / "s-a-2");  // it has gone on to its end since
  io::write_file_atomically(folder.path() / "state.json",
                            R"({"runs": {"s-a-1": {"state": "stopped", "reason": "0.5 above the best"},
                                         "s-a-2": {"state": "stopped", "reason": "0.4 above the best"}}})");
  const json runs = sweep_document(make_sweep(folder.path()))["runs"];
  EXPECT_EQ(runs[0]["state"], "at step 4 of 9, stopped early: 0.5 above the best");
  EXPECT_EQ(runs[1]["state"], "done");
}

TEST(SweepDocument, RefusesABrokenRun) {
  const TemporaryFolder folder;
  MadeRun run = make_run();
  run.metrics[1].erase("grad_norm");
  write_run(run, folder.path() / "s-b-1");
  EXPECT_THAT(message_of([&] { sweep_document(make_sweep(folder.path())); }),
              HasSubstr("s-b-1/metrics.jsonl: step 2: found no 'grad_norm'"));
}

TEST(SweepDocument, RefusesNormsOfOtherModels) {
  const TemporaryFolder folder;
  MadeRun run = make_run();
  write_run(run, folder.path() / "s-a-1");
  run.layers.pop_back();
  write_run(run, folder.path() / "s-a-2");
  EXPECT_THAT(message_of([&] { sweep_document(make_sweep(folder.path())); }), HasSubstr("other sublayers"));
}

}  // namespace
}  // namespace lamina::report
