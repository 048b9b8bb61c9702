#include "evaluation/score.h"

#include <algorithm>
#include <numeric>

#include "core/base/error.h"
#include "core/device/stream.h"

namespace lamina::evaluation {
namespace {

// The scored tokens' log-probabilities of one batch, added to `sums`.
void run_batch(std::span<const Request> requests, const Batch& batch, const Model& model, std::span<double> sums) {
  const auto seq_len = static_cast<size_t>(batch.seq_len);
  std::vector<int32_t> tokens(batch.requests.size() * seq_len, model.padding), targets = tokens;
  for (size_t row = 0; row < batch.requests.size(); ++row) {
    const std::vector<int32_t>& all = requests[batch.requests[row]].tokens;
    std::copy(all.begin(), all.end() - 1, tokens.begin() + static_cast<int64_t>(row * seq_len));
    std::copy(all.begin() + 1, all.end(), targets.begin() + static_cast<int64_t>(row * seq_len));
  }
  std::vector<double> losses(tokens.size());
  model.token_losses(tokens, targets, batch.seq_len, losses);
  for (size_t row = 0; row < batch.requests.size(); ++row) {
    const Request& request = requests[batch.requests[row]];
    for (size_t i = request.first; i < request.tokens.size(); ++i)
      sums[batch.requests[row]] -= losses[row * seq_len + i - 1];
  }
}

}  // namespace

std::vector<Batch> make_batches(std::span<const Request> requests, int64_t max_tokens) {
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return requests[a].num_inputs() > requests[b].num_inputs(); });
  std::vector<Batch> batches;
  for (const size_t request : order) {
    const int64_t length = requests[request].num_inputs();
    LAMINA_CHECK(length > 0 && length <= max_tokens && requests[request].first >= 1,
                 "a request of {} inputs, at most {}", length, max_tokens);
    const bool fits = !batches.empty() &&
                      (static_cast<int64_t>(batches.back().requests.size()) + 1) * batches.back().seq_len <= max_tokens;
    if (!fits) batches.push_back({{}, length});
    batches.back().requests.push_back(request);
  }
  return batches;
}

std::optional<std::vector<double>> score(std::span<const Request> requests, const Model& model) {
  const std::vector<Batch> batches = make_batches(requests, model.max_tokens);
  std::vector<double> sums(requests.size());
  if (requests.empty()) return sums;
  // Expert-parallel ranks pass rows to each other: all make as many passes. What a rank runs in place of a missing batch is not
  // counted.
  const int64_t total = static_cast<int64_t>(batches.size());
  const int64_t passes = (total + model.dp_size - 1) / model.dp_size;
  std::vector<double> not_counted(requests.size());
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t at = pass * model.dp_size + model.dp_rank;
    const bool is_own = at < total;
    run_batch(requests, batches[static_cast<size_t>(is_own ? at : total - 1)], model, is_own ? sums : not_counted);
    if (pass + 1 < passes && model.stop_agreed && model.stop_agreed()) return std::nullopt;
  }
  if (model.world != nullptr) {
    Stream stream;
    const TensorView view(sums.data(), DType::f64, {static_cast<int64_t>(sums.size())});
    model.world->all_reduce(view, comm::ReduceOp::sum, stream).wait();
  }
  return sums;
}

}  // namespace lamina::evaluation
