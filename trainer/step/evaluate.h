// Loss on the reserved validation sequences, and the engine as other evaluations see it.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "data/sampler.h"
#include "evaluation/perplexity.h"
#include "evaluation/score.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/step/engine.h"

namespace lamina {

using Evaluation = evaluation::Perplexity;

// Error unless `sampler`, made of `asked`, has the tokenizer that `checkpoint` was trained with, cuts documents as it did, and, without
// `allow_trained`, has only validation sequences none of whose targets were training targets. A line in the log where the checkpoint
// doesn't say.
void check_evaluation_data(const Sampler& sampler, const DataConfig& asked, const CheckpointInfo& info,
                           const std::string& checkpoint, bool allow_trained);

// Error unless `asked` cuts documents as `checkpoint` was trained.
void check_document_mask(const CheckpointInfo& info, const std::string& checkpoint, const DataConfig& asked);

// Expects validation sequences. Collective: each rank takes its share of the sequences. `stop_agreed`, which must be collective
// and give all ranks the same answer, is asked between passes; absent when it said yes.
std::optional<Evaluation> evaluate(Engine& engine, const Sampler& sampler, const Config& config,
                                   comm::Communicator& comm, const std::function<bool()>& stop_agreed);

// The engine for `evaluation`. All must outlive it. max_tokens: of a pass, at most the engine's.
evaluation::Model evaluation_model(Engine& engine, comm::Communicator& comm, int32_t padding, int64_t max_tokens,
                                   std::function<bool()> stop_agreed);

}  // namespace lamina
