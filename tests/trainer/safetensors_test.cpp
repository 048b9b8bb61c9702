#include "trainer/export/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "core/base/error.h"
#include "core/io/file.h"
#include "tests/trainer/checkpoint_support.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using testing_checkpoint::TemporaryFolder;

const std::vector<SafetensorsEntry> some = {{"a", DType::bf16, {3, 5}},
                                            {"b.A_log", DType::f32, {1, 1, 2, 1}},
                                            {"c", DType::f64, {}},
                                            {"empty", DType::f32, {0, 4}},
                                            {"d", DType::i32, {7}}};

std::vector<char> bytes_of(const SafetensorsEntry& entry) {
  std::vector<char> bytes(static_cast<size_t>(entry.num_bytes()));
  std::mt19937 random(static_cast<unsigned>(entry.num_bytes()) + 7);
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

void write_all(SafetensorsWriter& writer) {
  for (const SafetensorsEntry& entry : writer.tensors()) {
    const std::vector<char> bytes = bytes_of(entry);
    writer.write(bytes.data(), static_cast<int64_t>(bytes.size()));
  }
  writer.finish();
}

void write_text(const fs::path& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

void write_raw(const fs::path& path, const std::string& header, size_t data_bytes) {
  std::string content(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(content.data(), &length, 8);
  write_text(path, content + header + std::string(data_bytes, 'x'));
}

std::string message_of(const fs::path& path) {
  try {
    const SafetensorsFile file(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Safetensors, WhatWasWrittenIsRead) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  SafetensorsWriter first(path, some);
  SafetensorsWriter writer(std::move(first));
  write_all(writer);
  SafetensorsFile opened(path);
  const SafetensorsFile file(std::move(opened));
  ASSERT_EQ(file.tensors().size(), some.size());
  for (const SafetensorsEntry& entry : some) {
    ASSERT_TRUE(file.has(entry.name));
    EXPECT_EQ(file.entry(entry.name).dtype, entry.dtype);
    EXPECT_EQ(file.entry(entry.name).shape, entry.shape);
    std::vector<char> read(static_cast<size_t>(entry.num_bytes()), '?');
    file.read(entry.name, read);
    EXPECT_EQ(read, bytes_of(entry)) << entry.name;
  }
  EXPECT_FALSE(file.has("e"));
  EXPECT_THROW(file.entry("e"), Error);
}

TEST(Safetensors, TheBytesFollowTheFormat) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  SafetensorsWriter writer(path, {{"a", DType::bf16, {3}}, {"b", DType::f32, {2, 1}}});
  write_all(writer);
  const std::string content = io::read_file(path);
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})";  // the wider elements first
  uint64_t length = 0;
  std::memcpy(&length, content.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  EXPECT_EQ(content.size(), 8 + length + 14);
  EXPECT_EQ(content.substr(8, header.size()), header);
  EXPECT_EQ(content.substr(8 + header.size(), length - header.size()), std::string(length - header.size(), ' '));
}

TEST(Safetensors, AMovedWriterClosesOnce) {
  const TemporaryFolder folder;
  SafetensorsWriter a(folder.path() / "a", {{"a", DType::bf16, {3}}}), b(folder.path() / "b", {{"b", DType::f32, {3}}});
  a = std::move(b);
  EXPECT_EQ(a.tensors().front().name, "b");
  write_all(a);
  EXPECT_TRUE(SafetensorsFile(folder.path() / "b").has("b"));
  EXPECT_THROW(a.write("", 0), InternalError);
  EXPECT_THROW(SafetensorsWriter(folder.path() / "b", some), Error);  // exists
  EXPECT_THROW(SafetensorsWriter(folder.path() / "no/x", some), Error);
  SafetensorsWriter unfinished(folder.path() / "c", some);
  EXPECT_THROW(unfinished.finish(), InternalError);
  EXPECT_THROW(unfinished.write("12345678", 7), InternalError);
}

struct Fault {
  const char* header;
  size_t data_bytes;
  const char* message;  // after "<file>: "
};

const Fault faults[] = {
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, ""},
    {R"({"__metadata__":{"format":"pt"}})", 0, ""},
    {R"(["a"])", 0, "its header does not begin with '{'"},
    {R"({"a":)", 0, "its header is no JSON"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
     8, "\"a\" is in the header twice"},
    {R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "\"dtype\" is in the header twice"},
    {R"({"a":7})", 0, "tensor a: \"dtype\" is missing"},
    {R"({"a":{"dtype":"F32","shape":[2]}})", 0, "tensor a: \"data_offsets\" is missing"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8,
     "tensor a: 4 keys found, expected dtype, shape and data_offsets"},
    {R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})", 4,
     "tensor a: dtype \"F16\" found, expected F64, F32, BF16 or I32"},
    {R"({"a":{"dtype":1,"shape":[2],"data_offsets":[0,4]}})", 4, "tensor a: dtype 1 found, expected a text"},
    {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "tensor a: -2 found, expected a whole number"},
    {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, "tensor a: 2.0 found, expected a whole number"},
    {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1],"data_offsets":[0,4]}})", 4,
     "tensor a: shape [1,1,1,1,1,1] found, expected a list of at most 5 numbers"},
    {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8,
     "tensor a: shape [4294967296,4294967296] has too many elements"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8,
     "tensor a: data_offsets [0] found, expected two numbers"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}})", 12,
     "tensor a: data_offsets [0,12] found, expected 8 bytes for F32 [2]"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8,
     "tensor a: data_offsets [8,0] found, expected 8 bytes for F32 [2]"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
     12, "tensor b: begins at byte 4 of the data, expected 8: tensors overlap"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}})",
     20, "tensor b: begins at byte 12 of the data, expected 8: tensors leave a hole"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12,
     "tensor a: begins at byte 4 of the data, expected 0: tensors leave a hole"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7,
     "7 bytes of data found, expected 8 up to the end of tensor a"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 9,
     "9 bytes of data found, expected 8 up to the end of tensor a"},
    {R"({})", 1, "1 bytes of data found, expected 0"},
};

TEST(Safetensors, BadFilesAreRefusedWithTheReason) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  for (const Fault& fault : faults) {
    write_raw(path, fault.header, fault.data_bytes);
    const std::string expected = fault.message;
    const std::string found = message_of(path);
    if (expected.empty())
      EXPECT_EQ(found, "no error") << fault.header;
    else
      EXPECT_EQ(found.substr(0, path.string().size() + 2 + expected.size()), path.string() + ": " + expected);
  }
}

TEST(Safetensors, LengthsThatCantBe) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  EXPECT_EQ(message_of(path), path.string() + ": can't open: No such file or directory");
  write_text(path, "1234567");
  EXPECT_EQ(message_of(path), path.string() + ": 7 bytes found, expected at least the 8 of the header's length");
  for (const uint64_t length : {uint64_t{3}, uint64_t{100'000'001}, ~uint64_t{0}}) {
    std::string content(10, 'x');
    std::memcpy(content.data(), &length, 8);
    write_text(path, content);
    EXPECT_EQ(message_of(path),
              fmt::format("{}: a header of {} bytes announced in a file of 10", path.string(), length));
  }
  // Cut at every byte: never read as whole.
  fs::remove(path);
  SafetensorsWriter writer(path, some);
  write_all(writer);
  const std::string whole = io::read_file(path);
  for (size_t size = 0; size < whole.size(); ++size) {
    write_text(path, std::string_view(whole).substr(0, size));
    ASSERT_NE(message_of(path), "no error") << size;
  }
}

}  // namespace
}  // namespace lamina
