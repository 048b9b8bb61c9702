#include "core/io/hdf5.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>
#include <thread>

#include "core/base/error.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Hdf5Test : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("lamina-hdf5-test-{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path file(const char* name) const { return folder_ / name; }

  fs::path folder_;
};

template <class F>
std::string error_of(F&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

template <class T>
void round_trip(const fs::path& path, ElementType type, std::vector<T> values) {
  const std::vector<int64_t> shape{static_cast<int64_t>(values.size())};
  {
    Hdf5File out = Hdf5File::create(path);
    out.write("/a/b/values", type, shape, values.data());
    out.close();
  }
  const Hdf5File in = Hdf5File::open(path);
  const DatasetInfo info = in.info("/a/b/values");
  EXPECT_EQ(info.type, type);
  EXPECT_EQ(info.shape, shape);
  EXPECT_EQ(size_of(type), static_cast<int64_t>(sizeof(T)));
  std::vector<T> back(values.size(), T{77});
  in.read("/a/b/values", type, 0, info.num_elements(), back.data());
  EXPECT_EQ(back, values);
  // The same bytes stand in the file at the offset that contiguous_offset() names.
  const int64_t offset = in.contiguous_offset("/a/b/values");
  ASSERT_GT(offset, 0);
  std::ifstream raw(path, std::ios::binary);
  raw.seekg(offset);
  std::vector<T> bytes(values.size());
  raw.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size() * sizeof(T)));
  EXPECT_EQ(bytes, values);
}

template <class T>
std::vector<T> extremes() {
  return {std::numeric_limits<T>::lowest(), T{0}, T{1}, std::numeric_limits<T>::max()};
}

TEST_F(Hdf5Test, EveryTypeComesBack) {
  round_trip<uint8_t>(file("u8.h5"), ElementType::u8, extremes<uint8_t>());
  round_trip<uint16_t>(file("u16.h5"), ElementType::u16, extremes<uint16_t>());
  round_trip<uint32_t>(file("u32.h5"), ElementType::u32, extremes<uint32_t>());
  round_trip<uint64_t>(file("u64.h5"), ElementType::u64, extremes<uint64_t>());
  round_trip<int32_t>(file("i32.h5"), ElementType::i32, extremes<int32_t>());
  round_trip<int64_t>(file("i64.h5"), ElementType::i64, extremes<int64_t>());
  round_trip<float>(file("f32.h5"), ElementType::f32, extremes<float>());
  round_trip<double>(file("f64.h5"), ElementType::f64, extremes<double>());
}

// Nothing in a file tells when it was written.
TEST_F(Hdf5Test, TheSameContentIsTheSameBytes) {
  const auto bytes_of = [&](const fs::path& path) {
    const std::vector<uint64_t> values{1, 2, 3};
    {
      Hdf5File f = Hdf5File::create(path);
      f.write("/deep/in/values", ElementType::u64, std::vector<int64_t>{3}, values.data());
      f.create_appendable("/deep/grows", ElementType::u16, 2);
      for (uint16_t i = 0; i < 5; ++i) f.append("/deep/grows", &i, 1);
      f.write_virtual("/whole/w", ElementType::u64, std::vector<int64_t>{3},
                      std::vector<VirtualPiece>{{0, 3, "part.h5", "/w", 0, 3}});
      f.write_attribute("/", "name", std::string("x"));
      f.write_attribute("/deep", "count", int64_t{5});
      f.write_attribute("/deep/grows", "name", std::string("y"));
      f.close();
    }
    {
      Hdf5File f = Hdf5File::open_for_append(path);
      f.write_attribute("/deep/in/values", "later", int64_t{1});
      f.close();
    }
    std::ifstream in(path, std::ios::binary);
    return std::string{std::istreambuf_iterator<char>(in), {}};
  };
  const std::string first = bytes_of(file("first.h5"));
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // the format's clock ticks in seconds
  EXPECT_TRUE(bytes_of(file("second.h5")) == first);
}

