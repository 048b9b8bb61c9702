#include "data/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/signals.h"
#include "core/base/stop.h"
#include "core/io/file.h"
#include "core/io/input_stream.h"
#include "data/progress.h"
#include "data/token_file.h"
#include "data/token_input.h"
#include "data/tokenizer.h"

namespace lamina {

namespace fs = std::filesystem;

namespace {

constexpr size_t piece_bytes = size_t{1} << 20;
constexpr size_t batch_bytes = size_t{8} << 20;

// While this lives, an interrupt only sets a flag, so that the work can stop where cleaning up is possible.
class InterruptFlag {
 public:
  InterruptFlag() {
    interrupted_ = 0;
    struct sigaction action {};
    action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second one ends the program at once
    action.sa_handler = [](int signal) { interrupted_ = signal; };
    for (size_t i = 0; i < signals_.size(); ++i) {
      const bool stays_ignored = (signals_[i] == SIGINT || signals_[i] == SIGHUP) && signals::is_ignored(signals_[i]);
      ::sigaction(signals_[i], stays_ignored ? nullptr : &action, &previous_[i]);
    }
  }
  ~InterruptFlag() {
    for (size_t i = 0; i < signals_.size(); ++i) ::sigaction(signals_[i], &previous_[i], nullptr);
  }
  InterruptFlag(const InterruptFlag&) = delete;
  InterruptFlag& operator=(const InterruptFlag&) = delete;

  void check() const {
    // The scheduler's signals mean "later", the others "no".
    const int signal = interrupted_;
    if (signal == SIGTERM) throw Stopped("SIGTERM; nothing was written");
    if (signal == SIGUSR1) throw Stopped("SIGUSR1; nothing was written");
    if (signal != 0) throw Error("interrupted; nothing was written");
  }

 private:
  static constexpr std::array<int, 4> signals_{SIGINT, SIGHUP, SIGTERM, SIGUSR1};
  static inline std::atomic<int> interrupted_ = 0;  // set on the thread that handles signals
  static_assert(std::atomic<int>::is_always_lock_free);
  std::array<struct sigaction, 4> previous_{};
};

// The folder being written; removed with the parents it created unless it was put in place.
class OutputFolder {
 public:
  OutputFolder(const fs::path& output, bool overwrite) {
    output_ = fs::absolute(output).lexically_normal();
    if (!output_.has_filename()) output_ = output_.parent_path();  // a slash at the end
    if (fs::exists(fs::symlink_status(output_))) {
      if (!overwrite) throw Error("{}: already exists, expected a new name (or --overwrite)", output_.string());
      // Only what this program wrote may be deleted.
      if (!fs::exists(output_ / "tokens.h5"))
        throw Error("{}: exists and isn't a token folder, so it is not overwritten", output_.string());
    }
    temporary_ = output_;
    temporary_ += fmt::format(".tmp-{}", ::getpid());
    for (fs::path parent = output_.parent_path(); !parent.empty() && !fs::exists(parent); parent = parent.parent_path())
      new_parents_.push_back(parent);
    std::error_code error;
    fs::remove_all(temporary_, error);  // of a killed process with the same number
    fs::create_directories(temporary_, error);
    if (error) {
      remove();
      throw Error("{}: can't create the folder: {}", temporary_.string(), io::describe_errno(error.value()));
    }
  }
  ~OutputFolder() {
    if (!in_place_) remove();
  }
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const fs::path& temporary() const { return temporary_; }

  void put_in_place() {
    io::fsync_tree(temporary_);
    if (!fs::exists(output_)) {
      io::rename_durably(temporary_, output_);
      in_place_ = true;
      return;
    }
    fs::path replaced = output_;
    replaced += fmt::format(".replaced-{}", ::getpid());
    io::rename_durably(output_, replaced);
    try {
      io::rename_durably(temporary_, output_);
    } catch (...) {
      io::rename_durably(replaced, output_);
      throw;
    }
    in_place_ = true;
    std::error_code ignored;  // the new folder stands; what stays of the old one only takes space
    fs::remove_all(replaced, ignored);
  }

