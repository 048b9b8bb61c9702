#include "core/io/lines_from_end.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <random>
#include <sstream>
#include <vector>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;

class LinesFromEndTest : public testing::Test {
 protected:
  fs::path write(const std::string& text) {
    path_ = fs::temp_directory_path() / fmt::format("lamina-lines-{}", ::getpid());
    write_file_atomically(path_, text);
    return path_;
  }
  void TearDown() override { fs::remove(path_); }

  // Every line, first to last, each checked against its place in the text.
  std::vector<std::string> lines_of(const std::string& text) {
    LinesFromEnd lines(write(text));
    std::vector<std::string> found;
    while (const auto line = lines.next()) {
      EXPECT_EQ(text.substr(static_cast<size_t>(line->begin), line->text.size()), line->text);
      EXPECT_EQ(text[static_cast<size_t>(line->begin) + line->text.size()], '\n');
      found.insert(found.begin(), line->text);
    }
    EXPECT_FALSE(lines.next());
    return found;
  }

 private:
  fs::path path_;
};

TEST_F(LinesFromEndTest, SmallFiles) {
  using testing::ElementsAre;
  using testing::IsEmpty;
  EXPECT_THAT(lines_of(""), IsEmpty());
  EXPECT_THAT(lines_of("half"), IsEmpty());
  EXPECT_THAT(lines_of("\n"), ElementsAre(""));
  EXPECT_THAT(lines_of("a\n"), ElementsAre("a"));
  EXPECT_THAT(lines_of("a\nhalf"), ElementsAre("a"));
  EXPECT_THAT(lines_of("\n\nb\n"), ElementsAre("", "", "b"));
}

TEST_F(LinesFromEndTest, AnyLength) {
  std::mt19937 random(5);
  for (const size_t longest : {size_t{10}, size_t{40'000}, size_t{3} << 20}) {
    std::string text;
    std::vector<std::string> expected;
    for (int i = 0; i < 12; ++i) {
      expected.emplace_back(std::uniform_int_distribution<size_t>(0, longest)(random), static_cast<char>('a' + i));
      text += expected.back() + "\n";
    }
    EXPECT_EQ(lines_of(text), expected) << longest;
    EXPECT_EQ(lines_of(text + std::string(longest, 'h')), expected) << longest;
  }
}

TEST_F(LinesFromEndTest, NoSuchFile) {
  EXPECT_THROW(LinesFromEnd("/nowhere/x"), Error);
}

}  // namespace
}  // namespace lamina::io
