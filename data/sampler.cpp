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

// Pieces of a round (sampler.h) in an epoch of so many. A round is what the windows of one piece lie apart, and what a change of the
// length may leave out: large beside a batch, small beside a source.
int64_t pieces_per_round(int64_t num_pieces) {
  return std::clamp<int64_t>(num_pieces / 64, 1, 4096);
}

// Where in an epoch's order of pieces a window lies.
struct Place {
  int64_t piece, window_in_piece;
};

Place place_of(int64_t window, int64_t num_pieces, int64_t windows_per_piece) {
  const int64_t round = pieces_per_round(num_pieces);
  const int64_t first = window / (round * windows_per_piece) * round;
  const int64_t in_round = window - first * windows_per_piece;
  const int64_t size = std::min(round, num_pieces - first);  // the last one may be short
  return {first + in_round % size, in_round / size};
}

// Pieces of the epoch that are done with after so many windows: of a round that has begun, all.
int64_t pieces_behind(int64_t windows, int64_t num_pieces, int64_t windows_per_piece) {
  const int64_t round = pieces_per_round(num_pieces), per_round = round * windows_per_piece;
  return std::min((windows + per_round - 1) / per_round * round, num_pieces);
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
    : Sampler(config, BatchPlan(config, global_batch_size), seed, vocab_size) {}

Sampler::Sampler(const Config& config)
    : Sampler(config.data, BatchPlan(config), config.run.seed, config.model.vocab_size) {}

Sampler::Sampler(const DataConfig& config, const BatchPlan& plan, uint64_t seed, int64_t vocab_size)
    : plan_(plan), seq_len_(config.seq_len), seed_(seed) {
  for (const SourceConfig& source : config.train) {
    train_.push_back(TokenFile::open(source.path));
    check_same_tokenizer(train_.back(), vocab_size);
    shares_validation_.push_back(false);
  }
  if (!config.validation.path.empty() && config.validation.num_sequences > 0) {
    validation_ = TokenFile::open(config.validation.path);
    check_same_tokenizer(*validation_, vocab_size);
    open_validation(config.validation);
  }
  if (train_.empty() && !validation_) throw Error("data.train: no sources, expected at least one");
  tokenizer_ = first_source().make_tokenizer();
  if (!train_.empty()) plan_stretches();
}

int64_t Sampler::num_pieces(size_t source, int64_t piece_len) const {
  const int64_t num_pieces = shares_validation_[source] ? first_validation_window_ * seq_len_ / piece_len
                                                        : count_windows(train_[source], piece_len);
  if (num_pieces < 1)
    throw Error(
        "{}: found {} tokens{}, expected at least {} for one training sequence of seq_len {}",
        train_[source].folder().string(), train_[source].num_tokens(),
        shares_validation_[source] ? fmt::format(" with {} sequences reserved for validation", num_validation_) : "",
        piece_len + 1, piece_len);
  return num_pieces;
}

// Each stage's from the one before: no batch is looked at.
void Sampler::plan_stretches() {
  for (size_t i = 0; i < plan_.stages().size(); ++i) {
    const BatchStage& stage = plan_.stages()[i];
    LAMINA_CHECK(stage.seq_len > 0 && stage.global_batch_size > 0 && stage.piece_len % stage.seq_len == 0,
                 "seq_len {} in pieces of {}, global_batch_size {}", stage.seq_len, stage.piece_len,
                 stage.global_batch_size);
    const BatchStage* before = i > 0 ? &plan_.stages()[i - 1] : nullptr;
    const bool mixes_on = before && has_same_mixture(*before, stage);
    if (!mixes_on) mixes_.emplace_back(stage.weights);
    Stretch stretch;
    stretch.windows_per_piece = stage.piece_len / stage.seq_len;
    stretch.mix = mixes_.size() - 1;
    if (mixes_on)
      stretch.first_sequence =
          stretches_.back().first_sequence + (stage.first - before->first) * before->global_batch_size;
    std::vector<int64_t> read(train_.size(), 0);  // windows of the stage before
    if (before) read = position(i - 1, stage.first);
    for (size_t s = 0; s < train_.size(); ++s) {
      const int64_t pieces = num_pieces(s, stage.piece_len), windows = pieces * stretch.windows_per_piece;
      int64_t begin = read[s];
      if (before && (before->seq_len != stage.seq_len || stage.begins_epoch)) {
        const int64_t per_piece = stretches_.back().windows_per_piece, epoch = stretches_.back().num_windows[s];
        const int64_t behind = pieces_behind(begin % epoch, epoch / per_piece, per_piece);
        begin = stage.begins_epoch ? (begin + epoch - 1) / epoch * windows
                                   : begin / epoch * windows + behind * stretch.windows_per_piece;
      }
      stretch.num_windows.push_back(windows);
      stretch.offset.push_back(begin - mixes_.back().count_before(stretch.first_sequence, static_cast<int64_t>(s)));
    }
    stretches_.push_back(std::move(stretch));
  }
}

// Windows of each source that are behind the batches before `batch`, a stage's or the first after it.
std::vector<int64_t> Sampler::position(size_t stage, int64_t batch) const {
  const Stretch& stretch = stretches_[stage];
  const BatchStage& plan = plan_.stages()[stage];
  const int64_t sequence = stretch.first_sequence + (batch - plan.first) * plan.global_batch_size;
  std::vector<int64_t> windows;
  for (size_t s = 0; s < train_.size(); ++s)
    windows.push_back(stretch.offset[s] + mixes_[stretch.mix].count_before(sequence, static_cast<int64_t>(s)));
  return windows;
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
  for (size_t s = 0; s < train_.size(); ++s) shares_validation_[s] = same_data(train_[s], *validation_);
}

SampleRef Sampler::sample(int64_t step, int64_t i) const {
  LAMINA_CHECK(!train_.empty(), "no training sources");
  LAMINA_CHECK(step >= 0, "step {}", step);
  const size_t index = plan_.stage_of(step + 1);
  const BatchStage& stage = plan_.stages()[index];
  const Stretch& stretch = stretches_[index];
  LAMINA_CHECK(i >= 0 && i < stage.global_batch_size, "step {}, sequence {} of {}", step, i, stage.global_batch_size);
  LAMINA_CHECK(step <= std::numeric_limits<int64_t>::max() / stage.global_batch_size - 1, "step {}", step);
  const SourceMix::Slot slot =
      mixes_[stretch.mix].at(stretch.first_sequence + (step + 1 - stage.first) * stage.global_batch_size + i);
  const auto source = static_cast<size_t>(slot.source);
  const int64_t windows = stretch.num_windows[source], at = stretch.offset[source] + slot.index;
  const int64_t per_piece = stretch.windows_per_piece, pieces = windows / per_piece, epoch = at / windows;
  const std::array<int64_t, 3> key{0x6570'6f63'68, slot.source, epoch};  // "epoch"
  const Permutation order(static_cast<uint64_t>(pieces), seed_, hash64(key.data(), sizeof(key)));
  const Place place = place_of(at % windows, pieces, per_piece);
  const auto piece = static_cast<int64_t>(order(static_cast<uint64_t>(place.piece)));
  return {slot.source, piece * per_piece + place.window_in_piece, epoch};
}

void Sampler::load_window(const TokenFile& file, int64_t window, std::span<int32_t> tokens,
                          std::span<int32_t> targets) const {
  const auto length = static_cast<int64_t>(tokens.size());
  file.read(window * length, tokens);
  std::copy(tokens.begin() + 1, tokens.end(), targets.begin());
  file.read((window + 1) * length, targets.last(1));
}

void Sampler::load(int64_t step, int64_t begin, int64_t end, std::span<int32_t> tokens,
                   std::span<int32_t> targets) const {
  const BatchStage& stage = plan_.at(step + 1);
  LAMINA_CHECK(begin >= 0 && begin <= end && end <= stage.global_batch_size, "[{}, {}) of {}", begin, end,
               stage.global_batch_size);
  const auto length = static_cast<size_t>(stage.seq_len);
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
  const size_t stage = plan_.stage_of(std::max<int64_t>(step, 1));
  const std::vector<int64_t> windows = position(stage, step + 1);
  std::vector<double> result;
  for (size_t s = 0; s < train_.size(); ++s)
    result.push_back(static_cast<double>(windows[s]) / static_cast<double>(stretches_[stage].num_windows[s]));
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
  identity.piece_len = plan_.stages().front().piece_len;
  identity.tokenizer_hash = first_source().tokenizer_hash();
  for (const TokenFile& file : train_) identity.train.push_back(identity_of(file));
  if (validation_) {
    identity.num_validation_sequences = num_validation_;
    identity.validation = identity_of(*validation_);
  }
  return identity;
}

bool Sampler::continues(const std::string& fingerprint, int64_t batches) const {
  if (fingerprint == this->fingerprint()) return true;
  const std::optional<DataIdentity> before = parse_data_identity(fingerprint);
  if (!before || before->train.size() > train_.size()) return false;
  for (const BatchStage& stage : plan_.stages())
    for (size_t s = before->train.size(); s < train_.size(); ++s)
      if (stage.first <= std::max<int64_t>(batches, 1) && stage.weights[s] > 0) return false;
  DataIdentity mine = identity();
  mine.train.resize(before->train.size());
  return mine == *before;
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
  std::string text = fmt::format("seq_len {}; ", seq_len);
  if (piece_len != seq_len) text += fmt::format("piece_len {}; ", piece_len);
  text += fmt::format("tokenizer {}", tokenizer_hash);
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
      identity.piece_len = identity.seq_len;
    } else if (word == "piece_len") {
      in >> identity.piece_len;
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
