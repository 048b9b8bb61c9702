// What probes ask, and where the answer stands.
#include "evaluation/probes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "core/base/error.h"

namespace lamina::evaluation {
namespace {

using ::testing::HasSubstr;

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

class ProbeTest : public ::testing::Test {
 protected:
  std::vector<Probe> make(uint64_t seed = 1, std::vector<int64_t> lengths = {300, 1000}) const {
    return make_probes({std::move(lengths), 6, seed}, *bytes_);
  }
  std::unique_ptr<Tokenizer> bytes_ = make_tokenizer("bytes");
};

TEST_F(ProbeTest, AsksForWhatTheContextSaysOnce) {
  const std::vector<Probe> probes = make();
  EXPECT_EQ(probes.size(), 2U * 2 * 5);
  std::set<int64_t> answers;
  for (const Probe& probe : probes) {
    EXPECT_EQ(probe.task.items.size(), 6U);
    for (const TaskItem& item : probe.task.items) {
      answers.insert(item.answer);
      ASSERT_EQ(item.choices.size(), 4U);
      EXPECT_EQ(std::set<std::string>(item.choices.begin(), item.choices.end()).size(), 4U);
      // The question is the beginning of the statement that the right choice completes, which stands there once.
      const size_t line = item.context.rfind(probe.name == "needle" ? "The number of" : "\n");
      const std::string question = item.context.substr(probe.name == "needle" ? line : line + 1);
      const std::string& right = item.choices[static_cast<size_t>(item.answer)];
      const std::string statement = question + right;
      EXPECT_EQ(count(item.context, question), 2U) << item.context;
      EXPECT_EQ(count(item.context, statement), 1U) << item.context;
      for (const std::string& choice : item.choices)
        if (choice != right) {
          EXPECT_EQ(count(item.context, choice) > 0, probe.name == "recall") << choice << " in " << item.context;
        }
      // Depth, to the length of a neighbour.
      const double at = static_cast<double>(item.context.find(statement)) /
                        static_cast<double>(item.context.size() - statement.size() - question.size());
      EXPECT_NEAR(at, probe.depth, 60.0 / static_cast<double>(item.context.size())) << item.context;
    }
    // Full to a sentence, and never beyond.
    for (const Request& request : probe.task.requests) {
      EXPECT_LE(request.num_inputs(), probe.length);
      EXPECT_GT(request.num_inputs(), probe.length - 70);
    }
  }
  EXPECT_EQ(answers, (std::set<int64_t>{0, 1, 2, 3}));
}

TEST_F(ProbeTest, AreTheSameForTheSameSeed) {
  const auto contexts = [](const std::vector<Probe>& probes) {
    std::vector<std::string> all;
    for (const Probe& probe : probes)
      for (const TaskItem& item : probe.task.items) all.push_back(item.context);
    return all;
  };
  EXPECT_EQ(contexts(make(1)), contexts(make(1)));
  EXPECT_NE(contexts(make(1)), contexts(make(2)));
  const auto all = contexts(make(1));
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), all.size());
}

TEST_F(ProbeTest, RefusesALengthWithoutRoom) {
  try {
    make(1, {20});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("--probe-lengths: found 20, expected at least "));
  }
}

}  // namespace
}  // namespace lamina::evaluation
