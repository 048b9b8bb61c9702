#include "trainer/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/rng.h"
#include "data/token_file.h"
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

int64_t sample(const std::filesystem::path& checkpoint, const SampleOptions& options,
               const std::function<void(std::string_view)>& text) {
  const auto comm = comm::make_self_communicator();
  Restored restored = restore_parameters(checkpoint, *comm, [](Config& config) {
    config.train.micro_batch_size = config.train.global_batch_size = 1;
    config.parallel = {};
    config.run.device = "cpu";
  });
  const Config& config = restored.config;
  const std::string folder = options.data_path.empty() ? config.data.train.front().path : options.data_path;
  const auto tokenizer = TokenFile::open(folder).make_tokenizer();
  check_tokenizer(restored.info, restored.checkpoint.string(), tokenizer->hash(), folder);
  if (tokenizer->vocab_size() > config.model.vocab_size)
    throw Error("{}: found a tokenizer of {} tokens, expected at most the model's {}", folder, tokenizer->vocab_size(),
                config.model.vocab_size);

  restored.engine->set_end_of_document(tokenizer->end_of_document());
  std::vector<int32_t> tokens = {tokenizer->end_of_document()};  // every document begins after one
  std::vector<int32_t> prompt;
  tokenizer->encode(options.prompt, prompt);
  tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  const size_t prompt_tokens = tokens.size();
  const CounterRng rng(options.seed, "sample");
  const auto window = static_cast<size_t>(config.data.seq_len);
  std::string shown = tokenizer->decode(std::span(tokens).subspan(1));
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    const auto context = std::span(tokens).last(std::min(window, tokens.size()));
    std::vector<float> logits = restored.engine->next_token_logits(context);
    logits.resize(static_cast<size_t>(tokenizer->vocab_size()));  // rows that pad the vocabulary are never drawn
    const auto token = static_cast<int32_t>(draw_token(logits, options, rng.uniform(static_cast<uint64_t>(i))));
    if (token == tokenizer->end_of_document()) return i;
    tokens.push_back(token);
    // Decoded whole, because a token's text may depend on its neighbours; only what is new is shown.
    std::string all = tokenizer->decode(std::span(tokens).subspan(1));
    if (all.size() > shown.size()) text(std::string_view(all).substr(shown.size()));
    shown = std::move(all);
  }
  return static_cast<int64_t>(tokens.size() - prompt_tokens);
}

}  // namespace lamina
