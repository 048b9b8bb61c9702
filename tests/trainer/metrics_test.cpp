#include "trainer/record/metrics.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

class Metrics : public testing::Test {
 protected:
  Metrics() : folder_(fs::temp_directory_path() / fmt::format("lamina-metrics-{}", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~Metrics() override { fs::remove_all(folder_); }
  std::vector<std::string> lines(const fs::path& path) const {
    std::ifstream in(path);
    std::vector<std::string> found;
    for (std::string line; std::getline(in, line);) found.push_back(line);
    return found;
  }
  fs::path folder_;
};

TEST_F(Metrics, RowIsJsonInOrderAndReadsBackExactly) {
  const double third = 1.0 / 3.0, tiny = 5e-324, huge = 1.7976931348623157e308;
  const std::vector<double> weights{0.1, -0.0, std::nan("")};
  const std::string text = JsonRow()
                               .add("z", third)
                               .add("a", int64_t{-9007199254740993})
                               .add("tiny", tiny)
                               .add("huge", huge)
                               .add("quote", "a\"b\\c\nd\x01")
                               .add("flag", true)
                               .add("nested", JsonRow().add("weights", weights).add("count", 3))
                               .to_string();
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const ordered_json row = ordered_json::parse(text);
  EXPECT_EQ(row.begin().key(), "z");
  EXPECT_EQ(row["z"].get<double>(), third);
  EXPECT_EQ(row["a"].get<int64_t>(), -9007199254740993);
  EXPECT_EQ(row["tiny"].get<double>(), tiny);
  EXPECT_EQ(row["huge"].get<double>(), huge);
  EXPECT_EQ(row["quote"], "a\"b\\c\nd\x01");
  EXPECT_EQ(row["flag"], true);
  EXPECT_EQ(row["nested"]["weights"][0].get<double>(), 0.1);
  EXPECT_TRUE(row["nested"]["weights"][2].is_null());
  EXPECT_EQ(row["nested"]["count"], 3);
  EXPECT_EQ(JsonRow().to_string(), "{}");
}

TEST_F(Metrics, NumbersWithoutAJsonFormAreNull) {
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(JsonRow().add("a", std::nan("")).add("b", inf).add("c", -inf).to_string(),
            R"({"a": null, "b": null, "c": null})");
}

TEST_F(Metrics, StepRowHasTheSchema) {
  StepMetrics metrics;
  metrics.step = 7;
  metrics.loss = 2.5;
  metrics.tokens = 4096;
  metrics.comm_bytes.data = 11;
  EXPECT_EQ(to_row(metrics).to_string(),
            R"({"step": 7, "loss": 2.5, "grad_norm": 0, "lr": 0, "tokens": 4096, "tokens_per_second": 0, )"
            R"("comm_bytes": {"pipeline_hidden": 0, "pipeline_blocks": 0, "data": 11, "expert": 0}})");
  metrics.mfu = 0.25;
  metrics.validation_loss = 3.0;
  const ordered_json row = ordered_json::parse(to_row(metrics).add("aux_loss", 0.5).to_string());
  EXPECT_EQ(row["mfu"], 0.25);
  EXPECT_EQ(row["validation_loss"], 3.0);
  EXPECT_EQ(row["aux_loss"], 0.5);
}

TEST_F(Metrics, EachLineIsInTheFileWhenWriteReturns) {
  const fs::path path = folder_ / "metrics.jsonl";
  MetricsWriter writer(path);
  writer.write(JsonRow().add("step", 1));
  EXPECT_EQ(lines(path), (std::vector<std::string>{R"({"step": 1})"}));
  MetricsWriter moved = std::move(writer);
  moved.write(JsonRow().add("step", 2));
  writer.write(JsonRow().add("step", 99));  // NOLINT: a moved-from writer writes nothing
  writer = std::move(moved);
  writer.write(JsonRow().add("step", 3));
  EXPECT_EQ(lines(path).size(), 3u);
  EXPECT_EQ(lines(path).back(), R"({"step": 3})");
}

TEST_F(Metrics, AppendsToWhatIsThere) {
  const fs::path path = folder_ / "metrics.jsonl";
  for (int step : {1, 2}) MetricsWriter(path).write(JsonRow().add("step", step));
  EXPECT_EQ(lines(path).size(), 2u);
}

TEST_F(Metrics, WithoutAPathWritesNothing) {
  EXPECT_NO_THROW(MetricsWriter().write(JsonRow().add("step", 1)));
}

TEST_F(Metrics, FailuresNameThePath) {
  const fs::path path = folder_ / "missing" / "metrics.jsonl";
  try {
    MetricsWriter writer(path);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos) << error.what();
  }
  MetricsWriter full("/dev/full");
  EXPECT_THROW(full.write(JsonRow().add("step", 1)), Error);
}

}  // namespace
}  // namespace lamina
