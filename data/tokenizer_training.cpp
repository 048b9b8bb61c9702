#include "data/tokenizer_training.h"

#include <sentencepiece_trainer.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <unordered_map>
#include <utility>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/io/file.h"
#include "core/io/input_stream.h"
#include "data/progress.h"
#include "data/tokenizer.h"

namespace lamina {

namespace {

constexpr size_t max_line_bytes = 4096;  // the trainer drops lines longer than its limit
constexpr int64_t num_reserved_pieces = 256 + 3;

// A uniform sample of the lines in bounded memory (Vitter, algorithm R), the same for the same text.
class LineSample {
 public:
  explicit LineSample(int64_t limit) : limit_(limit), rng_(1, "tokenizer-training-lines") {}

  void text(std::string_view text) {
    num_bytes_ += static_cast<int64_t>(text.size());
    for (const char c : text) {
      if (c == '\n' || c == '\r' || c == '\t') {  // always single bytes: no piece may contain them
        close_line();
        continue;
      }
      open_.push_back(c);
      if (open_.size() < max_line_bytes) continue;
      // Between two words, or else between two characters.
      size_t cut = open_.rfind(' ');
      if (cut == std::string::npos || cut == 0)
        for (cut = open_.size() - 1; cut > 1 && (static_cast<unsigned char>(open_[cut]) & 0xC0) == 0x80;) --cut;
      std::string rest = open_.substr(cut);
      open_.resize(cut);
      close_line();
      open_ = std::move(rest);
    }
  }

  void close_line() {
    if (open_.empty()) return;
    const auto index = static_cast<uint64_t>(num_lines_++);
    if (limit_ == 0 || num_lines_ <= limit_) {
      lines_.push_back(std::exchange(open_, {}));
    } else if (const uint64_t slot = rng_.below(index, index + 1); slot < static_cast<uint64_t>(limit_)) {
      lines_[slot] = std::exchange(open_, {});
    }
    open_.clear();
  }

  bool empty() const { return lines_.empty(); }
  // The library can't make a piece of a character that occurs nowhere.
  const std::vector<std::string>& lines_with_space() {
    const auto has_space = [](const std::string& line) { return line.find(' ') != std::string::npos; };
    if (std::none_of(lines_.begin(), lines_.end(), has_space)) lines_.emplace_back(" ");
    return lines_;
  }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  int64_t limit_;
  CounterRng rng_;
  std::string open_;
  std::vector<std::string> lines_;
  int64_t num_lines_ = 0;
  int64_t num_bytes_ = 0;
};

class LineIterator final : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return next_ >= lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  size_t next_ = 0;
};

// The number behind `key` in the library's message, or 0.
int64_t number_after(const std::string& message, std::string_view key) {
  const size_t at = message.find(key);
  return at == std::string::npos ? 0 : std::atoll(message.c_str() + at + key.size());
}

[[noreturn]] void translate_failure(const std::string& message, int64_t vocab_size) {
  if (const int64_t most = number_after(message, "Please set it to a value <= "); most > 0)
    throw Error("the text is too small for a vocabulary of {}: it gives {} pieces; use --vocab-size {} or more text",
                vocab_size, most, most);
  if (const int64_t least = number_after(message, fmt::format("{} vs ", vocab_size)); least > 0)
    throw Error("a vocabulary of {} is too small for the characters of this text, expected at least {}", vocab_size,
                least);
  throw Error("SentencePiece can't train the tokenizer: {}", message);
}

void check_options(const TokenizerTrainingOptions& options) {
  if (options.model_type != "bpe" && options.model_type != "unigram")
    throw Error("unknown model type \"{}\", expected bpe or unigram", options.model_type);
  if (options.vocab_size <= num_reserved_pieces || options.vocab_size > 1'000'000)
    throw Error("found a vocabulary of {}, expected {} to 1000000 (256 pieces are bytes, 3 are control pieces)",
                options.vocab_size, num_reserved_pieces + 1);
  if (options.max_sentences < 0) throw Error("found {} sentences, expected 0 (all) or more", options.max_sentences);
  if (options.output.empty()) throw Error("no output file");
  if (std::filesystem::is_directory(options.output)) throw Error("{}: is a folder, expected a file", options.output);
  if (std::filesystem::exists(options.output) && !options.overwrite)
    throw Error("{}: already exists, expected a new name (or --overwrite)", options.output);
}

}  // namespace

TokenizerTrainingReport train_tokenizer(const TokenizerTrainingOptions& options) {
  check_options(options);
  const int64_t total_bytes = check_inputs(options.inputs, options.format);
  Progress progress("tokenizer", total_bytes, options.show_progress);
  LineSample sample(options.max_sentences);
  TextCounts counts;
  int64_t done_bytes = 0;
  int64_t file_bytes = 0;
  const DocumentSink sink{.text = [&](std::string_view text) { sample.text(text); },
                          .end_document = [&] { sample.close_line(); },
                          .progress =
                              [&](int64_t bytes) {
                                file_bytes = bytes;
                                progress.update(done_bytes + bytes);
                              }};
  for (const std::string& input : options.inputs) {
    counts += read_documents(input, options.format, sink);
    done_bytes += std::exchange(file_bytes, 0);
  }
  if (sample.empty()) throw Error("{}: found no text", io::describe_input(options.inputs.front()));

  LineIterator lines(sample.lines_with_space());
  std::string model;
  const std::unordered_map<std::string, std::string> arguments{
      {"model_type", options.model_type},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      // The space, however rare: otherwise it would be the three bytes of U+2581, and come back as that.
      {"required_chars", "\xe2\x96\x81"},
      {"max_sentence_length", std::to_string(max_line_bytes + 1)},
      {"train_extremely_large_corpus", sample.num_bytes() > (int64_t{1} << 30) ? "true" : "false"},
      {"num_threads", "16"},  // a constant: the sums of the unigram trainer depend on it
      {"minloglevel", "2"},
  };
  if (const auto status = sentencepiece::SentencePieceTrainer::Train(arguments, &lines, &model); !status.ok())
    translate_failure(status.ToString(), options.vocab_size);
  const std::unique_ptr<Tokenizer> tokenizer = make_stored_tokenizer("sentencepiece", model, options.output);
  LAMINA_CHECK(tokenizer->vocab_size() == options.vocab_size, "{} of {}", tokenizer->vocab_size(), options.vocab_size);
  io::write_file_atomically(options.output, std::string_view(model));
  return {tokenizer->vocab_size(), sample.num_bytes(), counts, progress.seconds()};
}

}  // namespace lamina