 private:
  void remove() {
    std::error_code ignored;
    fs::remove_all(temporary_, ignored);
    for (const fs::path& parent : new_parents_) fs::remove(parent, ignored);  // only when empty
  }

  fs::path output_, temporary_;
  std::vector<fs::path> new_parents_;
  bool in_place_ = false;
};

// Collects text in pieces that can be tokenized on their own, a batch of them in parallel, and writes the tokens in order.
class BatchEncoder {
 public:
  BatchEncoder(const Tokenizer& tokenizer, TokenFileWriter& writer, int num_threads)
      : tokenizer_(tokenizer), writer_(writer), num_threads_(num_threads) {}

  void text(std::string_view text) {
    hash_.update(text.data(), text.size());
    num_bytes_ += static_cast<int64_t>(text.size());
    while (!text.empty()) {
      const size_t count = std::min(text.size(), piece_bytes - open_.size());
      open_.append(text.substr(0, count));
      text.remove_prefix(count);
      if (open_.size() == piece_bytes) {
        const size_t cut = tokenizer_.safe_cut(open_);
        std::string rest = open_.substr(cut);
        open_.resize(cut);
        close_piece(false);
        open_ = std::move(rest);
      }
    }
  }

  void end_document() {
    const char mark = '\xff';  // never part of UTF-8: the hash tells where documents end
    hash_.update(&mark, 1);
    close_piece(true);
  }

  void flush() {
    std::atomic<size_t> next = 0;
    std::vector<std::exception_ptr> failures(pieces_.size());
    const auto work = [&] {
      for (size_t i; (i = next.fetch_add(1)) < pieces_.size();) {
        try {
          encode(pieces_[i]);
        } catch (...) {
          failures[i] = std::current_exception();
        }
      }
    };
    std::vector<std::thread> threads;
    for (int t = 1; t < std::min(num_threads_, static_cast<int>(pieces_.size())); ++t) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < pieces_.size(); ++i) {
      if (failures[i]) std::rethrow_exception(failures[i]);
      writer_.append(pieces_[i].tokens);
      is_changed_ = is_changed_ || pieces_[i].is_changed;
      if (!pieces_[i].ends_document) continue;
      writer_.end_document();
      num_changed_documents_ += std::exchange(is_changed_, false);
    }
    pieces_.clear();
    batch_bytes_ = 0;
  }

  int64_t num_bytes() const { return num_bytes_; }
  int64_t num_changed_documents() const { return num_changed_documents_; }
  std::string text_hash() const { return hash_to_hex(hash_.digest()); }

 private:
  struct Piece {
    std::string text;
    bool begins_document, ends_document;
    bool is_changed = false;  // its tokens stand for another text
    std::vector<int32_t> tokens = {};
  };

  void encode(Piece& piece) const {
    int32_t previous = -1;
    if (piece.begins_document) {
      tokenizer_.encode(piece.text, piece.tokens);
      previous = tokenizer_.end_of_document();
    } else {
      tokenizer_.encode_more(piece.text, piece.tokens);
    }
    size_t at = 0;
    for (const int32_t token : piece.tokens) {
      const std::string_view text = tokenizer_.text_of(token, std::exchange(previous, token));
      piece.is_changed = piece.is_changed || piece.text.compare(at, text.size(), text) != 0;
      at = std::min(at + text.size(), piece.text.size());
    }
    piece.is_changed = piece.is_changed || at < piece.text.size();
  }

  void close_piece(bool ends_document) {
    batch_bytes_ += open_.size() + sizeof(Piece);
    pieces_.push_back({std::exchange(open_, {}), begins_document_, ends_document});
    begins_document_ = ends_document;
    if (batch_bytes_ >= batch_bytes) flush();
  }

  const Tokenizer& tokenizer_;
  TokenFileWriter& writer_;
  int num_threads_;
  std::string open_;
  bool begins_document_ = true;
  bool is_changed_ = false;  // of the document whose pieces are being written
  int64_t num_changed_documents_ = 0;
  std::vector<Piece> pieces_;
  size_t batch_bytes_ = 0;
  int64_t num_bytes_ = 0;
  StreamingHash hash_;
};

// Checks the tokens of other programs' files and describes them: every id is the tokenizer's, and every document ends as its own do. The
// hash is that of the text that they stand for.
class InPlaceDescriber {
 public:
  using Progress = std::function<void(int64_t)>;  // bytes done

