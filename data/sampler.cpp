#include "data/sampler.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <sstream>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "data/permutation.h"

namespace lamina {

namespace {

std::vector<double> weights_of(const DataConfig& config) {
  std::vector<double> weights;
  for (const SourceConfig& source : config.train) weights.push_back(source.weight);
  return weights;
}

int64_t count_windows(const TokenFile& file, int64_t seq_len) {
  return (file.num_tokens() - 1) / seq_len;
}

// The same folder under any name, or a copy of it.
bool same_data(const TokenFile& a, const TokenFile& b) {
  std::error_code error;
  return std::filesystem::equivalent(a.folder(), b.folder(), error) ||
         (a.num_tokens() == b.num_tokens() && a.info().tokens_hash == b.info().tokens_hash);
}

DataIdentity::Source identity_of(const TokenFile& file) {
  return {file.num_tokens(), file.info().tokens_hash};
}

std::string describe(const DataIdentity::Source& source) {
  return fmt::format("{} tokens {}", source.num_tokens, source.tokens_hash);
}

}  // namespace

int64_t data_vocab_size(const DataConfig& config) {
  if (config.train.empty()) throw Error("data.train: no sources, expected at least one");
  return TokenFile::open(config.train.front().path).vocab_size();
}

Sampler::Sampler(const DataConfig& config, uint64_t seed, int64_t global_batch_size, int64_t vocab_size)
    : seq_len_(config.seq_len), global_batch_size_(global_batch_size), seed_(seed) {
  LAMINA_CHECK(seq_len_ > 0 && global_batch_size > 0, "seq_len {}, global_batch_size {}", seq_len_, global_batch_size);
  if (!config.train.empty()) mix_.emplace(weights_of(config));
  for (const SourceConfig& source : config.train) {
    train_.push_back(TokenFile::open(source.path));
    check_same_tokenizer(train_.back(), vocab_size);
    num_windows_.push_back(count_windows(train_.back(), seq_len_));
  }
  if (!config.validation.path.empty() && config.validation.num_sequences > 0) {
    validation_ = TokenFile::open(config.validation.path);
    check_same_tokenizer(*validation_, vocab_size);
    open_validation(config.validation);
  }
  if (train_.empty() && !validation_) throw Error("data.train: no sources, expected at least one");
  tokenizer_ = first_source().make_tokenizer();
  for (size_t s = 0; s < train_.size(); ++s)
    if (num_windows_[s] < 1)
      throw Error("{}: found {} tokens{}, expected at least {} for one training sequence of seq_len {}",
                  train_[s].folder().string(), train_[s].num_tokens(),
                  validation_ && same_data(train_[s], *validation_)
                      ? fmt::format(" with {} sequences reserved for validation", num_validation_)
                      : "",
                  seq_len_ + 1, seq_len_);
}

void Sampler::check_same_tokenizer(const TokenFile& file, int64_t vocab_size) const {
  const TokenFile& first = first_source();
  if (file.tokenizer_hash() != first.tokenizer_hash())
    throw Error("{} has the tokenizer {} ({}), but {} has {} ({}); expected one tokenizer for all data",
                file.folder().string(), file.info().tokenizer, file.tokenizer_hash(), first.folder().string(),
                first.info().tokenizer, first.tokenizer_hash());
  if (file.vocab_size() > vocab_size)
    throw Error("{}: found a vocabulary of {}, expected at most the model's vocab_size {}", file.folder().string(),
                file.vocab_size(), vocab_size);
}

void Sampler::open_validation(const ValidationConfig& config) {
  const int64_t windows = count_windows(*validation_, seq_len_);
  if (windows < config.num_sequences)
    throw Error(
        "{}: found {} tokens, which are {} sequences of seq_len {}, expected at least the {} of "
        "data.validation.num_sequences",
        validation_->folder().string(), validation_->num_tokens(), windows, seq_len_, config.num_sequences);
  num_validation_ = config.num_sequences;
  first_validation_window_ = windows - num_validation_;
  for (size_t s = 0; s < train_.size(); ++s)
    if (same_data(train_[s], *validation_)) num_windows_[s] = first_validation_window_;
}

SampleRef Sampler::sample(int64_t step, int64_t i) const {
  LAMINA_CHECK(mix_, "no training sources");
  LAMINA_CHECK(step >= 0 && i >= 0 && i < global_batch_size_, "step {}, sequence {} of {}", step, i,
               global_batch_size_);
  LAMINA_CHECK(step <= std::numeric_limits<int64_t>::max() / global_batch_size_ - 1, "step {}", step);
  const SourceMix::Slot slot = mix_->at(step * global_batch_size_ + i);
  const int64_t windows = num_windows_[static_cast<size_t>(slot.source)];
  const int64_t epoch = slot.index / windows;
  const std::array<int64_t, 3> key{0x6570'6f63'68, slot.source, epoch};  // "epoch"
  const Permutation order(static_cast<uint64_t>(windows), seed_, hash64(key.data(), sizeof(key)));
  return {slot.source, static_cast<int64_t>(order(static_cast<uint64_t>(slot.index % windows))), epoch};
}

void Sampler::load_window(const TokenFile& file, int64_t window, std::span<int32_t> tokens,
                          std::span<int32_t> targets) const {
  file.read(window * seq_len_, tokens);
  std::copy(tokens.begin() + 1, tokens.end(), targets.begin());
  file.read((window + 1) * seq_len_, targets.last(1));
}

void Sampler::load(int64_t step, int64_t begin, int64_t end, std::span<int32_t> tokens,
                   std::span<int32_t> targets) const {
  LAMINA_CHECK(begin >= 0 && begin <= end && end <= global_batch_size_, "[{}, {}) of {}", begin, end,
               global_batch_size_);
  const auto length = static_cast<size_t>(seq_len_);
  const auto count = static_cast<size_t>(end - begin);
  LAMINA_CHECK(tokens.size() == count * length && targets.size() == count * length, "{} and {} of {}", tokens.size(),
               targets.size(), count * length);
  for (size_t k = 0; k < count; ++k) {
    const SampleRef ref = sample(step, begin + static_cast<int64_t>(k));
    load_window(train_[static_cast<size_t>(ref.source)], ref.window, tokens.subspan(k * length, length),
                targets.subspan(k * length, length));
  }
}

std::vector<double> Sampler::epochs(int64_t step) const {
  std::vector<double> result;
  for (size_t s = 0; s < train_.size(); ++s)
    result.push_back(static_cast<double>(mix_->count_before(step * global_batch_size_, static_cast<int64_t>(s))) /
                     static_cast<double>(num_windows_[s]));
  return result;
}

void Sampler::load_validation(int64_t begin, int64_t end, std::span<int32_t> tokens, std::span<int32_t> targets) const {
  LAMINA_CHECK(begin >= 0 && begin <= end && end <= num_validation_, "[{}, {}) of {}", begin, end, num_validation_);
  const auto length = static_cast<size_t>(seq_len_);
  const auto count = static_cast<size_t>(end - begin);
  LAMINA_CHECK(tokens.size() == count * length && targets.size() == count * length, "{} and {} of {}", tokens.size(),
               targets.size(), count * length);
  for (size_t k = 0; k < count; ++k)
    load_window(*validation_, first_validation_window_ + begin + static_cast<int64_t>(k),
                tokens.subspan(k * length, length), targets.subspan(k * length, length));
}

int64_t Sampler::num_validation_bytes(int64_t begin, int64_t end) const {
  std::vector<int32_t> tokens(static_cast<size_t>(seq_len_));
  std::vector<int32_t> targets(tokens.size());
  int64_t bytes = 0;
  for (int64_t k = begin; k < end; ++k) {
    load_validation(k, k + 1, tokens, targets);
    for (size_t i = 0; i < targets.size(); ++i) bytes += tokenizer_->num_bytes(targets[i], tokens[i]);
  }
  return bytes;
}

DataIdentity Sampler::identity() const {
  DataIdentity identity;
  identity.seq_len = seq_len_;
  identity.tokenizer_hash = first_source().tokenizer_hash();
  for (const TokenFile& file : train_) identity.train.push_back(identity_of(file));
  if (validation_) {
    identity.num_validation_sequences = num_validation_;
    identity.validation = identity_of(*validation_);
  }
  return identity;
}

int64_t Sampler::num_trained_validation_sequences(const DataIdentity& trained) const {
  if (!validation_) return 0;
  const DataIdentity::Source mine = identity_of(*validation_);
  if (std::count(trained.train.begin(), trained.train.end(), mine) == 0) return 0;
  int64_t windows = (mine.num_tokens - 1) / trained.seq_len;
  if (trained.validation == mine) windows -= trained.num_validation_sequences;
  const int64_t last = windows * trained.seq_len;  // of the tokens that were targets
  // Sequence i has the targets from (first_validation_window_ + i) * seq_len_ + 1 on.
  const int64_t touched = (last + seq_len_ - 1) / seq_len_ - first_validation_window_;
  return std::clamp<int64_t>(touched, 0, num_validation_);
}

std::string DataIdentity::to_text() const {
  std::string text = fmt::format("seq_len {}; tokenizer {}", seq_len, tokenizer_hash);
  for (const Source& source : train) text += "; train " + describe(source);
  if (validation)
    text += fmt::format("; validation {} sequences of {}", num_validation_sequences, describe(*validation));
  return text;
}

std::optional<DataIdentity> parse_data_identity(const std::string& text) {
  DataIdentity identity;
  std::string words = text;
  std::replace(words.begin(), words.end(), ';', ' ');
  std::istringstream in(words);
  for (std::string word; in >> word;) {
    DataIdentity::Source source;
    if (word == "seq_len") {
      in >> identity.seq_len;
    } else if (word == "tokenizer") {
      in >> identity.tokenizer_hash;
    } else if (word == "train") {
      in >> source.num_tokens >> word >> source.tokens_hash;
      identity.train.push_back(source);
    } else if (word == "validation") {
      in >> identity.num_validation_sequences >> word >> word >> source.num_tokens >> word >> source.tokens_hash;
      identity.validation = source;
    }
  }
  // Whatever was read wrongly would be written otherwise.
  if (identity.seq_len < 1 || identity.to_text() != text) return std::nullopt;
  return identity;
}

}  // namespace lamina
