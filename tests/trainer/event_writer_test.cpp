// The contents are checked from outside, by tests/integration/event_files_test.py, and by TensorBoard itself.
#include "trainer/tensorboard/event_writer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/io/file.h"
#include "trainer/tensorboard/record.h"

namespace lamina::tensorboard {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

// RFC 3720, appendix B.4, and the check value of the CRC catalogues.
TEST(Crc32c, KnownValues) {
  std::string ascending;
  for (int i = 0; i < 32; ++i) ascending += static_cast<char>(i);
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(ascending), 0x46dd794eu);
  EXPECT_EQ(crc32c(std::string(ascending.rbegin(), ascending.rend())), 0x113fdb5cu);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
}

TEST(Record, FramesLengthBytesAndTheirMaskedChecksums) {
  const std::string record = "abc", frame = framed(record);
  ASSERT_EQ(frame.size(), 8u + 4 + 3 + 4);
  EXPECT_EQ(frame.substr(0, 8), std::string("\x03\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(frame.substr(12, 3), record);
  const auto stored = [&](size_t at) {
    uint32_t value = 0;
    std::memcpy(&value, frame.data() + at, 4);
    return value;
  };
  const auto unmasked = [](uint32_t masked) {
    const uint32_t rotated = masked - 0xa282ead8u;
    return rotated >> 17 | rotated << 15;
  };
  EXPECT_EQ(unmasked(stored(8)), crc32c(frame.substr(0, 8)));
  EXPECT_EQ(unmasked(stored(15)), crc32c(record));
  EXPECT_EQ(framed("").size(), 16u);
  EXPECT_EQ(framed(std::string(300, 'x')).substr(0, 3), std::string("\x2c\x01\0", 3));
}

class EventWriterTest : public testing::Test {
 protected:
  EventWriterTest() : folder_(fs::temp_directory_path() / fmt::format("lamina-events-{}", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~EventWriterTest() override { fs::remove_all(folder_); }
  std::vector<std::string> files() const {
    std::vector<std::string> found;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_))
      found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }
  static std::string content(const EventWriter& writer) { return io::read_file(writer.path()); }
  fs::path folder_;
};

TEST_F(EventWriterTest, EveryStartHasAFileThatSortsLast) {
  std::vector<std::string> in_order;
  for (int start = 0; start < 3; ++start) {  // within a second
    const EventWriter writer(folder_, start);
    in_order.push_back(writer.path().filename().string());
    EXPECT_THAT(in_order.back(), HasSubstr(fmt::format(".{}.0", ::getpid())));
    EXPECT_THAT(content(writer), HasSubstr("brain.Event:2"));
  }
  EXPECT_EQ(files(), in_order);
}

TEST_F(EventWriterTest, SortsAfterFilesOfALaterClockAndIgnoresOtherNames) {
  for (const char* name : {"events.out.tfevents.4000000000.other.1.0", "events.out.tfevents.x.other", "metrics.jsonl",
                           "events.out.tfevents.99999999999999999999.other.1.0"})
    io::write_file_atomically(folder_ / name, std::string_view(""));
  const EventWriter writer(folder_, 0);
  EXPECT_THAT(writer.path().filename().string(), testing::StartsWith("events.out.tfevents.4000000001."));
}

TEST_F(EventWriterTest, AStepIsInTheFileWhenTheCallReturns) {
  EventWriter writer(folder_, 4);
  const std::string start = content(writer);
  writer.write_metrics(5, JsonRow().add("step", 5).add("loss", 2.5).add("comm_bytes", JsonRow().add("data", 7)));
  const std::string one = content(writer);
  ASSERT_TRUE(one.starts_with(start));
  const std::string added = one.substr(start.size());
  EXPECT_THAT(added, HasSubstr("loss"));
  EXPECT_THAT(added, HasSubstr("comm_bytes/data"));
  EXPECT_THAT(added, HasSubstr(std::string("\x15\x00\x00\x20\x40", 5)));  // simple_value (field 2, 32 bits): 2.5f
  EXPECT_THAT(added, Not(HasSubstr("step")));
}

TEST_F(EventWriterTest, ValuesWithoutAJsonNumberAreLeftOut) {
  EventWriter writer(folder_, 0);
  writer.write_metrics(1, JsonRow().add("loss", std::nan("")).add("word", "no number").add("lr", 0.5));
  EXPECT_THAT(content(writer), Not(HasSubstr("loss")));
  EXPECT_THAT(content(writer), Not(HasSubstr("word")));
  EXPECT_THAT(content(writer), HasSubstr("lr"));
}

TEST_F(EventWriterTest, LayersAreScalarsAndHistograms) {
  EventWriter writer(folder_, 0);
  const std::vector<double> weights{0.25, 0.75};
  std::vector<JsonRow> rows;
  rows.push_back(JsonRow().add("step", 1).add("layer", 3).add("sublayer", "mlp").add("hidden_rms", 1.0));
  rows.back().add("depth_weights", std::span<const double>(weights)).add("dead_experts", 2);
  rows.push_back(JsonRow().add("step", 1).add("layer", 4).add("sublayer", "output").add("hidden_rms", 1.0));
  writer.write_layers(1, rows);
  for (const char* tag : {"layers/hidden_rms/003.mlp", "layers/hidden_rms/004.output", "layers/dead_experts/003.mlp",
                          "layers/depth_weights/003.mlp"})
    EXPECT_THAT(content(writer), HasSubstr(tag));
}

TEST_F(EventWriterTest, MovesAndThenWritesNothing) {
  EventWriter first(folder_, 0), second(folder_, 0);
  const fs::path path = first.path();
  EventWriter moved = std::move(first);
  const std::string before = io::read_file(path);
  first.write_metrics(1, JsonRow().add("loss", 1.0));  // NOLINT: moved from
  first.write_layers(1, {});                           // NOLINT
  EXPECT_EQ(io::read_file(path), before);
  second = std::move(moved);
  EXPECT_EQ(second.path(), path);
  second.write_metrics(1, JsonRow().add("loss", 1.0));
  EXPECT_GT(io::read_file(path).size(), before.size());
}

TEST_F(EventWriterTest, WithoutAFolderWritesNothing) {
  EventWriter nowhere;
  EXPECT_NO_THROW(nowhere.write_metrics(1, JsonRow().add("loss", 1.0)));
  EXPECT_TRUE(files().empty());
}

TEST_F(EventWriterTest, FailuresNameThePath) {
  try {
    const EventWriter writer(folder_ / "missing", 0);
    FAIL();
  } catch (const std::exception& failure) {
    EXPECT_THAT(failure.what(), HasSubstr((folder_ / "missing").string()));
  }
}

}  // namespace
}  // namespace lamina::tensorboard
