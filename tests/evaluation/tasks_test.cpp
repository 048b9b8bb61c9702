// Items, what is wrong in them, and what is made of log-probabilities; numbers by hand.
#include "evaluation/tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"

namespace lamina::evaluation {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TaskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = (std::filesystem::temp_directory_path() / fmt::format("lamina-tasks-{}.jsonl", ::getpid())).string();
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::string write(const std::string& text) const {
    std::ofstream(path_, std::ios::binary) << text;
    return path_;
  }
  std::string error_of(const std::string& text) const {
    write(text);
    try {
      load_task(path_, *bytes_, std::nullopt);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  std::string path_;
  std::unique_ptr<Tokenizer> bytes_ = make_tokenizer("bytes");
};

constexpr const char* two_items =
    "{\"id\": \"first\", \"context\": \"ab \", \"choices\": [\"c\", \"\\u00e9d\"], \"answer\": 1}\r\n"
    "\n"
    "{\"context\": \"\", \"choices\": [\"x\", \"yz\", \"w\"], \"answer\": 0}";

TEST_F(TaskTest, ReadsItems) {
  const std::vector<TaskItem> items = read_task_file(write(two_items));
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[0].id, "first");
  EXPECT_EQ(items[0].context, "ab ");
  EXPECT_THAT(items[0].choices, ElementsAre("c", "éd"));
  EXPECT_EQ(items[0].answer, 1);
  EXPECT_EQ(items[0].line, 1);
  EXPECT_EQ(items[1].line, 3);
  EXPECT_EQ(items[1].id, "");
}

TEST_F(TaskTest, MakesRequestsOfEveryChoice) {
  const Task task = load_task(write(two_items), *bytes_, 4);
  ASSERT_EQ(task.requests.size(), 5U);
  EXPECT_THAT(task.requests[0].tokens, ElementsAre(256, 'a', 'b', ' ', 'c'));
  // "ab éd" has five inputs behind the end of a document and loses the first one.
  EXPECT_THAT(task.requests[1].tokens, ElementsAre('b', ' ', 0xC3, 0xA9, 'd'));
  EXPECT_EQ(task.requests[1].first, 1U);
  EXPECT_EQ(task.num_cut, 1);
  EXPECT_THAT(describe(task, 4), HasSubstr("2 items, 5 choices; 1 of them"));
  EXPECT_EQ(load_task(path_, *bytes_, std::nullopt).num_cut, 0);
}

TEST_F(TaskTest, NamesWhatIsWrong) {
  const std::string right = "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\n";
  const std::string place = path_ + ":2: ";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"context\": \"a\"", "found no JSON, expected an object with context, choices, answer and, if wanted, id"},
      {"[1]", "found a list, expected an object"},
      {R"({"choices": ["b", "c"], "answer": 0})", "context: found nothing, expected a text"},
      {R"({"context": 3, "choices": ["b", "c"], "answer": 0})", "context: found the number 3, expected a text"},
      {R"({"context": "a", "answer": 0})", "choices: found nothing, expected a list of texts"},
      {R"({"context": "a", "choices": "bc", "answer": 0})", "choices: found a text, expected a list of texts"},
      {R"({"context": "a", "choices": ["b"], "answer": 0})", "choices: found a list of 1, expected at least two texts"},
      {R"({"context": "a", "choices": ["b", null], "answer": 0})", "choices[1]: found null, expected a text"},
      {R"({"context": "a", "choices": ["", "c"], "answer": 0})", "choices[0]: found an empty text"},
      {R"({"context": "a", "choices": ["b", "c"]})", "answer: found nothing, expected the index of the right choice"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": 2})",
       "answer: found the number 2, expected the index of "
       "the right choice, 0 to 1"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": -1})", "answer: found the number -1, expected"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": 0.5})", "answer: found 0.5, expected"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": "0"})", "answer: found a text, expected"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": 0, "id": 7})", "id: found the number 7, expected a text"},
      {R"({"context": "a", "choices": ["b", "c"], "anwser": 0})", "found the key \"anwser\", expected context,"},
  };
  for (const auto& [line, expected] : cases)
    EXPECT_THAT(error_of(right + line + "\n"), HasSubstr(place + expected)) << line;
  EXPECT_THAT(error_of("\n\n"), HasSubstr(path_ + ": found no items"));
  try {
    read_task_file(path_ + ".none");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(path_ + ".none"));
  }
  try {
    read_task_file(std::filesystem::temp_directory_path().string());
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("found a folder"));
  }
}

// By hand: of 5 items 2 right, p = 0.4: sqrt(0.4 * 0.6 / 4).
TEST_F(TaskTest, StandardErrors) {
  const Mean mean = mean_of({1, 0, 0, 1, 0});
  EXPECT_DOUBLE_EQ(mean.value, 0.4);
  EXPECT_DOUBLE_EQ(mean.error, std::sqrt(0.06));
  EXPECT_DOUBLE_EQ(mean_of({1, 1, 1}).value, 1);
  EXPECT_EQ(mean_of({1, 1, 1}).error, 0);
  EXPECT_DOUBLE_EQ(mean_of({-1, -4}).error, 1.5);  // variance 4.5 / 2
  EXPECT_EQ(mean_of({3}).value, 3);
  EXPECT_TRUE(std::isnan(mean_of({3}).error));
}

// Three choices of 1, 2 and 3 bytes; "é" has two bytes and is one character.
TEST_F(TaskTest, ChoosesByEachLength) {
  const Task task = load_task(write(R"({"context": "q", "choices": ["a", "é", "abc"], "answer": 2, "id": "one"}
{"context": "q", "choices": ["a", "é", "abc"], "answer": 1}
{"context": "q", "choices": ["b", "c"], "answer": 1}
{"context": "q", "choices": ["b", "c"], "answer": 0}
)"),
                              *bytes_, std::nullopt);
  // Plain: 0. By characters -2, -2.5, -2.1: 0. By bytes -2, -1.25, -2.1: 1.
  // Plain: 0. By characters -3, -3.5, -1.2: 2. By bytes -3, -1.75, -1.2: 2.
  // Equal: the first.
  const TaskResult result = judge(task, {-2, -2.5, -6.3, -3, -3.5, -3.6, -1, -1, -1, -1});
  EXPECT_EQ(result.num_items, 4);
  EXPECT_DOUBLE_EQ(result.acc.value, 0.25);
  EXPECT_DOUBLE_EQ(result.acc_norm.value, 0.25);
  EXPECT_DOUBLE_EQ(result.acc_bytes.value, 0.25);
  EXPECT_DOUBLE_EQ(result.acc.error, std::sqrt(0.25 * 0.75 / 3));
  EXPECT_DOUBLE_EQ(result.logprob.value, (-6.3 - 3.5 - 1 - 1) / 4);
  const std::string lines = items_as_json_lines(task, result);
  const auto first = nlohmann::json::parse(lines.substr(0, lines.find('\n')));
  EXPECT_EQ(first["id"], "one");
  EXPECT_EQ(first["line"], 1);
  EXPECT_EQ(first["answer"], 2);
  EXPECT_EQ(first["chosen"], 0);
  EXPECT_EQ(first["chosen_norm"], 0);
  EXPECT_EQ(first["chosen_bytes"], 1);
  EXPECT_EQ(first["logprobs"], (std::vector<double>{-2, -2.5, -6.3}));
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 4);
}

}  // namespace
}  // namespace lamina::evaluation