TEST_F(Hdf5Test, ReadsAnyFlatRangeOfAnyShapeConverted) {
  const std::vector<std::vector<int64_t>> shapes{{}, {1}, {7}, {3, 5}, {4, 1}, {1, 6}, {2, 3, 4}, {3, 1, 2, 2}};
  Hdf5File f = Hdf5File::create(file("ranges.h5"));
  for (size_t s = 0; s < shapes.size(); ++s) {
    const int64_t count = std::accumulate(shapes[s].begin(), shapes[s].end(), int64_t{1}, std::multiplies<>());
    std::vector<uint16_t> values(static_cast<size_t>(count));
    std::iota(values.begin(), values.end(), uint16_t{100});
    const std::string name = fmt::format("/x{}", s);
    f.write(name, ElementType::u16, shapes[s], values.data());
    EXPECT_EQ(f.info(name).shape, shapes[s]);
    EXPECT_EQ(f.info(name).num_elements(), count);
    for (int64_t begin = 0; begin <= count; ++begin)
      for (int64_t end = begin; end <= count; ++end) {
        std::vector<double> out(static_cast<size_t>(end - begin) + 1, -1.0);
        f.read(name, ElementType::f64, begin, end - begin, out.data());
        for (int64_t i = begin; i < end; ++i)
          ASSERT_EQ(out[static_cast<size_t>(i - begin)], 100.0 + static_cast<double>(i))
              << s << " " << begin << " " << end;
        ASSERT_EQ(out.back(), -1.0) << "written past the end";
      }
    double out = 0;
    EXPECT_THAT(error_of([&] { f.read(name, ElementType::f64, count, 1, &out); }),
                AllOf(HasSubstr("ranges.h5"), HasSubstr(name), HasSubstr(fmt::format("found {} elements", count))));
  }
}

TEST_F(Hdf5Test, EmptyDatasets) {
  Hdf5File f = Hdf5File::create(file("empty.h5"));
  f.write("/none", ElementType::f32, std::vector<int64_t>{0, 4}, nullptr);
  EXPECT_EQ(f.info("/none").num_elements(), 0);
  f.read("/none", ElementType::f32, 0, 0, nullptr);
  EXPECT_EQ(f.contiguous_offset("/none"), -1);
  EXPECT_THAT(error_of([&] { (void)f.chunk_offsets("/none"); }), AllOf(HasSubstr("/none"), HasSubstr("chunks")));
}

TEST_F(Hdf5Test, AppendsInPiecesOfAnySize) {
  Hdf5File f = Hdf5File::create(file("append.h5"));
  f.create_appendable("/group/tokens", ElementType::u16, 16);
  EXPECT_EQ(f.info("/group/tokens").num_elements(), 0);
  std::vector<uint16_t> all;
  std::mt19937 random(3);
  for (int64_t count : {1, 15, 16, 0, 17, 100, 3}) {
    std::vector<uint16_t> piece(static_cast<size_t>(count));
    for (auto& value : piece) value = static_cast<uint16_t>(random());
    f.append("/group/tokens", piece.data(), count);
    all.insert(all.end(), piece.begin(), piece.end());
  }
  f.close();
  Hdf5File again = Hdf5File::open_for_append(file("append.h5"));
  const uint16_t last = 42;
  again.append("/group/tokens", &last, 1);
  all.push_back(last);
  again.close();
  const Hdf5File in = Hdf5File::open(file("append.h5"));
  ASSERT_EQ(in.info("/group/tokens").num_elements(), static_cast<int64_t>(all.size()));
  std::vector<uint16_t> back(all.size());
  in.read("/group/tokens", ElementType::u16, 0, static_cast<int64_t>(all.size()), back.data());
  EXPECT_EQ(back, all);
  EXPECT_EQ(in.contiguous_offset("/group/tokens"), -1);
  const std::vector<int64_t> offsets = in.chunk_offsets("/group/tokens");
  ASSERT_EQ(offsets.size(), (all.size() + 15) / 16);
  std::ifstream raw(file("append.h5"), std::ios::binary);
  for (size_t i = 0; i < all.size(); ++i) {
    raw.seekg(offsets[i / 16] + static_cast<int64_t>(i % 16 * sizeof(uint16_t)));
    uint16_t value = 0;
    raw.read(reinterpret_cast<char*>(&value), sizeof(value));
    ASSERT_EQ(value, all[i]) << i;
  }
}

