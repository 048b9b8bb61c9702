#include "trainer/verify/verify.h"

#include <algorithm>
#include <limits>

#include "configs/schema/decode.h"
#include "tests/data/support.h"
#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::vector<std::string> names_of(const std::vector<Layout>& layouts) {
  std::vector<std::string> names;
  for (const Layout& layout : layouts) names.push_back(layout.name);
  return names;
}

class VerifyTest : public DataTest {
 protected:
  Config config(Residual residual = Residual::block_attnres, Precision precision = Precision::fp64) {
    if (!std::filesystem::exists(path("tokens"))) prepare(options("tokens", {write("text.txt", words(4000, 7))}));
    Config c = tiny_config(residual, 4, residual == Residual::block_attnres ? 2 : Config{}.model.attn_res_block_size);
    c.run.output_dir = path("run");
    c.run.num_threads = 1;
    c.model.vocab_size = data_vocab();
    c.data.train = {{path("tokens"), 1.0}};
    c.data.validation = {};
    c.train.num_steps = 1;
    c.train.precision = precision;
    c.train.global_batch_size = 4;
    return c;
  }
  Config kimi() {
    Config c = config();
    const Config tiny = tiny_kimi_config(Residual::block_attnres, 4, 2);
    const int64_t vocab_size = c.model.vocab_size;
    c.model = tiny.model;
    c.model.vocab_size = vocab_size;
    return c;
  }
  static VerifyOptions loose() {
    VerifyOptions how;
    how.tolerance = 1;
    return how;
  }
  static int64_t data_vocab() { return 257; }  // bytes and the end of a document

  Verification verify(const Config& c, const std::string& layouts, const VerifyOptions& how = {}) {
    return verify_layouts(c, parse_layouts(layouts, c, 2), how);
  }
};

// Adds to one gradient on whatever rank holds it, while the step runs.
VerifyOptions damage(const std::string& tensor, double amount) {
  VerifyOptions how;
  how.before_step = [=](Engine& engine) {
    const int index = engine.parameters().index_of(tensor);
    if (!engine.parameters().is_held(index)) return;
    engine.before_step = [&engine, index, amount](const pipeline::Step& step) {
      if (step.kind == pipeline::StepKind::compute) engine.parameters().gradient(index).as<double>()[0] += amount;
    };
  };
  return how;
}

TEST_F(VerifyTest, ReadsLayouts) {
  const Config c = config();
  const std::vector<Layout> layouts =
      parse_layouts("1x2x3,2x2x1:zero_bubble:full,4x1x1:split=1/1/2/0:recompute=selective:cached", c, 4);
  ASSERT_EQ(layouts.size(), 3u);
  EXPECT_EQ(layouts[0].pipeline, 1);
  EXPECT_EQ(layouts[0].virtual_stages, 2);
  EXPECT_EQ(layouts[0].data, 3);
  EXPECT_EQ(layouts[0].num_ranks(), 3);
  EXPECT_TRUE(layouts[0].overrides.empty());
  EXPECT_FALSE(layouts[0].may_be_refused);
  EXPECT_EQ(layouts[1].name, "2x2x1:zero_bubble:full");
  const Config second = with_layout(c, layouts[1]);
  EXPECT_EQ(second.parallel.pipeline, 2);
  EXPECT_EQ(second.parallel.virtual_stages, 2);
  EXPECT_EQ(second.parallel.data, 1);
  EXPECT_EQ(second.parallel.schedule, ScheduleName::zero_bubble);
  EXPECT_EQ(second.parallel.block_transport, BlockTransport::full);
  EXPECT_EQ(second.train.recompute, Recompute::none);
  const Config third = with_layout(c, layouts[2]);
  EXPECT_EQ(third.parallel.split, (std::vector<int64_t>{1, 1, 2, 0}));
  EXPECT_EQ(third.train.recompute, Recompute::selective);
  EXPECT_EQ(third.data.train.front().path, c.data.train.front().path);
}

