// What a checkpoint belongs to: its model, its tokenizer and the text it was trained on. Everything that loads one compares.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "data/passed_batches.h"
#include "data/sampler.h"
#include "data/tokenizer.h"
#include "model/parameters.h"
#include "trainer/checkpoint/checkpoint.h"

namespace lamina {

// Ids of special tokens, as other programs want them.
struct TokenIds {
  std::optional<int64_t> bos, pad;
  std::vector<int64_t> eos;  // empty: unknown; of other programs' models there may be several
  bool operator==(const TokenIds&) const = default;
};

struct TokenizerIdentity {
  std::string hash;  // empty: unknown
  TokenIds ids;
};

// A text begins after the token that ends the one before it: that one token is bos and eos.
TokenizerIdentity identity_of(const Tokenizer& tokenizer);

void store_tokenizer(CheckpointInfo& info, const TokenizerIdentity& tokenizer);
void store_tokenizer(CheckpointInfo& info, const Tokenizer& tokenizer);  // itself too

// The checkpoint's own; null where it has none.
std::unique_ptr<Tokenizer> make_tokenizer(const CheckpointInfo& info, const std::string& checkpoint);

// The checkpoint's own, or that of its training data where that is still there and the same; null otherwise.
std::unique_ptr<Tokenizer> find_tokenizer(const CheckpointInfo& info, const std::string& checkpoint);

// The hash of older checkpoints is in the sampler's fingerprint; they have no ids.
TokenizerIdentity stored_tokenizer(const CheckpointInfo& info);

// Those that the run had passed over.
void store_passed_batches(CheckpointInfo& info, const PassedBatches& passed);
PassedBatches passed_batches(const CheckpointInfo& info);
int64_t trained_batches(const CheckpointInfo& info);  // the last one that it was trained on; 0 of none
// The configuration of the model as far as it was trained: without stages, data.seq_len the longest so far.
Config trained_config(const CheckpointInfo& info, const std::string& checkpoint);

// Absent for a checkpoint that was imported.
std::optional<DataIdentity> stored_data(const CheckpointInfo& info);

// Error naming `folder`, whose tokenizer has `hash`, when `checkpoint` was trained with another one; a line in the log when
// the checkpoint doesn't say.
void check_tokenizer(const CheckpointInfo& info, const std::string& checkpoint, const std::string& hash,
                     const std::string& folder);

// Error naming the first key of `model` in which `found`, the model of `name`, computes something else than `expected`. How it was
// initialised and balanced doesn't count; a vocab_size of 0 is any.
void check_same_model(const std::string& name, const ModelConfig& found, const ModelConfig& expected);

// The same, but that a model with the standard residual may become one with Attention Residuals, whose depth reads are new: their
// queries begin at zero, so that a read is the mean of what the standard residual sums, and the norm after it removes the factor
// (its epsilon aside). Returns the new parameters, by depth; none: the same model.
std::vector<model::ParameterSpec> check_model_to_start_from(const std::string& name, const ModelConfig& found,
                                                            const ModelConfig& expected);
std::string describe_new(size_t num_parameters);  // "22 tensors of Attention Residuals: queries zero, norms one"

// The stored parameters are the model's, no more and no less.
void check_parameters(const std::string& checkpoint, const std::vector<CheckpointTensor>& stored,
                      const std::vector<model::ParameterSpec>& specs);

}  // namespace lamina
