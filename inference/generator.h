// Text for several requests at a time: each pass of the model computes the next token of every sequence that is being written, and
// some tokens of the prompts that wait. Requests don't affect each other, except for the rounding of larger products.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "data/text_stream.h"
#include "inference/decoder.h"
#include "inference/sampling.h"

namespace lamina::inference {

struct Request {
  std::vector<int32_t> tokens;  // the prompt, not empty
  int num_samples = 1;          // continuations, each drawn for itself
  int64_t max_tokens = 200;     // of each continuation; 0: only the prompt is read
  Sampling sampling;
  uint64_t seed = 1;              // same request, same text
  uint64_t first_stream = 0;      // of random numbers: the first sample's, the next one's is one more
  std::vector<std::string> stop;  // a text ends before the first of these, which are not empty
  // Log-probabilities are wanted, and those of so many of the likeliest tokens beside.
  std::optional<int64_t> num_likeliest;
  bool score_prompt = false;  // and of the prompt's tokens behind the first
};

enum class Finish { no, length, stop_text, end_of_document };

// One token of one continuation, or of a prompt that is scored; without a token the end of a sample of none.
struct TokenEvent {
  static constexpr int of_prompt = -1;
  int64_t request = 0;
  int sample = 0;              // or of_prompt: the prompt's come before those of its samples
  int32_t token = -1;          // -1: none
  double log_probability = 0;  // when wanted
  std::vector<std::pair<int32_t, double>> likeliest;
  std::string text;  // what became certain: whole characters, no part of a stop text
  Finish finish = Finish::no;
};

// Text that may not contain any of some strings: what could be the beginning of one is held back.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stop) : stop_(std::move(stop)) {}
  // Text that is certain; `found` when one of the strings came: it and what follows is dropped.
  std::string add(std::string_view text, bool& found);
  std::string finish() { return std::move(held_); }

 private:
  std::vector<std::string> stop_;
  std::string held_;
};

class Generator {
 public:
  // Both must outlive the generator.
  Generator(Decoder& decoder, const Tokenizer& tokenizer, int64_t prompt_tokens_per_pass = 512);

  int64_t add(Request request);  // its number in events
  void cancel(int64_t request);  // no event of it follows
  bool idle() const { return jobs_.empty(); }
  // One pass of the model. What went wrong with memory is an Error; the generator is of no use then.
  std::vector<TokenEvent> step();

 private:
  struct Sample {
    Sequence sequence;
    TextStream text;
    StopFilter stop;
    CounterRng random;
    int64_t num_tokens = 0;
    int32_t last = 0;
    bool is_done = false;
  };
  struct Job {
    int64_t number;
    Request request;
    Sequence prompt;
    size_t fed = 0;  // of the prompt
    std::vector<Sample> samples;
    bool reads_prompt() const { return fed < request.tokens.size(); }
  };
  struct Place {  // what a row of logits belongs to
    Job* job;
    int sample;  // -1: the prompt
  };
  void begin_samples(Job& job);
  Decoder::EachLogits scorer(const Job& job, std::vector<TokenEvent>& events);
  TokenEvent draw(Job& job, int index, std::span<const float> logits);

  Decoder& decoder_;
  const Tokenizer& tokenizer_;
  int64_t prompt_tokens_per_pass_, next_number_ = 0;
  std::list<Job> jobs_;
};

}  // namespace lamina::inference