TEST_F(VerifyTest, RefusesWhatItCannotRead) {
  const Config c = config();
  const std::pair<const char*, const char*> cases[] = {
      {"2x2", "found '2x2', expected all or PIPELINExVIRTUAL_STAGESxDATA, each at least 1, such as 2x2x1"},
      {"", "found '', expected all or"},
      {"2x2x1,", "found '', expected all or"},
      {"0x1x1", "found '0x1x1', expected all or PIPELINExVIRTUAL_STAGESxDATA, each at least 1"},
      {"1x1x1x1", "found '1x1x1x1', expected"},
      {"1x1x-1", "found '1x1x-1', expected"},
      {"1x1x10000", "found '1x1x10000', expected"},
      {"1x1x1 ", "found '1x1x1 ', expected"},
      {"2x2x1:zero_buble",
       "found 'zero_buble' in '2x2x1:zero_buble', expected gpipe|1f1b|interleaved_1f1b|zero_bubble, "
       "cached|full, recompute=none|selective|full, expert=2 or split=3/3/1/1; did you mean zero_bubble?"},
      {"2x2x1:", "found '' in '2x2x1:', expected gpipe|"},
      {"2x2x1:recompute=all", "found 'recompute=all' in '2x2x1:recompute=all', expected recompute=none|selective|full"},
      {"2x2x1:split=1/x/1/1", "found 'split=1/x/1/1' in '2x2x1:split=1/x/1/1', expected the layers of each chunk"},
      {"2x2x1:split", "found 'split' in '2x2x1:split', expected the layers of each chunk"},
      {"2x2x1:gpipe:full:1f1b", "found two values of parallel.schedule in '2x2x1:gpipe:full:1f1b', expected one"},
      {"2x2x1:full:full", "found two values of parallel.block_transport in '2x2x1:full:full', expected one"},
      {"all:gpipe",
       "found parallel.schedule=gpipe in 'all:gpipe', expected only cached|full and recompute=.. with all"},
      {"all:split=4", "found parallel.split=[4] in 'all:split=4', expected only"}};
  for (const auto& [text, message] : cases)
    EXPECT_THAT(error_of([&] { parse_layouts(text, c, 4); }), StartsWith(std::string("--layouts: ") + message)) << text;
}

TEST_F(VerifyTest, AllIsEveryPossibleLayoutWithEverySchedule) {
  Config c = config();
  c.model.num_hidden_layers = 2;  // at most 4 chunks
  c.train.global_batch_size = 4;
  EXPECT_EQ(
      names_of(parse_layouts("all", c, 1)),
      (std::vector<std::string>{"1x1x1:gpipe", "1x1x1:1f1b", "1x1x1:zero_bubble", "1x2x1:gpipe",
                                "1x2x1:interleaved_1f1b", "1x2x1:zero_bubble", "1x3x1:gpipe", "1x3x1:interleaved_1f1b",
                                "1x3x1:zero_bubble", "1x4x1:gpipe", "1x4x1:interleaved_1f1b", "1x4x1:zero_bubble"}));
  const std::vector<Layout> some = parse_layouts("all:full:recompute=full", c, 3);
  const auto names = names_of(some);
  EXPECT_THAT(names,
              ::testing::IsSupersetOf({"2x2x1:zero_bubble:full:recompute=full", "1x1x2:gpipe:full:recompute=full"}));
  // Not possible: listed once each, with the reason to come.
  EXPECT_EQ(std::count(names.begin(), names.end(), "2x3x1:full:recompute=full"), 1);
  EXPECT_EQ(std::count(names.begin(), names.end(), "1x1x3:full:recompute=full"), 1);
  for (const Layout& layout : some) {
    EXPECT_TRUE(layout.may_be_refused);
    const int chunks = layout.pipeline * layout.virtual_stages;
    if (chunks > 4)
      EXPECT_THAT(error_of([&] { with_layout(c, layout); }), HasSubstr("expected at most 4")) << layout.name;
    else if (layout.data == 3)
      EXPECT_THAT(error_of([&] { with_layout(c, layout); }), HasSubstr("expected a multiple of 3")) << layout.name;
    else
      EXPECT_EQ(with_layout(c, layout).train.recompute, Recompute::full) << layout.name;
  }
}

TEST_F(VerifyTest, KeepsTheConfiguredSplitWhereItFits) {
  Config c = config();
  c.parallel.pipeline = 2;
  c.parallel.split = {1, 3};
  EXPECT_EQ(with_layout(c, parse_layouts("2x1x2", c, 4)[0]).parallel.split, c.parallel.split);
  EXPECT_EQ(with_layout(c, parse_layouts("1x2x1", c, 4)[0]).parallel.split, c.parallel.split);
  EXPECT_TRUE(with_layout(c, parse_layouts("2x2x1", c, 4)[0]).parallel.split.empty());
  EXPECT_EQ(with_layout(c, parse_layouts("2x1x1:split=2/2", c, 4)[0]).parallel.split, (std::vector<int64_t>{2, 2}));
}