  InPlaceDescriber(const Tokenizer& tokenizer, TokenFileWriter& writer, Progress progress)
      : tokenizer_(tokenizer),
        writer_(writer),
        progress_(std::move(progress)),
        previous_(tokenizer.end_of_document()) {}

  // The tokens that come next.
  void add(const TokenInput& input) {
    std::ifstream in(input.file, std::ios::binary);
    in.seekg(input.offset);
    std::vector<char> stored(static_cast<size_t>(tokens_per_piece * input.token_bytes));
    auto next_end = input.document_ends.begin();
    for (int64_t index = 0; index < input.num_tokens; ++index) {
      const int64_t at = index % tokens_per_piece;
      if (at == 0) {
        progress_(bytes_done_ + index * input.token_bytes);
        const int64_t count = std::min(tokens_per_piece, input.num_tokens - index);
        if (!in.read(stored.data(), count * input.token_bytes))
          throw Error("{}: can't read token {}", input.file.string(), index);
      }
      uint32_t id = 0;
      std::memcpy(&id, stored.data() + at * input.token_bytes, static_cast<size_t>(input.token_bytes));
      const bool should_end = next_end != input.document_ends.end() && *next_end == index + 1;
      if (should_end) ++next_end;
      check(input, index, id, should_end);
      take(static_cast<int32_t>(id));
    }
    bytes_done_ += input.num_tokens * input.token_bytes;
  }

  void finish() {
    writer_.append(std::exchange(document_, {}));
    hash_text();
  }

  int64_t num_bytes() const { return num_bytes_; }
  std::string text_hash() const { return hash_to_hex(hash_.digest()); }

 private:
  void check(const TokenInput& input, int64_t index, uint32_t id, bool should_end) const {
    const std::string name = input.file.string();
    if (id >= static_cast<uint64_t>(tokenizer_.vocab_size()))
      throw Error("{}: found token id {} at index {}, expected ids below the tokenizer's {}", name, id, index,
                  tokenizer_.vocab_size());
    const int32_t end_of_document = tokenizer_.end_of_document();
    if (!input.document_ends.empty() && (static_cast<int32_t>(id) == end_of_document) != should_end)
      throw Error(
          "{}: found {} at index {}, where the index file has {}; expected {} at the end of each document and nowhere "
          "else",
          name, id, index, should_end ? "the end of a document" : "no end", end_of_document);
  }

  void take(int32_t token) {
    const bool ends_document = token == tokenizer_.end_of_document();
    text_ += tokenizer_.text_of(token, std::exchange(previous_, token));
    if (!ends_document) document_.push_back(token);
    if (ends_document || document_.size() == static_cast<size_t>(tokens_per_piece)) {
      writer_.append(document_);
      document_.clear();
      hash_text();
    }
    if (!ends_document) return;
    writer_.end_document();
    const char mark = '\xff';
    hash_.update(&mark, 1);
  }

  void hash_text() {
    hash_.update(text_.data(), text_.size());
    num_bytes_ += static_cast<int64_t>(text_.size());
    text_.clear();
  }

