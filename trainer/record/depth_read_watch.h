// Watches the reads of Attention Residuals over the logged steps of a run, for two ways in which depth dies: a read whose softmax
// is saturated passes its gradient to one source only and can no longer learn another choice, and the layers of a block that no later
// read looks at get next to no gradient themselves.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "parallel/pipeline/block_routes.h"

namespace lamina {

// One read in one step, means over its tokens.
struct DepthRead {
  int site = 0;
  std::vector<double> weights;  // of the embedding, the finished blocks, and the open sum where it sees one
  double entropy = 0;           // nats
  double largest_weight = 0;
};

class DepthReadWatch {
 public:
  // A read is saturated where the largest weight of a token is this on average.
  static constexpr double saturated_weight = 0.99;
  // A block is unread where every later read gives it less than this share of the uniform weight.
  static constexpr double unread_share = 0.1;
  // Steps that a state has to last, in all that are logged.
  static constexpr int64_t many_steps = 50;

  explicit DepthReadWatch(const ModelConfig& model);
  // The reads of one step, steps rising. Returns a line for each state that has lasted many steps by now; once, until it ends.
  std::vector<std::string> observe(int64_t step, std::span<const DepthRead> reads);

  std::string name_of_read(int site) const;      // "the read of layer 3 mlp"
  std::string name_of_source(int source) const;  // "embedding", "block 1 (layers 2-3)", "layer 3 mlp"

 private:
  struct State {
    int64_t since = -1;  // the first step of it; -1: not in it
    bool is_told = false;
    bool lasts(bool holds, int64_t step);  // true once
  };

  pipeline::BlockLayout blocks_;
  bool is_full_;
  std::vector<State> saturated_;  // [site]
  std::vector<State> unread_;     // [source]
};

}  // namespace lamina
