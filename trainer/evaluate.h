// Loss on the reserved validation sequences.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "data/sampler.h"
#include "trainer/checkpoint.h"
#include "trainer/engine.h"

namespace lamina {

struct Evaluation {
  int64_t num_tokens = 0;
  int64_t num_bytes = 0;  // of text
  double loss = 0;        // mean per token, nats
  double perplexity = 0;
  double bits_per_byte = 0;  // over the bytes of text that the targets stand for
};

// Error unless `sampler`, made of `asked`, has the tokenizer that `checkpoint` was trained with, cuts documents as it did, and, without
// `allow_trained`, has only validation sequences none of whose targets were training targets. A line in the log where the checkpoint
// doesn't say.
void check_evaluation_data(const Sampler& sampler, const DataConfig& asked, const CheckpointInfo& info,
                           const std::string& checkpoint, bool allow_trained);

// Expects validation sequences. Collective: each rank takes its share of the sequences. `stop_agreed`, which must be collective
// and give all ranks the same answer, is asked between passes; absent when it said yes.
std::optional<Evaluation> evaluate(Engine& engine, const Sampler& sampler, const Config& config,
                                   comm::Communicator& comm, const std::function<bool()>& stop_agreed);

}  // namespace lamina