TEST_F(Hdf5Test, AttributesOfGroupsAndDatasets) {
  const std::string large(200'000, 'x');  // more than an old-style object header takes
  {
    Hdf5File f = Hdf5File::create(file("attributes.h5"));
    const double value = 1;
    f.write("/g/x", ElementType::f64, std::vector<int64_t>{1}, &value);
    f.write_attribute("/", "name", std::string("first"));
    f.write_attribute("/", "name", std::string("äöü ✓"));  // replaces
    f.write_attribute("/", "empty", std::string());
    f.write_attribute("/g", "config", large);
    f.write_attribute("/g/x", "step", int64_t{-1} << 62);
    f.write_attribute("/g/x", "lr", 0.1);
    f.write_attribute("/g/x", "lr", int64_t{2});  // another type
    f.close();
  }
  const Hdf5File f = Hdf5File::open(file("attributes.h5"));
  EXPECT_EQ(f.read_string("/", "name"), "äöü ✓");
  EXPECT_EQ(f.read_string("/", "empty"), "");
  EXPECT_EQ(f.read_string("/g", "config"), large);
  EXPECT_EQ(f.read_int("/g/x", "step"), int64_t{-1} << 62);
  EXPECT_EQ(f.read_double("/g/x", "lr"), 2.0);
  EXPECT_TRUE(f.has_attribute("/g/x", "lr"));
  EXPECT_FALSE(f.has_attribute("/g/x", "name"));
  EXPECT_THAT(error_of([&] { (void)f.read_string("/g/x", "name"); }),
              AllOf(HasSubstr("attributes.h5: /g/x: no attribute name")));
  EXPECT_THAT(error_of([&] { (void)f.read_string("/g/x", "lr"); }), HasSubstr("attribute lr isn't a text"));
  EXPECT_THAT(error_of([&] { (void)f.read_int("/", "name"); }), HasSubstr("attribute name isn't an integer"));
  EXPECT_THAT(error_of([&] { (void)f.read_double("/", "name"); }), HasSubstr("attribute name isn't a number"));
  EXPECT_THAT(error_of([&] { (void)f.read_double("/nowhere", "name"); }), HasSubstr("/nowhere"));
}

TEST_F(Hdf5Test, HasAndList) {
  Hdf5File f = Hdf5File::create(file("list.h5"));
  const int32_t value = 1;
  for (const char* name : {"/g/b", "/g/a", "/g/c/d", "/top"})
    f.write(name, ElementType::i32, std::vector<int64_t>{1}, &value);
  EXPECT_TRUE(f.has("/"));
  EXPECT_TRUE(f.has("/g"));
  EXPECT_TRUE(f.has("/g/c/d"));
  EXPECT_FALSE(f.has("/g/z"));
  EXPECT_FALSE(f.has("/z/z/z"));
  EXPECT_EQ(f.list("/"), (std::vector<std::string>{"g", "top"}));
  EXPECT_EQ(f.list("/g"), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_THAT(error_of([&] { (void)f.list("/z"); }), AllOf(HasSubstr("list.h5"), HasSubstr("/z")));
  EXPECT_THAT(error_of([&] { (void)f.info("/z"); }), AllOf(HasSubstr("list.h5"), HasSubstr("/z")));
  EXPECT_THAT(error_of([&] { f.write("/top", ElementType::i32, std::vector<int64_t>{1}, &value); }),
              AllOf(HasSubstr("/top"), HasSubstr("exists")));
}

TEST_F(Hdf5Test, VirtualDatasetsOfMisalignedPieces) {
  std::mt19937 random(11);
  const std::vector<std::vector<int64_t>> shapes{{23}, {4, 6}, {5, 3}, {24, 1}, {1, 17}, {3, 4, 5}, {2, 3, 2, 4}};
  for (size_t s = 0; s < shapes.size(); ++s) {
    const int64_t count = std::accumulate(shapes[s].begin(), shapes[s].end(), int64_t{1}, std::multiplies<>());
    for (int trial = 0; trial < 5; ++trial) {
      std::vector<int64_t> cuts{0, count};
      for (int i = 0; i < trial; ++i) cuts.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(count + 1)));
      std::sort(cuts.begin(), cuts.end());
      std::vector<VirtualPiece> pieces;
      std::vector<float> whole(static_cast<size_t>(count));
      std::iota(whole.begin(), whole.end(), 0.5f);
      for (size_t p = 0; p + 1 < cuts.size(); ++p) {
        const std::string name = fmt::format("part-{}-{}-{}.h5", s, trial, p);
        const int64_t margin = static_cast<int64_t>(random() % 3);
        const int64_t size = margin + cuts[p + 1] - cuts[p] + 2;
        std::vector<float> part(static_cast<size_t>(size), -1.0f);
        std::copy(whole.begin() + cuts[p], whole.begin() + cuts[p + 1], part.begin() + margin);
        Hdf5File f = Hdf5File::create(file(name.c_str()));
        f.write("/flat/w", ElementType::f32, std::vector<int64_t>{size}, part.data());
        f.close();
        pieces.push_back({cuts[p], cuts[p + 1], name, "/flat/w", margin, size});
      }
      const fs::path path = file(fmt::format("virtual-{}-{}.h5", s, trial).c_str());
      Hdf5File out = Hdf5File::create(path);
      out.write_virtual("/model/w", ElementType::f32, shapes[s], pieces);
      out.close();
      const Hdf5File in = Hdf5File::open(path);
      EXPECT_EQ(in.info("/model/w").shape, shapes[s]);
      EXPECT_EQ(in.contiguous_offset("/model/w"), -1);
      std::vector<float> back(whole.size(), -2.0f);
      in.read("/model/w", ElementType::f32, 0, count, back.data());
      EXPECT_EQ(back, whole) << s << " " << trial;
      const int64_t begin = count / 3;
      std::fill(back.begin(), back.end(), -2.0f);
      in.read("/model/w", ElementType::f32, begin, count - begin, back.data());
      EXPECT_TRUE(std::equal(whole.begin() + begin, whole.end(), back.begin()));
    }
  }
}