TEST_F(VerifyTest, ReasonsOfRefusalSpeakOfTheLayout) {
  const Config c = config();
  const auto reason = [&](const char* text) { return error_of([&] { with_layout(c, parse_layouts(text, c, 4)[0]); }); };
  EXPECT_THAT(reason("2x2x1:1f1b"), StartsWith("parallel.schedule: found 1f1b with parallel.virtual_stages: 2"));
  EXPECT_THAT(reason("4x2x1"),
              StartsWith("parallel.pipeline: found 4 x virtual_stages (2) = 8 chunks, expected at most 6"));
  EXPECT_THAT(reason("1x1x3"), StartsWith("train.global_batch_size: found 4, expected a multiple of 3"));
  EXPECT_THAT(reason("2x1x1:split=1/1/2"), StartsWith("parallel.split: found 3 entries, expected 2"));
  EXPECT_THAT(reason("2x1x1:split=1/2"), StartsWith("parallel.split: found entries that add up to 3"));
  const Config standard = config(Residual::standard);
  EXPECT_THAT(error_of([&] { with_layout(standard, parse_layouts("2x1x1:full", standard, 4)[0]); }),
              HasSubstr("has no effect with model.residual: standard"));
}

TEST_F(VerifyTest, EveryLayoutOfTwoRanksPasses) {
  for (const Residual residual : {Residual::standard, Residual::block_attnres, Residual::full_attnres, Residual::mhc}) {
    const Config c = config(residual);
    const Verification result = verify(c, "all");
    EXPECT_EQ(result.fault(), "");
    EXPECT_EQ(result.layouts.size(), 34u);
    int ran = 0;
    for (const LayoutReport& report : result.layouts) ran += report.refusal.empty();
    EXPECT_EQ(ran, 33);  // 2 x 4 has more chunks than 4 layers allow
    EXPECT_THAT(
        to_text(result),
        AllOf(HasSubstr("2x4x1                      2 refused: parallel.pipeline: found 2 x virtual_stages (4)"),
              HasSubstr("2x3x1:zero_bubble"), Not(HasSubstr("FAILED"))));
  }
}

TEST_F(VerifyTest, SinglePrecisionTransportsRecomputationAndSteps) {
  const Config c = config(Residual::block_attnres, Precision::fp32);
  VerifyOptions how;
  std::vector<std::string> lines;
  how.progress = [&](const std::string& line) { lines.push_back(line); };
  how.step = 3;
  const Verification result =
      verify(c, "2x2x1:full:recompute=full,2x2x1:recompute=selective,4x1x1:split=0/1/3/0,2x1x2,1x1x4", how);
  EXPECT_EQ(result.fault(), "");
  ASSERT_EQ(result.layouts.size(), 5u);
  EXPECT_EQ(result.tolerance, 1e-5);
  EXPECT_GT(result.layouts[0].summary_bytes, result.layouts[1].summary_bytes);
  EXPECT_GT(result.layouts[1].summary_bytes, 0);
  EXPECT_GT(result.layouts[0].stream_bytes, 0);
  EXPECT_EQ(result.layouts[4].stream_bytes, 0);
  EXPECT_EQ(result.layouts[3].held.size(), 4u);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_THAT(lines[0], StartsWith("one rank: loss "));
  EXPECT_THAT(lines[5], AllOf(StartsWith("5/5 1x1x4: ok, "), HasSubstr("0 s left")));
  EXPECT_NE(result.loss, verify(c, "1x1x1").loss);  // other sequences
}

TEST_F(VerifyTest, NamesTheTensorOfAWrongGradient) {
  const Config c = config();
  const std::string tensor = "model.layers.2.mlp_res_proj.weight";
  const Verification result = verify(c, "2x2x1,2x1x1:1f1b", damage(tensor, 1e-9));
  ASSERT_EQ(result.layouts.size(), 2u);
  for (const LayoutReport& report : result.layouts) {
    EXPECT_EQ(report.worst_tensor, tensor);
    EXPECT_GT(report.gradient_difference, 1e-12);
    EXPECT_LT(report.gradient_difference, 1e-4);
    EXPECT_LE(report.loss_difference, 1e-12);
  }
  EXPECT_THAT(result.fault(), AllOf(StartsWith("2x2x1: the gradient of " + tensor + " differs from one rank's by "),
                                    HasSubstr("expected at most 1e-12 (and 1 more layout)")));
  EXPECT_THAT(to_text(result), HasSubstr("FAILED   " + tensor + "\n"));
  VerifyOptions loose = damage(tensor, 1e-9);
  loose.tolerance = 1e-2;
  EXPECT_EQ(verify(c, "2x2x1", loose).fault(), "");
}

