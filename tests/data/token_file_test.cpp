#include "data/token_file.h"

#include <atomic>
#include <cstring>
#include <thread>

#include "core/io/file.h"
#include "core/io/hdf5.h"
#include "tests/data/support.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class TokenFileTest : public DataTest {
 protected:
  void SetUp() override {
    DataTest::SetUp();
    text_ = words(300'000, 8);
    prepare(options("out", {write("a.txt", text_)}));
    file_ = path("out/tokens.h5");
  }
  std::string open_error() {
    return error_of([&] { (void)TokenFile::open(path("out")); });
  }
  void patch(int64_t offset, char value) {
    std::fstream raw(file_, std::ios::in | std::ios::out | std::ios::binary);
    raw.seekp(offset);
    raw.put(value);
  }
  std::string text_, file_;
};

TEST_F(TokenFileTest, ReadsAnyWindowFromAnyThreadAndMoves) {
  TokenFile first = TokenFile::open(path("out"));
  TokenFile file = std::move(first);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 200; ++i) {
        std::vector<int32_t> tokens(1 + random() % (i < 5 ? 200'000 : 600), -1);
        const int64_t begin = random() % (file.num_tokens() - static_cast<int64_t>(tokens.size()));
        file.read(begin, tokens);
        for (size_t k = 0; k < tokens.size(); ++k)
          if (tokens[k] != static_cast<unsigned char>(text_[static_cast<size_t>(begin) + k])) ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  prepare(options("other", {write("b.txt", "other")}));
  file = TokenFile::open(path("other"));
  EXPECT_EQ(file.num_tokens(), 6);
  std::vector<int32_t> tokens(2);
  EXPECT_THROW(file.read(5, tokens), InternalError);
  EXPECT_THROW(file.read(-1, tokens), InternalError);
}

TEST_F(TokenFileTest, WrongFolders) {
  EXPECT_THAT(error_of([&] { (void)TokenFile::open(path("missing")); }),
              AllOf(HasSubstr("missing: no such folder"), HasSubstr("lamina prepare")));
  fs::create_directories(path("empty"));
  EXPECT_THAT(error_of([&] { (void)TokenFile::open(path("empty")); }), HasSubstr("empty/tokens.h5: not found"));
  write("empty/tokens.h5", "hello");
  EXPECT_THAT(error_of([&] { (void)TokenFile::open(path("empty")); }),
              HasSubstr("empty/tokens.h5: can't open as HDF5"));
  io::Hdf5File::create(path("empty/tokens.h5")).close();
  EXPECT_THAT(error_of([&] { (void)TokenFile::open(path("empty")); }), HasSubstr("not a token file"));
}

TEST_F(TokenFileTest, ATruncatedFileIsRefused) {
  fs::resize_file(file_, fs::file_size(file_) - 1000);
  EXPECT_THAT(open_error(), AllOf(HasSubstr("out/tokens.h5"), HasSubstr("truncated")));
}

TEST_F(TokenFileTest, AnotherFormatOrLengthIsRefused) {
  const auto change = [&](const char* attribute, int64_t value) {
    io::Hdf5File file = io::Hdf5File::open_for_append(file_);
    const int64_t previous = file.read_int("/", attribute);
    file.write_attribute("/", attribute, value);
    file.close();
    const std::string message = open_error();
    io::Hdf5File back = io::Hdf5File::open_for_append(file_);
    back.write_attribute("/", attribute, previous);
    back.close();
    return message;
  };
  EXPECT_THAT(change("format_version", 99), AllOf(HasSubstr("found format version 99"), HasSubstr("expected 1")));
  EXPECT_THAT(change("num_tokens", 123), AllOf(HasSubstr("/tokens: found 3000"), HasSubstr("expected 123")));
  EXPECT_THAT(change("num_tokens", 0), HasSubstr("found 0 tokens"));
  EXPECT_THAT(change("num_documents", 5), AllOf(HasSubstr("/document_starts: found 1"), HasSubstr("expected 5")));
  EXPECT_THAT(change("end_of_document", 300), HasSubstr("damaged"));
  EXPECT_NO_THROW((void)TokenFile::open(path("out")));
}

TEST_F(TokenFileTest, DamagedTokensAreFoundAndLocated) {
  const std::vector<int64_t> offsets = io::Hdf5File::open(file_).chunk_offsets("/tokens");
  ASSERT_GE(offsets.size(), 4u);
  // The first piece: found when the file is opened.
  const char good = text_[10] == 'x' ? 'y' : 'x';
  patch(offsets[0] + 20, good);
  EXPECT_THAT(open_error(), AllOf(HasSubstr("tokens [0, 65536)"), HasSubstr("checksum"), HasSubstr("damaged")));
  patch(offsets[0] + 20, text_[10]);
  // One in the middle: found by verify(), and before the piece is used.
  patch(offsets[2] + 2, text_[2 * 65536 + 1] == 'x' ? 'y' : 'x');
  const TokenFile file = TokenFile::open(path("out"));
  EXPECT_THAT(error_of([&] { file.verify(); }), AllOf(HasSubstr("tokens [131072, 196608)"), HasSubstr("damaged")));
  std::vector<int32_t> tokens(10);
  EXPECT_NO_THROW(file.read(100, tokens));
  EXPECT_THAT(error_of([&] { file.read(131072 + 9, tokens); }),
              AllOf(HasSubstr("tokens [131072, 196608)"), HasSubstr("damaged")));
  // Truncated while it is open.
  fs::resize_file(file_, static_cast<uintmax_t>(offsets[3]));
  EXPECT_THAT(error_of([&] { file.read(3 * 65536, tokens); }), AllOf(HasSubstr("truncated"), HasSubstr("196608")));
}

TEST_F(TokenFileTest, WritersPickTheSmallestType) {
  // 400 pieces need u16; the model is kept.
  PrepareOptions o = options("pieces", {write("b.txt", words(1000, 1))});
  o.tokenizer = "sentencepiece:" + train_model();
  prepare(o);
  const io::Hdf5File file = io::Hdf5File::open(path("pieces/tokens.h5"));
  EXPECT_EQ(file.info("/tokens").type, io::ElementType::u16);
  EXPECT_EQ(file.info("/tokenizer").num_elements(), static_cast<int64_t>(fs::file_size(path("test.model"))));
}

class FakeTokenizer final : public Tokenizer {
 public:
  explicit FakeTokenizer(int64_t vocab_size) : vocab_size_(vocab_size) {}
  void encode(std::string_view, std::vector<int32_t>&) const override {}
  int64_t vocab_size() const override { return vocab_size_; }
  int32_t end_of_document() const override { return 0; }
  std::string_view text_of(int32_t, int32_t) const override { return "x"; }
  const std::string& hash() const override { return name_; }
  const std::string& name() const override { return name_; }
  const std::string& model() const override { return model_; }
  size_t safe_cut(std::string_view text) const override { return text.size(); }

 private:
  int64_t vocab_size_;
  std::string name_ = "fake", model_;
};

TEST_F(TokenFileTest, AnIdThatNoTokenizerGivesIsFound) {
  fs::create_directories(path("wrong"));
  TokenFileWriter writer(path("wrong/tokens.h5"), FakeTokenizer(200));
  const std::vector<int32_t> stored{7, 250, 7};
  writer.append(stored);
  writer.end_document();
  writer.finish(3, "", "");
  const TokenFile file = TokenFile::open(path("wrong"));
  std::vector<int32_t> tokens(2);
  EXPECT_THAT(error_of([&] { file.read(1, tokens); }),
              HasSubstr("found token id 250 in tokens [1, 3), expected ids below 200"));
  EXPECT_NO_THROW(file.read(2, tokens));
}

TEST_F(TokenFileTest, EveryWidthComesBack) {
  for (const int64_t vocab_size : {200, 256, 257, 65536, 65537, 200'000}) {
    const std::string folder = path(fmt::format("v{}", vocab_size));
    fs::create_directories(folder);
    TokenFileWriter first(folder + "/tokens.h5", FakeTokenizer(vocab_size));
    TokenFileWriter writer = std::move(first);
    std::vector<int32_t> tokens(100'000);
    std::mt19937 random(1);
    for (int32_t& token : tokens) token = static_cast<int32_t>(1 + random() % static_cast<unsigned>(vocab_size - 1));
    tokens[5] = static_cast<int32_t>(vocab_size - 1);
    writer.append(tokens);
    writer.end_document();
    writer.end_document();  // an empty document is none
    EXPECT_EQ(writer.num_documents(), 1);
    writer.finish(1, "hash", "sources");
    tokens.push_back(0);
    const TokenFile file = TokenFile::open(folder);
    EXPECT_TRUE(all_tokens(file) == tokens);
    const int64_t width = vocab_size <= 256 ? 1 : vocab_size <= 65536 ? 2 : 4;
    EXPECT_EQ(io::size_of(io::Hdf5File::open(folder + "/tokens.h5").info("/tokens").type), width);
    EXPECT_THAT(error_of([&] { (void)file.make_tokenizer(); }), HasSubstr("unknown tokenizer \"fake\""));
  }
}

}  // namespace
}  // namespace lamina
