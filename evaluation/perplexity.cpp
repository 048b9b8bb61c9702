#include "evaluation/perplexity.h"

#include <cmath>
#include <numbers>
#include <numeric>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/input_stream.h"

namespace lamina::evaluation {

Perplexity perplexity_of(double sum_of_losses, int64_t num_tokens, int64_t num_bytes) {
  Perplexity result;
  result.num_tokens = num_tokens;
  result.num_bytes = num_bytes;
  result.loss = sum_of_losses / static_cast<double>(num_tokens);
  result.perplexity = std::exp(result.loss);
  result.bits_per_byte = sum_of_losses / std::numbers::ln2 / static_cast<double>(num_bytes);
  return result;
}

std::vector<std::string> read_text(const std::string& path, const TextFormat& format) {
  std::vector<std::string> documents;
  std::string open;
  DocumentSink sink;
  sink.text = [&](std::string_view more) { open += more; };
  sink.end_document = [&] {
    if (!open.empty()) documents.push_back(std::move(open));
    open.clear();
  };
  const TextCounts counts = read_documents(path, format, sink);
  if (counts.num_replaced > 0)
    log::info("{}: replaced by U+FFFD: {} places that were not UTF-8, or NUL", io::describe_input(path),
              counts.num_replaced);
  if (counts.num_skipped > 0)
    log::info("{}: skipped: {} bad records, the first {}", io::describe_input(path), counts.num_skipped,
              counts.first_skipped);
  if (documents.empty()) throw Error("{}: found no text, expected some to evaluate", io::describe_input(path));
  return documents;
}

Text make_text(const std::string& path, const std::vector<std::string>& documents, const Tokenizer& tokenizer,
               int64_t length) {
  Text text{path, {}, 0, 0};
  for (const std::string& document : documents)
    for (Request& request : document_requests(tokenizer, document, length)) {
      text.num_tokens += request.num_inputs();
      text.num_bytes += num_scored_bytes(tokenizer, request);
      text.requests.push_back(std::move(request));
    }
  return text;
}

std::optional<Perplexity> evaluate_text(const Text& text, const Model& model) {
  const std::optional<std::vector<double>> found = score(text.requests, model);
  if (!found) return std::nullopt;
  return perplexity_of(-std::accumulate(found->begin(), found->end(), 0.0), text.num_tokens, text.num_bytes);
}

}  // namespace lamina::evaluation
