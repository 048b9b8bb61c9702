// Questions about long contexts, made on the fly: the same for the same seed and tokenizer. Each is an item of four choices, so that
// guessing is right in a quarter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evaluation/tasks.h"

namespace lamina::evaluation {

struct ProbeOptions {
  std::vector<int64_t> lengths;  // tokens of the context with the longest choice, at most; each at least 1
  int64_t num_items = 20;        // of each probe, length and depth
  uint64_t seed = 1;
};

// needle: a sentence with a number, somewhere in filler; the choices are numbers that are nowhere else.
// recall: pairs of a name and a word; one of the names comes again, and the choices are words of the context.
// depth: where what is asked for stands, 0 at the beginning and 1 at the end.
struct Probe {
  std::string name;  // "needle", "recall"
  int64_t length = 0;
  double depth = 0;
  Task task;
};

// For each length, both probes at the depths 0, 1/4, 1/2, 3/4 and 1. Error for a length in which a question has no room.
std::vector<Probe> make_probes(const ProbeOptions& options, const Tokenizer& tokenizer);

}  // namespace lamina::evaluation
