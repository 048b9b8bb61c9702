// Which tokens a training step sees: a pure function of (configuration, seed, step), in constant time, so nothing has to
// be saved to resume and any number of ranks sees the same global batch.
//
// A token file is cut in windows of seq_len + 1 tokens with stride seq_len: inputs are the first seq_len tokens, targets
// the same shifted by one, and every token but the first is a target exactly once. The n-th sequence of the run takes
// its source from SourceMix; within a source each epoch visits every window once, in an order of its own.
//
// The order is that of pieces of BatchStage::piece_len tokens, which hold one window each where all sequences are as long. Pieces with
// several windows are read in rounds of neighbours in that order: the first window of each, then the second, and so on, so that windows
// of one piece lie apart. Where a stage (configs/schema/batch_plan.h) changes the length, each source goes on with the next round: what
// the last one has left, at most a 64th of the source, is not read in that epoch, and nothing is read twice. A stage with another
// mixture or batch goes on where each source stands.
//
// The last validation.num_sequences windows of the validation source are reserved: their targets are never training
// targets, also when the same data (by path or by content) is a training source.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "configs/schema/batch_plan.h"
#include "configs/schema/config.h"
#include "data/source_mix.h"
#include "data/token_file.h"
#include "data/tokenizer.h"

namespace lamina {

struct SampleRef {
  int64_t source;  // in data.train
  int64_t window;  // of the batch's seq_len
  int64_t epoch;   // of this source
};

// What a checkpoint keeps of the data it was trained on: the contents, wherever they lie.
struct DataIdentity {
  struct Source {
    int64_t num_tokens = 0;
    std::string tokens_hash;
    bool operator==(const Source&) const = default;
  };
  int64_t seq_len = 0;
  int64_t piece_len = 0;  // at the beginning; seq_len unless the run has sequences of several lengths
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
  // With the stages of the run; model.vocab_size must be resolved.
  explicit Sampler(const Config& config);

  const BatchPlan& plan() const { return plan_; }
  int64_t seq_len() const { return seq_len_; }  // of validation

  // Sequence i of the global batch of `step`; steps count from 0: batch step + 1 of the plan.
  SampleRef sample(int64_t step, int64_t i) const;

  // Sequences [begin, end) of the global batch of `step`, each span [end - begin, its seq_len]. Thread-safe.
  void load(int64_t step, int64_t begin, int64_t end, std::span<int32_t> tokens, std::span<int32_t> targets) const;

  // Per training source, how often it was gone through after `step` whole steps.
  std::vector<double> epochs(int64_t step) const;
  // To train on, of the run's first seq_len.
  int64_t num_windows(int64_t source) const { return stretches_.front().num_windows[static_cast<size_t>(source)]; }

  int64_t num_validation_sequences() const { return num_validation_; }  // 0 without validation
  void load_validation(int64_t begin, int64_t end, std::span<int32_t> tokens, std::span<int32_t> targets) const;
  // Bytes of text that the targets of validation sequences [begin, end) stand for, for the loss in bits per byte.
  int64_t num_validation_bytes(int64_t begin, int64_t end) const;

  // One line that changes with seq_len, the pieces, the data of any source, their order, or the tokenizer; a checkpoint keeps it.
  std::string fingerprint() const { return identity().to_text(); }
  // Whether a run that has trained on `batches` of data with that fingerprint may go on with this one: the same, or with more sources
  // at the end of the list, of which it has read nothing.
  bool continues(const std::string& fingerprint, int64_t batches) const;
  DataIdentity identity() const;
  // Validation sequences that a run on `trained` used as training targets, in whole or in part: they are the first ones.
  int64_t num_trained_validation_sequences(const DataIdentity& trained) const;

  int32_t end_of_document() const { return first_source().info().end_of_document; }  // the token after every document
  // The tokenizer that all sources share, from their stored copy.
  const Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  // A stage of the plan. Where each source stands is counted in windows of the stage's seq_len, epochs before included.
  struct Stretch {
    int64_t windows_per_piece = 1;
    std::vector<int64_t> num_windows;  // per source, of an epoch
    size_t mix = 0;                    // index in mixes_
    int64_t first_sequence = 0;        // in the mixture's pattern
    // Window of the source's first sequence in the pattern: what it has read before less what the pattern counts before.
    std::vector<int64_t> offset;
  };

  Sampler(const DataConfig& config, const BatchPlan& plan, uint64_t seed, int64_t vocab_size);
  const TokenFile& first_source() const { return train_.empty() ? *validation_ : train_.front(); }
  int64_t num_pieces(size_t source, int64_t piece_len) const;
  void plan_stretches();
  std::vector<int64_t> position(size_t stage, int64_t batch) const;
  void check_same_tokenizer(const TokenFile& file, int64_t vocab_size) const;
  void open_validation(const ValidationConfig& config);
  void load_window(const TokenFile& file, int64_t window, std::span<int32_t> tokens, std::span<int32_t> targets) const;

  BatchPlan plan_;
  int64_t seq_len_;
  uint64_t seed_;
  std::vector<TokenFile> train_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<bool> shares_validation_;  // per source: the reserved windows are its own
  std::vector<SourceMix> mixes_;
  std::vector<Stretch> stretches_;  // per stage of the plan; none without training sources
  std::optional<TokenFile> validation_;
  int64_t num_validation_ = 0;
  int64_t first_validation_window_ = 0;
};

}  // namespace lamina
