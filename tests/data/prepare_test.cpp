#include "data/prepare.h"

#include <malloc.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <zlib.h>

#include <atomic>
#include <csignal>
#include <new>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/base/stop.h"
#include "core/io/file.h"
#include "core/io/hdf5.h"
#include "data/progress.h"
#include "tests/data/support.h"
#include "tests/support/compressed.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they bring an operator new of their own
// The heap that C++ objects hold now, and the most they held: unlike the resident set, the same on every machine.
static std::atomic<int64_t> heap_live{0}, heap_peak{0};

void* operator new(size_t size) {
  void* p = std::malloc(size == 0 ? 1 : size);
  if (p == nullptr) throw std::bad_alloc();
  const auto bytes = static_cast<int64_t>(::malloc_usable_size(p));
  const int64_t live = heap_live.fetch_add(bytes) + bytes;
  for (int64_t peak = heap_peak; live > peak && !heap_peak.compare_exchange_weak(peak, live);) {
  }
  return p;
}
void operator delete(void* p) noexcept {
  heap_live -= static_cast<int64_t>(::malloc_usable_size(p));
  std::free(p);
}
void operator delete(void* p, size_t) noexcept {
  operator delete(p);
}
#endif

namespace lamina {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class PrepareTest : public DataTest {
 protected:
  std::string write_gz(const std::string& name, const std::string& text) const { return write(name, gzip(text)); }
  std::string write_zst(const std::string& name, const std::string& text) const { return write(name, zstd(text)); }
  static std::string to_jsonl(const std::vector<std::string>& documents, const std::string& key = "text") {
    std::string lines;
    for (const std::string& document : documents) lines += nlohmann::json{{"id", 1}, {key, document}}.dump() + "\n";
    return lines;
  }
  // Fails with a message, and leaves the folder as it was.
  std::string failure(const PrepareOptions& o) const {
    const size_t before = num_entries();
    const std::string message = error_of([&] { prepare(o); });
    EXPECT_EQ(num_entries(), before) << "something stayed behind after: " << message;
    return message;
  }
};

TEST_F(PrepareTest, BytesOfOneFileAndTheDescription) {
  const std::string text = words(200'000, 1);  // several chunks, the last one short
  const PrepareReport report = prepare(options("out", {write("a.txt", text)}));
  EXPECT_EQ(report.num_tokens, static_cast<int64_t>(text.size()) + 1);
  EXPECT_EQ(report.num_documents, 1);
  EXPECT_EQ(report.num_bytes, static_cast<int64_t>(text.size()));
  EXPECT_EQ(report.vocab_size, 257);
  const TokenFile file = TokenFile::open(path("out"));
  EXPECT_EQ(file.num_tokens(), report.num_tokens);
  EXPECT_EQ(file.info().num_documents, 1);
  EXPECT_EQ(file.info().num_bytes, report.num_bytes);
  EXPECT_EQ(file.info().sources, "a.txt");
  EXPECT_EQ(file.info().end_of_document, 256);
  EXPECT_EQ(file.tokenizer_hash(), make_tokenizer("bytes")->hash());
  const std::vector<int32_t> tokens = all_tokens(file);
  EXPECT_EQ(tokens.back(), 256);
  EXPECT_EQ(file.make_tokenizer()->decode(tokens), text);
  file.verify();
  EXPECT_EQ(io::Hdf5File::open(path("out/tokens.h5")).info("/tokens").type, io::ElementType::u16);
  EXPECT_EQ(num_entries(), 2u);
}

TEST_F(PrepareTest, CompressedAndJsonInputsGiveTheSameTokens) {
  const std::vector<std::string> documents{words(150'000, 2), words(10, 3), words(70'000, 4)};
  std::vector<std::string> plain, gz, zst;
  for (size_t i = 0; i < documents.size(); ++i) {
    plain.push_back(write(fmt::format("{}.txt", i), documents[i]));
    gz.push_back(write_gz(fmt::format("{}.txt.gz", i), documents[i]));
    zst.push_back(write_zst(fmt::format("{}.txt.zst", i), documents[i]));
  }
  const std::string model = "sentencepiece:" + train_model();
  for (const std::string& tokenizer : {std::string("bytes"), model}) {
    const auto result = [&](const std::vector<std::string>& inputs, int num_threads = 2) {
      PrepareOptions o = options("out", inputs);
      o.tokenizer = tokenizer;
      o.overwrite = true;
      o.num_threads = num_threads;
      EXPECT_EQ(prepare(o).num_documents, 3);
      const TokenFile file = TokenFile::open(path("out"));
      file.verify();
      EXPECT_EQ(file.make_tokenizer()->decode(all_tokens(file)), documents[0] + documents[1] + documents[2]);
      return std::pair(file.info().tokens_hash, file.info().text_hash);
    };
    const auto expected = result(plain);
    EXPECT_EQ(result(gz), expected);
    EXPECT_EQ(result(zst), expected);
    EXPECT_EQ(result({write("all.jsonl", to_jsonl(documents))}), expected);
    EXPECT_EQ(result({write_gz("all.jsonl.gz", to_jsonl(documents))}), expected);
    EXPECT_EQ(result({write_zst("all.jsonl.zst", to_jsonl(documents))}, 1), expected);
  }
}

TEST_F(PrepareTest, TheSameTextIsTheSameFile) {
  const std::string model = "sentencepiece:" + train_model();
  const std::vector<std::string> inputs{write("a.txt", words(300'000, 2)), write("b.txt", words(70'000, 4))};
  for (const std::string& tokenizer : {std::string("bytes"), model}) {
    const auto bytes = [&](int num_threads) {
      PrepareOptions o = options("out", inputs);
      o.tokenizer = tokenizer;
      o.overwrite = true;
      o.num_threads = num_threads;
      prepare(o);
      return io::read_file(path("out/tokens.h5"));
    };
    const std::string first = bytes(1);
    if (tokenizer == "bytes") std::this_thread::sleep_for(std::chrono::milliseconds(1100));
    EXPECT_TRUE(bytes(3) == first);
  }
}

TEST_F(PrepareTest, DocumentsAndTheirStarts) {
  PrepareOptions o = options("out", {write("a.txt", "one\n\ntwo\n\n\n\nthree\n\n"), write("b.txt", "four")});
  o.format.document_separator = "\n\n";
  EXPECT_EQ(prepare(o).num_documents, 4);
  const TokenFile file = TokenFile::open(path("out"));
  std::string text;
  for (const int32_t token : all_tokens(file)) text += token == 256 ? '|' : static_cast<char>(token);
  EXPECT_EQ(text, "one|two|three|four|");
  EXPECT_EQ(file.info().num_bytes, 15);
  std::vector<uint64_t> starts(4);
  io::Hdf5File::open(path("out/tokens.h5")).read("/document_starts", io::ElementType::u64, 0, 4, starts.data());
  EXPECT_EQ(starts, (std::vector<uint64_t>{0, 4, 8, 14}));
}

TEST_F(PrepareTest, ASeparatorAcrossBlocksIsFound) {
  // Blocks are 1 MiB: "<doc>" straddles the first boundary at every offset.
  for (size_t before : {size_t{0}, size_t{1}, size_t{4}, size_t{5}}) {
    const std::string first((size_t{1} << 20) - before, 'a');
    PrepareOptions o = options("out", {write("a.txt", first + "<doc>" + "b<do")});
    o.format.document_separator = "<doc>";
    o.overwrite = true;
    const PrepareReport report = prepare(o);
    EXPECT_EQ(report.num_documents, 2);
    EXPECT_EQ(report.num_tokens, static_cast<int64_t>(first.size()) + 1 + 5);
  }
}

TEST_F(PrepareTest, AHugeDocumentIsCutWithoutChangingItsTokens) {
  const std::string text = words(2'500'000, 6);
  PrepareOptions o = options("out", {write("a.txt", text)});
  o.tokenizer = "sentencepiece:" + train_model();
  EXPECT_EQ(prepare(o).num_documents, 1);
  std::vector<int32_t> whole;
  const auto tokenizer = make_tokenizer(o.tokenizer);
  tokenizer->encode(text, whole);
  whole.push_back(tokenizer->end_of_document());
  const TokenFile file = TokenFile::open(path("out"));
  EXPECT_TRUE(all_tokens(file) == whole);
  EXPECT_EQ(file.make_tokenizer()->hash(), tokenizer->hash()) << "the model is kept in the folder";
}

TEST_F(PrepareTest, ALineWithoutAnyBreakKeepsItsCharacters) {
  std::string text;
  while (text.size() < 2'200'000) text += "é你\U0001F600x";
  PrepareOptions o = options("out", {write("a.txt", text)});
  o.tokenizer = "sentencepiece:" + train_model();
  prepare(o);
  const TokenFile file = TokenFile::open(path("out"));
  EXPECT_TRUE(file.make_tokenizer()->decode(all_tokens(file)) == text);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(PrepareTest, MemoryDoesNotGrowWithTheInput) {
  const std::string block = words(1'000'000, 7);
  const auto peak_of = [&](int num_blocks) {
    const std::string name = path(std::to_string(num_blocks) + ".txt.gz");
    gzFile out = ::gzopen(name.c_str(), "wb1");
    for (int i = 0; i < num_blocks; ++i) ::gzwrite(out, block.data(), static_cast<unsigned>(block.size()));
    ::gzclose(out);
    const int64_t before = heap_live;
    heap_peak.store(before);
    prepare(options("out" + std::to_string(num_blocks), {name}));
    return (heap_peak - before) >> 20;
  };
  const int64_t small = peak_of(20), large = peak_of(60);
  EXPECT_GE(small, 8) << "a batch is 8 MiB of text: the count must see it";
  EXPECT_LE(large, small + 20) << "MiB at 20 MB and at 60 MB of text: its text alone would add 40, its ids 160";
}
#endif

TEST_F(PrepareTest, WrongInputsAreNamedAndNothingStays) {
  const std::string good = write("good.txt", "some text");
  EXPECT_THAT(failure(options("out", {})), HasSubstr("no input"));
  PrepareOptions nowhere = options("out", {good});
  nowhere.output.clear();
  EXPECT_THAT(failure(nowhere), HasSubstr("no output folder"));
  EXPECT_THAT(failure(options("out", {good, path("missing.txt")})), HasSubstr("missing.txt: no such file"));
  EXPECT_THAT(failure(options("out", {folder_.string()})), HasSubstr("found a folder"));
  EXPECT_THAT(failure(options("out", {write("empty.txt", "")})), HasSubstr("empty.txt: found no text"));
  EXPECT_THAT(failure(options("out", {write("empty.jsonl", "\n  \n"), write("e2.jsonl", "{\"text\": \"\"}")})),
              HasSubstr("empty.jsonl and 1 more: found no text"));
  EXPECT_THAT(failure(options("out", {write("bad.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\n")})),
              AllOf(HasSubstr("bad.jsonl:3: not valid JSON")));
  EXPECT_THAT(failure(options("out", {write("latin.jsonl", "{\"text\": \"\xe9\"}\n")})),
              AllOf(HasSubstr("latin.jsonl:1: found byte 0xE9 at offset 10"), HasSubstr("UTF-8")));
  EXPECT_THAT(failure(options("out", {write("key.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n")})),
              AllOf(HasSubstr("key.jsonl:2: no key \"text\""), HasSubstr("\"body\"")));
  EXPECT_THAT(failure(options("out", {write("type.jsonl", "{\"text\": 3}\n")})),
              AllOf(HasSubstr("type.jsonl:1: found number under \"text\""), HasSubstr("expected a string")));
  EXPECT_THAT(failure(options("out", {write("list.jsonl", "[1]\n")})),
              AllOf(HasSubstr("list.jsonl:1: found array"), HasSubstr("expected an object")));
  const std::string gz = io::read_file(write_gz("x.txt.gz", words(100'000, 1)));
  EXPECT_THAT(failure(options("out", {good, write("cut.txt.gz", gz.substr(0, gz.size() / 2))})),
              AllOf(HasSubstr("cut.txt.gz"), HasSubstr("truncated")));
  const std::string zst = io::read_file(write_zst("x.txt.zst", words(100'000, 1)));
  EXPECT_THAT(failure(options("out", {write("cut.txt.zst", zst.substr(0, zst.size() / 2))})),
              AllOf(HasSubstr("cut.txt.zst"), HasSubstr("truncated")));
  PrepareOptions unknown = options("out", {good});
  unknown.tokenizer = "other";
  EXPECT_THAT(failure(unknown), HasSubstr("other"));
  EXPECT_THAT(failure(options("good.txt/out", {good})), HasSubstr("good.txt/out"));
  // Parents that were created for the output go away with it.
  EXPECT_THAT(failure(options("new/deep/out", {write("empty.txt", "")})), HasSubstr("no text"));
}

TEST_F(PrepareTest, AnExistingOutputIsReplacedOnlyOnRequestAndOnlyATokenFolder) {
  const std::string text = write("a.txt", "first");
  prepare(options("new/deep/out", {text}));
  PrepareOptions again = options("new/deep/out/", {write("b.txt", "second")});
  EXPECT_THAT(failure(again), AllOf(HasSubstr("already exists"), HasSubstr("--overwrite")));
  again.overwrite = true;
  PrepareOptions broken = again;
  broken.inputs = {write("empty.txt", "")};
  EXPECT_THAT(failure(broken), HasSubstr("no text"));
  EXPECT_EQ(TokenFile::open(path("new/deep/out")).info().sources, "a.txt")
      << "the old one stands until the new is whole";
  prepare(again);
  EXPECT_EQ(TokenFile::open(path("new/deep/out")).info().sources, "b.txt");
  EXPECT_EQ(std::distance(fs::directory_iterator(path("new/deep")), fs::directory_iterator()), 1);
  fs::create_directories(path("precious"));
  PrepareOptions wrong = options("precious", {text});
  wrong.overwrite = true;
  EXPECT_THAT(failure(wrong), AllOf(HasSubstr("precious"), HasSubstr("isn't a token folder")));
  EXPECT_TRUE(fs::exists(path("precious")));
}

TEST_F(PrepareTest, AFullDiskLeavesNothing) {
  const std::string text = write("a.txt", words(1'000'000, 1));
  auto* const previous_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit previous{};
  ::getrlimit(RLIMIT_FSIZE, &previous);
  const rlimit limit{600'000, previous.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const std::string message = failure(options("out", {text}));
  ::setrlimit(RLIMIT_FSIZE, &previous);
  std::signal(SIGXFSZ, previous_handler);
  EXPECT_THAT(message, AllOf(HasSubstr("tokens.h5"), HasSubstr("File too large")));
}

// How the preparation ends that a signal finds at work: 7, an Error that says "interrupted"; 75, Stopped.
int ending_by(int signal, const PrepareOptions& options, const std::string& pipe_path, const std::string& text) {
  const pid_t child = ::fork();
  if (child == 0) {
    // Under nohup, or in a script's background, it is ignored, and prepare() respects that.
    std::signal(signal, SIG_DFL);
    try {
      prepare(options);
    } catch (const Error& error) {
      ::_exit(std::string(error.what()).find("interrupted") != std::string::npos ? 7 : 8);
    } catch (const Stopped&) {
      ::_exit(exit_resume);
    }
    ::_exit(9);
  }
  {
    std::ofstream pipe(pipe_path);
    pipe << text << std::flush;  // more than a pipe holds: the child is at work
    EXPECT_EQ(::kill(child, signal), 0);
    pipe << text << std::flush;
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(PrepareTest, ASignalCleansUp) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  auto* const previous_handler = std::signal(SIGPIPE, SIG_IGN);  // the reader goes away
  for (const auto& [signal, ending] :
       {std::pair{SIGINT, 7}, {SIGHUP, 7}, {SIGTERM, exit_resume}, {SIGUSR1, exit_resume}}) {
    EXPECT_EQ(ending_by(signal, options("out", {path("pipe")}), path("pipe"), words(3'000'000, 1)), ending) << signal;
    EXPECT_EQ(num_entries(), 1u);  // the pipe
  }
  std::signal(SIGPIPE, previous_handler);
}

TEST_F(PrepareTest, ProgressTellsWhatIsLeft) {
  EXPECT_EQ(Progress::describe(10'000'000, 40'000'000, 2.0), "10.0 of 40.0 MB, 5.0 MB/s, 6 s left");
  EXPECT_EQ(Progress::describe(10'000'000, 0, 2.0), "10.0 MB, 5.0 MB/s");
  EXPECT_EQ(Progress::describe(0, 1'000'000, 0.0), "0.0 of 1.0 MB, 0.0 MB/s");
}

}  // namespace
}  // namespace lamina
