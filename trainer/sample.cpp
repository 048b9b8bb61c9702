#include "trainer/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/rng.h"
#include "data/text_stream.h"
#include "data/token_file.h"
#include "data/utf8.h"
#include "parallel/comm/thread.h"
#include "trainer/identity.h"
#include "trainer/restore.h"

namespace lamina {

int64_t draw_token(std::span<const float> logits, const SampleOptions& options, double uniform) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options.temperature <= 0) return best - logits.begin();
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < order.size())
    order.resize(static_cast<size_t>(options.top_k));
  std::vector<double> weight;
  double total = 0;
  for (int64_t token : order) {
    weight.push_back(std::exp((static_cast<double>(logits[static_cast<size_t>(token)]) - static_cast<double>(*best)) /
                              options.temperature));
    total += weight.back();
  }
  double kept = 0;
  size_t count = 0;
  while (count < weight.size() && (count == 0 || kept < options.top_p * total)) kept += weight[count++];
  double left = uniform * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    left -= weight[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

namespace {

// The checkpoint's own, unless another place was named or it has none.
std::unique_ptr<Tokenizer> tokenizer_for(const Restored& restored, const SampleOptions& options) {
  const std::string checkpoint = restored.checkpoint.string();
  std::string place = checkpoint;
  auto tokenizer = options.data_path.empty() ? make_tokenizer(restored.info, checkpoint) : nullptr;
  if (!tokenizer) {
    place = options.data_path.empty() ? restored.config.data.train.front().path : options.data_path;
    tokenizer = TokenFile::open(place).make_tokenizer();
    check_tokenizer(restored.info, checkpoint, tokenizer->hash(), place);
  }
  if (tokenizer->vocab_size() > restored.config.model.vocab_size)
    throw Error("{}: found a tokenizer of {} tokens, expected at most the model's {}", place, tokenizer->vocab_size(),
                restored.config.model.vocab_size);
  return tokenizer;
}

}  // namespace

int64_t sample(const std::filesystem::path& checkpoint, const SampleOptions& options,
               const std::function<void(std::string_view)>& text) {
  if (const size_t at = valid_utf8(options.prompt); at < options.prompt.size())
    throw Error("--prompt: found {} at offset {}, expected text in UTF-8",
                describe_utf8_fault(std::string_view(options.prompt).substr(at)), at);
  const auto comm = comm::make_self_communicator();
  Restored restored = restore_parameters(checkpoint, *comm, [](Config& config) {
    config.train.micro_batch_size = config.train.global_batch_size = 1;
    config.parallel = {};
    config.run.device = "cpu";
  });
  const Config& config = restored.config;
  const auto tokenizer = tokenizer_for(restored, options);
  restored.engine->set_end_of_document(tokenizer->end_of_document());
  std::vector<int32_t> tokens = {tokenizer->end_of_document()};  // every document begins after one
  std::vector<int32_t> prompt;
  tokenizer->encode(options.prompt, prompt);
  tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  const size_t prompt_tokens = tokens.size();
  const CounterRng rng(options.seed, "sample");
  const auto window = static_cast<size_t>(config.data.seq_len);
  TextStream stream(*tokenizer, tokens.back());
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    const auto context = std::span(tokens).last(std::min(window, tokens.size()));
    std::vector<float> logits = restored.engine->next_token_logits(context);
    logits.resize(static_cast<size_t>(tokenizer->vocab_size()));  // rows that pad the vocabulary are never drawn
    const auto token = static_cast<int32_t>(draw_token(logits, options, rng.uniform(static_cast<uint64_t>(i))));
    if (token == tokenizer->end_of_document()) return i;
    tokens.push_back(token);
    stream.feed(token, text);
  }
  return static_cast<int64_t>(tokens.size() - prompt_tokens);
}

}  // namespace lamina