  const Tokenizer& tokenizer_;
  TokenFileWriter& writer_;
  Progress progress_;
  int32_t previous_;
  std::vector<int32_t> document_;
  std::string text_;
  StreamingHash hash_;
  int64_t num_bytes_ = 0;
  int64_t bytes_done_ = 0;
};

std::string join_names(const std::vector<std::string>& inputs) {
  std::string names;
  for (const std::string& input : inputs) {
    if (!names.empty()) names += '\n';
    names += fs::path(input).filename().string();
  }
  return names;
}

// Beside the tokens, whose bytes say nothing of when and where they were made.
void write_origin(const PrepareOptions& options, const OutputFolder& output) {
  if (!options.origin.empty()) io::write_file_atomically(output.temporary() / "origin.json", options.origin);
}

PrepareReport prepare_in_place(const PrepareOptions& options, const Tokenizer& tokenizer) {
  const TokenInputs inputs = open_token_inputs(options.inputs, options.token_type);
  int64_t total_tokens = 0;
  std::vector<std::string> names;
  for (const TokenInput& input : inputs.files) {
    total_tokens += input.num_tokens;
    names.push_back(input.file.string());
  }
  const InterruptFlag interrupt;
  OutputFolder output(options.output, options.overwrite);
  Progress progress("prepare", total_tokens * inputs.files.front().token_bytes, options.show_progress);
  TokenFileWriter writer(output.temporary() / "tokens.h5", tokenizer, inputs.files);
  InPlaceDescriber describer(tokenizer, writer, [&](int64_t bytes) {
    interrupt.check();
    progress.update(bytes);
  });
  for (const TokenInput& input : inputs.files) describer.add(input);
  describer.finish();
  PrepareReport report;
  report.num_tokens = writer.num_tokens();
  report.num_documents = writer.num_documents();
  report.num_bytes = describer.num_bytes();
  report.vocab_size = tokenizer.vocab_size();
  if (report.num_documents == 0)
    throw Error("{}: found no end of a document among {} tokens, expected the tokenizer's {}", names.front(),
                total_tokens, tokenizer.end_of_document());
  writer.finish(report.num_bytes, describer.text_hash(), join_names(names));
  write_origin(options, output);
  interrupt.check();
  output.put_in_place();
  report.files_in_place = std::move(names);
  report.passed_over = inputs.passed_over;
  report.seconds = progress.seconds();
  return report;
}

}  // namespace

PrepareReport prepare(const PrepareOptions& options) {
  if (options.output.empty()) throw Error("no output folder");
  const std::unique_ptr<Tokenizer> tokenizer = make_tokenizer(options.tokenizer, options.tokenizer_options);
  if (options.in_place) return prepare_in_place(options, *tokenizer);
  const int64_t total_bytes = check_inputs(options.inputs, options.format);
  const InterruptFlag interrupt;
  OutputFolder output(options.output, options.overwrite);
  PrepareReport report;
  {
    Progress progress("prepare", total_bytes, options.show_progress);
    TokenFileWriter writer(output.temporary() / "tokens.h5", *tokenizer);
    const int num_threads =
        options.num_threads > 0 ? options.num_threads : static_cast<int>(std::thread::hardware_concurrency());
    BatchEncoder encoder(*tokenizer, writer, tokenizer->name() == "bytes" ? 1 : num_threads);
    int64_t done_bytes = 0;
    int64_t file_bytes = 0;
    const DocumentSink sink{.text = [&](std::string_view text) { encoder.text(text); },
                            .end_document = [&] { encoder.end_document(); },
                            .progress =
                                [&](int64_t bytes) {
                                  interrupt.check();
                                  file_bytes = bytes;
                                  progress.update(done_bytes + bytes);
                                }};
    for (const std::string& input : options.inputs) {
      report.text += read_documents(input, options.format, sink);
      done_bytes += std::exchange(file_bytes, 0);
    }
    encoder.flush();
    if (writer.num_tokens() == 0)
      throw Error("{}{}: found no text{}", io::describe_input(options.inputs.front()),
                  options.inputs.size() > 1 ? fmt::format(" and {} more", options.inputs.size() - 1) : "",
                  report.text.num_skipped > 0 ? fmt::format("; {} bad records were skipped, the first: {}",
                                                            report.text.num_skipped, report.text.first_skipped)
                                              : "");
    report.num_tokens = writer.num_tokens();
    report.num_documents = writer.num_documents();
    report.num_bytes = encoder.num_bytes();
    report.num_changed_documents = encoder.num_changed_documents();
    report.vocab_size = tokenizer->vocab_size();
    writer.finish(encoder.num_bytes(), encoder.text_hash(), join_names(options.inputs));
    write_origin(options, output);
    interrupt.check();
    output.put_in_place();
    report.seconds = progress.seconds();
  }
  return report;
}

}  // namespace lamina