TEST_F(Hdf5Test, AMissingPartOfAVirtualDatasetIsAnErrorAndNotZeros) {
  const std::vector<float> values(6, 1.0f);
  for (const char* name : {"p0.h5", "p1.h5"}) {
    Hdf5File f = Hdf5File::create(file(name));
    f.write("/flat", ElementType::f32, std::vector<int64_t>{6}, values.data());
    f.close();
  }
  Hdf5File out = Hdf5File::create(file("v.h5"));
  const std::vector<VirtualPiece> pieces{{0, 6, "p0.h5", "/flat", 0, 6}, {6, 12, "p1.h5", "/flat", 0, 6}};
  out.write_virtual("/w", ElementType::f32, std::vector<int64_t>{3, 4}, pieces);
  out.close();
  std::vector<float> back(12);
  Hdf5File::open(file("v.h5")).read("/w", ElementType::f32, 0, 12, back.data());
  EXPECT_EQ(back, std::vector<float>(12, 1.0f));
  fs::rename(file("p1.h5"), file("p1.gone"));
  EXPECT_THAT(error_of([&] { Hdf5File::open(file("v.h5")).read("/w", ElementType::f32, 0, 12, back.data()); }),
              AllOf(HasSubstr("p1.h5"), HasSubstr("/w"), HasSubstr("No such file")));
  fs::copy_file(file("p1.gone"), file("p1.h5"));
  fs::resize_file(file("p1.h5"), fs::file_size(file("p1.h5")) - 8);
  EXPECT_THAT(error_of([&] { Hdf5File::open(file("v.h5")).read("/w", ElementType::f32, 0, 12, back.data()); }),
              AllOf(HasSubstr("p1.h5"), HasSubstr("truncated")));
}

TEST_F(Hdf5Test, VirtualCoordinatesBeyond32Bits) {
  const std::vector<uint8_t> values{1, 2, 3, 4, 5, 6};
  Hdf5File part = Hdf5File::create(file("part.h5"));
  part.write("/flat", ElementType::u8, std::vector<int64_t>{6}, values.data());
  part.close();
  const int64_t far = (int64_t{1} << 32) + 1;
  const std::vector<VirtualPiece> pieces{{far, far + 6, "part.h5", "/flat", 0, 6}};
  Hdf5File f = Hdf5File::create(file("far.h5"));
  f.write_virtual("/w", ElementType::u8, std::vector<int64_t>{int64_t{1} << 31, 3}, pieces);
  f.close();
  std::vector<uint8_t> back(8, 9);
  Hdf5File::open(file("far.h5")).read("/w", ElementType::u8, far - 1, 8, back.data());
  EXPECT_EQ(back, (std::vector<uint8_t>{0, 1, 2, 3, 4, 5, 6, 0}));
}

TEST_F(Hdf5Test, MovedHandles) {
  Hdf5File a = Hdf5File::create(file("a.h5"));
  const int32_t value = 5;
  a.write("/x", ElementType::i32, std::vector<int64_t>{1}, &value);
  Hdf5File b = std::move(a);
  EXPECT_TRUE(b.has("/x"));
  EXPECT_EQ(b.path(), file("a.h5"));
  b = Hdf5File::create(file("b.h5"));
  EXPECT_FALSE(b.has("/x"));
  b.close();
  b.close();  // nothing left to do
  EXPECT_TRUE(Hdf5File::open(file("a.h5")).has("/x")) << "assigning over a handle closed its file";
}

