// Requests through a model, batched by length and shared out over data-parallel ranks.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "evaluation/request.h"
#include "parallel/comm/communicator.h"

namespace lamina::evaluation {

// The model, as far as an evaluation sees it.
struct Model {
  // Loss (nats) of each target: tokens, targets, losses [sequences, seq_len], at most max_tokens together. Of the ranks that hold one
  // copy of the model exactly one gives the losses, the others zeros; they all call it for the same sequences.
  std::function<void(std::span<const int32_t> tokens, std::span<const int32_t> targets, int64_t seq_len,
                     std::span<double> losses)>
      token_losses;
  int64_t max_tokens = 0;
  int64_t dp_rank = 0, dp_size = 1;  // copies of the model, each with batches of its own
  comm::Communicator* world = nullptr;
  int32_t padding = 0;                // a token; nothing before it sees it
  std::function<bool()> stop_agreed;  // asked between passes, on all ranks with the same answer; may be empty
};

// Requests of similar length, padded at the end to the longest of them.
struct Batch {
  std::vector<size_t> requests;
  int64_t seq_len = 0;
};

// Longest first. Requests of more than max_tokens inputs are InternalErrors.
std::vector<Batch> make_batches(std::span<const Request> requests, int64_t max_tokens);

// ln of the probability of each request's scored tokens together. Collective over model.world; all ranks get all values. Absent when
// stop_agreed() said yes.
std::optional<std::vector<double>> score(std::span<const Request> requests, const Model& model);

}  // namespace lamina::evaluation
