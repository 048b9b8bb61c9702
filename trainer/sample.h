// Text from a checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace lamina {

struct SampleOptions {
  std::string prompt;
  int64_t max_tokens = 200;
  double temperature = 0.8;  // 0: the likeliest token each time
  int64_t top_k = 0;         // 0: all
  double top_p = 0.95;       // the smallest set of tokens with at least this probability; 1: all
  uint64_t seed = 1;
  std::string
      data_path;  // token folder with the tokenizer; empty: the checkpoint's, or that of its training data if it has none
};

// Calls `text` with whole characters of UTF-8 as they are generated (the prompt is not repeated); U+FFFD stands for bytes that are none,
// and one that the last token leaves unfinished is not shown. Stops at the end-of-document token.
// The window is the last seq_len tokens. Returns the number of tokens generated.
int64_t sample(const std::filesystem::path& checkpoint, const SampleOptions& options,
               const std::function<void(std::string_view)>& text);

// The index drawn from softmax(logits / temperature) cut by top_k and top_p, with `uniform` in [0, 1).
int64_t draw_token(std::span<const float> logits, const SampleOptions& options, double uniform);

}  // namespace lamina