TEST_F(Hdf5Test, WrongFilesAreNamedWithTheReason) {
  EXPECT_THAT(error_of([&] { (void)Hdf5File::open(file("missing.h5")); }),
              AllOf(HasSubstr("missing.h5"), HasSubstr("No such file or directory")));
  EXPECT_THAT(error_of([&] { (void)Hdf5File::open(folder_); }),
              AllOf(HasSubstr(folder_.string()), HasSubstr("folder")));
  EXPECT_THAT(error_of([&] { (void)Hdf5File::create(folder_ / "no" / "such.h5"); }),
              AllOf(HasSubstr("such.h5"), HasSubstr("No such file or directory")));
  std::ofstream(file("text.h5")) << "this is not HDF5, and it is longer than a signature";
  EXPECT_THAT(error_of([&] { (void)Hdf5File::open(file("text.h5")); }),
              AllOf(HasSubstr("text.h5"), HasSubstr("signature")));
  std::ofstream(file("nothing.h5")) << "";
  EXPECT_THAT(error_of([&] { (void)Hdf5File::open(file("nothing.h5")); }), HasSubstr("nothing.h5"));
  {
    Hdf5File f = Hdf5File::create(file("short.h5"));
    const std::vector<double> values(1000, 1.0);
    f.write("/x", ElementType::f64, std::vector<int64_t>{1000}, values.data());
    f.close();
  }
  fs::resize_file(file("short.h5"), fs::file_size(file("short.h5")) - 100);
  EXPECT_THAT(error_of([&] { (void)Hdf5File::open(file("short.h5")); }),
              AllOf(HasSubstr("short.h5"), HasSubstr("truncated")));
}

TEST_F(Hdf5Test, AFileOpenForWritingElsewhereIsRefused) {
  Hdf5File writer = Hdf5File::create(file("busy.h5"));
  writer.flush();
  const pid_t child = ::fork();
  if (child == 0) {  // another process: in this one the library shares the open file
    const int descriptor = ::open(file("busy.h5").c_str(), O_RDONLY);
    ::_exit(::flock(descriptor, LOCK_SH | LOCK_NB) == 0 ? 1 : 0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "the writer holds no lock";
}

// A file-size limit is the full disk that a test without privileges can have.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    previous_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &previous_);
    const rlimit limit{bytes, previous_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &previous_);
    std::signal(SIGXFSZ, previous_handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit previous_{};
  void (*previous_handler_)(int) = nullptr;
};

TEST_F(Hdf5Test, AFullDiskIsAnErrorAtTheWrite) {
  const FileSizeLimit limit(100'000);
  Hdf5File f = Hdf5File::create(file("full.h5"));
  const std::vector<double> values(50'000, 1.0);
  EXPECT_THAT(error_of([&] { f.write("/x", ElementType::f64, std::vector<int64_t>{50'000}, values.data()); }),
              AllOf(HasSubstr("full.h5"), HasSubstr("/x"), HasSubstr("File too large")));
  EXPECT_THAT(error_of([&] { f.close(); }), HasSubstr("full.h5"))
      << "close() must not report success for a damaged file";
}

TEST_F(Hdf5Test, AFullDiskIsAnErrorAtCloseWhenTheLibraryBuffered) {
  const FileSizeLimit limit(1'000);
  Hdf5File f = Hdf5File::create(file("full.h5"));
  for (int i = 0; i < 20; ++i) f.write_attribute("/", fmt::format("a{}", i), std::string(100, 'x'));
  EXPECT_THAT(error_of([&] { f.close(); }), AllOf(HasSubstr("full.h5"), HasSubstr("File too large")));
}

TEST_F(Hdf5Test, ADestructorOnAFullDiskDoesNotThrowAndTheLibraryGoesOn) {
  {
    const FileSizeLimit limit(100'000);
    Hdf5File f = Hdf5File::create(file("full.h5"));
    f.create_appendable("/x", ElementType::f64, 1000);
    const std::vector<double> values(1'000, 1.0);
    EXPECT_THAT(error_of([&] {
                  for (int i = 0; i < 100; ++i) f.append("/x", values.data(), 1'000);
                }),
                HasSubstr("File too large"));
  }
  round_trip<double>(file("after.h5"), ElementType::f64, extremes<double>());
}

TEST_F(Hdf5Test, ManyThreadsReadOneFile) {
  std::vector<int32_t> values(10'000);
  std::iota(values.begin(), values.end(), 0);
  Hdf5File out = Hdf5File::create(file("threads.h5"));
  out.write("/x", ElementType::i32, std::vector<int64_t>{10'000}, values.data());
  out.close();
  const Hdf5File in = Hdf5File::open(file("threads.h5"));
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::vector<int32_t> part(100);
      for (int i = 0; i < 50; ++i) {
        const int64_t begin = (t * 997 + i * 131) % 9'900;
        in.read("/x", ElementType::i32, begin, 100, part.data());
        if (part.front() != begin || part.back() != begin + 99) ++wrong;
        try {
          (void)Hdf5File::open(file("missing.h5"));
          ++wrong;
        } catch (const Error&) {
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace lamina::io