TEST_F(VerifyTest, AGradientThatIsNotFiniteFails) {
  const Verification result =
      verify(config(), "2x1x1", damage("model.norm.weight", std::numeric_limits<double>::quiet_NaN()));
  EXPECT_THAT(result.fault(), HasSubstr("the gradient of model.norm.weight differs from one rank's by inf"));
}

TEST_F(VerifyTest, AWrongParameterShows) {
  const Config c = config();
  VerifyOptions how;
  how.before_step = [](Engine& engine) {
    if (!engine.stage().has_first_chunk()) return;
    const TensorView table = engine.parameters().value("model.embed_tokens.weight");
    for (int64_t i = 0; i < table.num_elements(); ++i) table.as<double>()[i] *= 1.001;
  };
  const Verification result = verify(c, "2x1x1", how);
  EXPECT_GT(result.layouts[0].loss_difference, 1e-12);
  EXPECT_THAT(result.fault(), StartsWith("2x1x1: the gradient of "));
}

TEST_F(VerifyTest, ALayoutThatEndsEarlyIsReportedAndTheOthersRun) {
  VerifyOptions how;
  how.before_step = [](Engine& engine) {
    if (engine.mesh().pipeline != 2 || engine.place().pp_rank != 1) return;
    engine.before_step = [](const pipeline::Step&) { throw Error("a fault of this test"); };
  };
  const Verification result = verify(config(), "2x1x1,1x1x2", how);
  EXPECT_THAT(result.fault(), AllOf(StartsWith("2x1x1: "), HasSubstr("rank 1"), HasSubstr("a fault of this test"),
                                    Not(HasSubstr("more layout"))));
  EXPECT_EQ(fault_of(result.layouts[1], result.tolerance), "");
  EXPECT_THAT(to_text(result), HasSubstr("FAILED: "));
}

TEST_F(VerifyTest, RefusedLayoutsAreFaultsUnlessTheyCameFromAll) {
  const Verification result = verify(config(), "1x1x3,1x1x2");
  EXPECT_THAT(result.fault(), StartsWith("1x1x3: refused: train.global_batch_size: found 4, expected a multiple of 3"));
  EXPECT_EQ(fault_of(result.layouts[1], result.tolerance), "");
  LayoutReport report = result.layouts[0];
  report.layout.may_be_refused = true;
  EXPECT_EQ(fault_of(report, 1), "");
  // A wrong gradient comes first.
  Verification both = result;
  both.layouts[1].gradient_difference = 1;
  EXPECT_THAT(both.fault(), AllOf(StartsWith("1x1x2: the gradient of "), HasSubstr("(and 1 more layout)")));
}

TEST(VerifyFault, EachKindHasItsReason) {
  LayoutReport good;
  good.layout.name = "2x1x1";
  good.held = good.bound = {3, 4};
  good.worst_tensor = "a";
  good.gradient_difference = good.loss_difference = 1e-6;
  good.loss = 1.5;
  EXPECT_EQ(fault_of(good, 1e-6), "");
  LayoutReport bad = good;
  bad.gradient_difference = std::nan("");
  EXPECT_THAT(fault_of(bad, 1e-6), HasSubstr("the gradient of a differs from one rank's by nan"));
  bad = good;
  bad.loss_difference = 2e-6;
  EXPECT_EQ(fault_of(bad, 1e-6),
            "found loss 1.5, a relative difference to one rank's of 2e-06, expected at most 1e-06");
  bad = good;
  bad.summary_bytes = 8;
  EXPECT_EQ(fault_of(bad, 1e-6), "found 8 bytes of block summaries sent, planned are 0");
  bad = good;
  bad.planned_stream_bytes = 16;
  EXPECT_EQ(fault_of(bad, 1e-6), "found 0 bytes of hidden stream sent, planned are 16");
  bad = good;
  bad.expert_bytes = 24;
  EXPECT_EQ(fault_of(bad, 1e-6), "found 24 bytes of rows sent to experts and back, the routing makes 0");
  bad = good;
  bad.held = {3, 5};
  EXPECT_EQ(fault_of(bad, 1e-6), "rank 1 held 5 block summaries, planned are 4");
  bad = good;
  bad.failure = "out of memory";
  EXPECT_EQ(fault_of(bad, 1e-6), "out of memory");
}

