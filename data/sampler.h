// Which tokens a training step sees: a pure function of (configuration, seed, step), in constant time, so nothing has to
// be saved to resume and any number of ranks sees the same global batch.
//
// A token file is cut in windows of seq_len + 1 tokens with stride seq_len: inputs are the first seq_len tokens, targets
// the same shifted by one, and every token but the first is a target exactly once. The n-th sequence of the run takes
// its source from SourceMix; within a source each epoch visits every window once, in an order of its own.
//
// The last validation.num_sequences windows of the validation source are reserved: their targets are never training
// targets, also when the same data (by path or by content) is a training source.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "data/source_mix.h"
#include "data/token_file.h"
#include "data/tokenizer.h"

namespace lamina {

struct SampleRef {
  int64_t source;  // in data.train
  int64_t window;
  int64_t epoch;  // of this source
};

// What a checkpoint keeps of the data it was trained on: the contents, wherever they lie.
struct DataIdentity {
  struct Source {
    int64_t num_tokens = 0;
    std::string tokens_hash;
    bool operator==(const Source&) const = default;
  };
  int64_t seq_len = 0;
  std::string tokenizer_hash;
  std::vector<Source> train;
  int64_t num_validation_sequences = 0;
  std::optional<Source> validation;
  bool operator==(const DataIdentity&) const = default;

  std::string to_text() const;  // the one line that Sampler::fingerprint() is
};

// Absent for anything but what to_text() writes.
std::optional<DataIdentity> parse_data_identity(const std::string& text);

// The vocabulary of the data's tokenizer: what model.vocab_size is when the configuration leaves it out.
int64_t data_vocab_size(const DataConfig& config);

class Sampler {
 public:
  // Without training sources there is only the validation. Throws Error for a source that can't be read or is too short, whose
  // tokenizer differs from the others', or whose ids don't fit a model of `vocab_size`; and where there is no source at all.
  Sampler(const DataConfig& config, uint64_t seed, int64_t global_batch_size, int64_t vocab_size);

  int64_t seq_len() const { return seq_len_; }
  int64_t global_batch_size() const { return global_batch_size_; }

  // Sequence i of the global batch of `step`; steps count from 0.
  SampleRef sample(int64_t step, int64_t i) const;

  // Sequences [begin, end) of the global batch of `step`, each span [end - begin, seq_len]. Thread-safe.
  void load(int64_t step, int64_t begin, int64_t end, std::span<int32_t> tokens, std::span<int32_t> targets) const;

  // Per training source, how often it was seen through after `step` whole steps.
  std::vector<double> epochs(int64_t step) const;
  int64_t num_windows(int64_t source) const { return num_windows_[static_cast<size_t>(source)]; }  // to train on

  int64_t num_validation_sequences() const { return num_validation_; }  // 0 without validation
  void load_validation(int64_t begin, int64_t end, std::span<int32_t> tokens, std::span<int32_t> targets) const;
  // Bytes of text that the targets of validation sequences [begin, end) stand for, for the loss in bits per byte.
  int64_t num_validation_bytes(int64_t begin, int64_t end) const;

  // One line that changes with seq_len, the data of any source, their order, or the tokenizer; a checkpoint keeps it.
  std::string fingerprint() const { return identity().to_text(); }
  DataIdentity identity() const;
  // Validation sequences that a run on `trained` used as training targets, in whole or in part: they are the first ones.
  int64_t num_trained_validation_sequences(const DataIdentity& trained) const;

  int32_t end_of_document() const { return first_source().info().end_of_document; }  // the token after every document
  // The tokenizer that all sources share, from their stored copy.
  const Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  const TokenFile& first_source() const { return train_.empty() ? *validation_ : train_.front(); }
  void check_same_tokenizer(const TokenFile& file, int64_t vocab_size) const;
  void open_validation(const ValidationConfig& config);
  void load_window(const TokenFile& file, int64_t window, std::span<int32_t> tokens, std::span<int32_t> targets) const;

  int64_t seq_len_;
  int64_t global_batch_size_;
  uint64_t seed_;
  std::vector<TokenFile> train_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<int64_t> num_windows_;  // per source, without the reserved ones
  std::optional<SourceMix> mix_;
  std::optional<TokenFile> validation_;
  int64_t num_validation_ = 0;
  int64_t first_validation_window_ = 0;
};

}  // namespace lamina