TEST_F(VerifyTest, TakesParametersFromACheckpoint) {
  const Config c = config(Residual::block_attnres, Precision::fp32);
  comm::run_threads(2, [&](comm::Communicator& comm) {
    Config two = c;
    two.parallel.pipeline = 2;
    two.run.seed = 99;
    Engine engine(two, comm, nullptr);
    engine.initialise();
    CheckpointInfo info;
    info.step = 7;
    info.config_yaml = to_yaml(two);
    save_checkpoint(path("run/checkpoints"), info, engine.optimizer().primary_state(), comm, 0);
  });
  VerifyOptions how;
  how.checkpoint = path("run");
  const Verification result = verify(c, "1x2x2,2x2x1:zero_bubble", how);
  EXPECT_EQ(result.fault(), "");
  EXPECT_NE(result.loss, verify(c, "1x1x1").loss);
  how.checkpoint = path("run/checkpoints/step-00000007");
  EXPECT_EQ(verify(c, "2x2x1", how).loss, result.loss);

  how.checkpoint = path("nothing");
  EXPECT_THAT(error_of([&] { verify(c, "2x1x1", how); }), HasSubstr("nothing: no such folder"));
  how.checkpoint = path("run");
  Config wider = c;
  wider.model.intermediate_size += 1;
  EXPECT_THAT(error_of([&] { verify(wider, "2x1x1", how); }), HasSubstr("step-00000007"));
}

TEST_F(VerifyTest, ReadsRanksForTheExperts) {
  Config c = kimi();
  c.train.global_batch_size = 24;
  c.parallel.data = 4;
  c.parallel.expert = 4;
  const auto expert_of = [&](const char* text) { return with_layout(c, parse_layouts(text, c, 4)[0]).parallel.expert; };
  EXPECT_EQ(expert_of("1x1x4:expert=2"), 2);
  EXPECT_EQ(expert_of("1x1x4:expert=1"), 1);
  EXPECT_EQ(expert_of("1x1x4"), 4);  // the configuration's
  EXPECT_EQ(expert_of("1x1x8:gpipe"), 4);
  EXPECT_EQ(expert_of("2x1x2"), 1);  // which does not divide 2
  EXPECT_EQ(expert_of("1x1x1"), 1);
  const auto reason = [&](const Config& config, const char* text) {
    return error_of([&] { with_layout(config, parse_layouts(text, config, 4)[0]); });
  };
  EXPECT_THAT(reason(c, "1x1x2:expert=4"), StartsWith("parallel.expert: found 4, expected a divisor of the data-par"));
  EXPECT_THAT(reason(c, "1x1x3:expert=3"), StartsWith("parallel.expert: found 3, expected a divisor of model.num_ex"));
  EXPECT_THAT(reason(config(), "1x1x2:expert=2"), HasSubstr("has no effect with model.num_experts: 0"));
  for (const char* bad : {"1x1x2:expert=0", "1x1x2:expert", "1x1x2:expert=two"})
    EXPECT_THAT(error_of([&] { parse_layouts(bad, c, 4); }),
                HasSubstr("expected the ranks that share out the experts"));
  EXPECT_THAT(error_of([&] { parse_layouts("1x1x2:expert=1:expert=2", c, 4); }),
              HasSubstr("found two values of parallel.expert"));
  EXPECT_THAT(error_of([&] { parse_layouts("all:expert=2", c, 4); }),
              HasSubstr("found parallel.expert=2 in 'all:expert=2', expected only"));
}

TEST_F(VerifyTest, AllHasEveryShareOfTheExperts) {
  Config c = kimi();
  c.model.num_experts = 6;
  c.train.global_batch_size = 12;
  const auto names = names_of(parse_layouts("all:recompute=full", c, 4));
  for (const char* name : {"1x1x1:gpipe:recompute=full", "1x1x2:gpipe:expert=1:recompute=full",
                           "1x1x2:gpipe:expert=2:recompute=full", "1x1x3:1f1b:expert=3:recompute=full",
                           "1x2x4:zero_bubble:expert=2:recompute=full", "2x1x2:gpipe:expert=2:recompute=full"})
    EXPECT_EQ(std::count(names.begin(), names.end(), name), 1) << name;
  for (const std::string& name : names)
    EXPECT_THAT(name, Not(HasSubstr("expert=4"))) << "6 experts on 4 ranks";  // 4 divides data, but not the experts
  c.train.global_batch_size = 4;  // not for three ranks: once, whatever the experts' ranks
  const auto fewer = names_of(parse_layouts("all", c, 3));
  EXPECT_EQ(std::count(fewer.begin(), fewer.end(), "1x1x3"), 1);
  EXPECT_EQ(
      std::count_if(fewer.begin(), fewer.end(), [](const std::string& name) { return name.starts_with("1x1x3"); }), 1);
}

// Both mixers, experts on one, two and four ranks, with documents apart or not: gradients, and rows as the routing says.
TEST_F(VerifyTest, ExpertLayoutsPass) {
  for (const bool mask : {false, true}) {
    Config c = kimi();
    c.data.document_mask = mask;
    const Verification result =
        verify(c, "1x1x2:expert=1,1x1x2:expert=2,2x2x2:expert=2:zero_bubble,1x1x4:expert=4:recompute=full");
    EXPECT_EQ(result.fault(), "");
    ASSERT_EQ(result.layouts.size(), 4u);
    EXPECT_EQ(result.layouts[0].expert_bytes, 0);
    EXPECT_GT(result.layouts[1].expert_bytes, 0);
    EXPECT_EQ(result.layouts[2].expert_bytes, result.layouts[1].expert_bytes);
    EXPECT_GT(result.layouts[3].expert_bytes, result.layouts[1].expert_bytes);
    for (const LayoutReport& report : result.layouts) EXPECT_EQ(report.moved_choices, 0);
    const int64_t bytes = result.layouts[1].expert_bytes;
    EXPECT_THAT(to_text(result), AllOf(HasSubstr("rows sent/routed"), HasSubstr(fmt::format(" {0}/{0}  ok", bytes)),
                                       Not(HasSubstr("FAILED"))));
    c.train.precision = Precision::fp32;
    EXPECT_EQ(verify(c, "1x1x2:expert=2", loose()).layouts[0].expert_bytes, bytes / 2);
  }
  EXPECT_THAT(to_text(verify(config(), "1x1x2")), Not(HasSubstr("rows")));
}

TEST_F(VerifyTest, AWrongExpertShows) {
  const Config c = kimi();
  const std::string tensor = "model.layers.2.block_sparse_moe.experts.3.w2.weight";
  const Verification result = verify(c, "1x1x2:expert=2", damage(tensor, 1e-6));
  EXPECT_THAT(result.fault(), StartsWith("1x1x2:expert=2: the gradient of " + tensor + " differs from one rank's by "));
  EXPECT_THAT(result.fault(), Not(HasSubstr("choices")));
  // Other choices on one rank: of its tokens.
  VerifyOptions how;
  how.before_step = [](Engine& engine) {
    if (engine.place().ep_rank != 1) return;
    const TensorView bias = engine.parameters().value("model.layers.3.block_sparse_moe.gate.e_score_correction_bias");
    bias.as<double>()[0] += 10;
  };
  const Verification moved = verify(c, "1x1x2:expert=2", how);
  EXPECT_GT(moved.layouts[0].moved_choices, 0);
  EXPECT_EQ(moved.layouts[0].expert_bytes, moved.layouts[0].counted_expert_bytes);
  EXPECT_THAT(moved.fault(),
              HasSubstr(fmt::format("; {} choices of experts are not one rank's", moved.layouts[0].moved_choices)));
}

TEST_F(VerifyTest, MovesDepthQueriesTheSameWayOnEveryRank) {
  const Config c = config();
  std::map<std::string, std::vector<double>> one;
  comm::run_threads(1, [&](comm::Communicator& comm) {
    Engine engine(c, comm, nullptr);
    engine.initialise();
    move_depth_queries(engine);
    for (size_t p = 0; p < engine.parameters().specs().size(); ++p) {
      const TensorView value = engine.parameters().value(static_cast<int>(p));
      auto& values = one[engine.parameters().specs()[p].name];
      values.assign(value.as<double>(), value.as<double>() + value.num_elements());
      EXPECT_TRUE(std::any_of(values.begin(), values.end(), [](double x) { return x != 0; }));
    }
  });
  comm::run_threads(2, [&](comm::Communicator& comm) {
    Config two = c;
    two.parallel.pipeline = 2;
    Engine engine(two, comm, nullptr);
    engine.initialise();
    move_depth_queries(engine);
    for (size_t p = 0; p < engine.parameters().specs().size(); ++p) {
      if (!engine.parameters().is_held(static_cast<int>(p))) continue;
      const TensorView value = engine.parameters().value(static_cast<int>(p));
      const auto& expected = one.at(engine.parameters().specs()[p].name);
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), value.as<double>()));
    }
  });
}

}  // namespace
}  // namespace lamina
