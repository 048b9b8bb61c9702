#include "inference/decoder.h"

#include <algorithm>

#include "core/ops/decode/decode.h"
#include "core/ops/matmul/matmul.h"

namespace lamina::inference {

void Sequence::assign(const Sequence& other) {
  cache_.assign(other.cache_);
  num_tokens_ = other.num_tokens_;
  ended_ = other.ended_;
}

Decoder::Decoder(const ModelConfig& config, model::Parameters& parameters, const DecoderOptions& options)
    : config_(config),
      dtype_(parameters.group(model::Group::matrices).dtype),
      document_end_(options.document_end),
      tokens_per_pass_(options.tokens_per_pass),
      device_(parameters.group(model::Group::matrices).values.device()),
      stream_(device_),
      scratch_(device_, nullptr, "scratch"),
      results_(device_, nullptr, "logits"),
      ctx_{stream_, scratch_, refusals_, options.backend, options.bf16_products},
      plan_(model::make_stage_plan(config, std::vector<int64_t>{config.num_hidden_layers}, 1, BlockTransport::cached)),
      // Nothing is kept for a backward pass.
      stage_({config, dtype_, Recompute::full, device_}, plan_, 0, options.tokens_per_pass, parameters) {
  LAMINA_CHECK(tokens_per_pass_ > 0, "{} tokens per pass", tokens_per_pass_);
}

// At most `room` tokens of one document.
std::span<const int32_t> Decoder::next_piece(const Pending& pending, int64_t room) const {
  const auto rest = pending.rest();
  auto piece = rest.first(std::min(rest.size(), static_cast<size_t>(room)));
  if (!document_end_) return piece;
  const auto end = std::find(piece.begin(), piece.end(), *document_end_);
  return end == piece.end() ? piece : piece.first(static_cast<size_t>(end - piece.begin()) + 1);
}

// The next tokens of as many sequences as fit. The last hidden row of each that is through goes to `last`.
void Decoder::pass(std::vector<Pending>& pending, const TensorView& last) {
  tokens_.clear();
  runs_.clear();
  std::vector<Pending*> taken;
  for (Pending& each : pending) {
    const auto used = static_cast<int64_t>(tokens_.size());
    if (used == tokens_per_pass_) break;
    const auto piece = next_piece(each, tokens_per_pass_ - used);
    Sequence& sequence = *each.feed->sequence;
    if (sequence.ended_) sequence.cache_.clear();
    const auto count = static_cast<int64_t>(piece.size());
    sequence.cache_.reserve(sequence.cache_.length() + static_cast<int64_t>(each.rest().size()));
    runs_.push_back({&sequence.cache_, used, count});
    tokens_.insert(tokens_.end(), piece.begin(), piece.end());
    each.done += piece.size();
    sequence.num_tokens_ += count;
    sequence.ended_ = document_end_ && piece.back() == *document_end_;
    taken.push_back(&each);
  }
  const auto rows = static_cast<int64_t>(tokens_.size());
  model::Batch batch;
  batch.num_sequences = 1;
  batch.seq_len = rows;
  batch.runs = runs_;
  scratch_.reset();
  const TensorView tokens = scratch_.take(DType::i32, {rows});
  upload(tokens_.data(), tokens, stream_);
  const TensorView hidden = stage_.forward_hidden(ctx_, batch, tokens);
  std::vector<TensorView> ends, to;
  for (size_t i = 0; i < runs_.size(); ++i) {
    const model::SequenceRun& run = runs_[i];
    run.sequence->advance(run.count);
    if (taken[i]->feed->each)
      show_each(*taken[i], static_cast<int64_t>(taken[i]->done) - run.count,
                hidden.slice(0, run.begin, run.begin + run.count));
    if (!taken[i]->rest().empty()) continue;
    const auto row = static_cast<int64_t>(taken[i]->index), end = run.begin + run.count;
    ends.push_back(hidden.slice(0, end - 1, end));
    to.push_back(last.slice(0, row, row + 1));
  }
  ops::copy_rows(ctx_, {ends, to});
  std::erase_if(pending, [](const Pending& each) { return each.rest().empty(); });
}

// A few rows at a time: all of a prompt's logits would be large.
void Decoder::show_each(const Pending& pending, int64_t first, const TensorView& hidden) {
  const int64_t rows = hidden.size(0), most = std::max<int64_t>(1, (int64_t{1} << 22) / config_.vocab_size);
  const ArenaScope scope(scratch_);
  const TensorView room = scratch_.take(accumulation_dtype(dtype_), {std::min(rows, most), config_.vocab_size});
  for (int64_t begin = 0; begin < rows; begin += most) {
    const int64_t end = std::min(rows, begin + most);
    const TensorView logits = room.slice(0, 0, end - begin);
    ops::linear(ctx_, hidden.slice(0, begin, end), stage_.head_weight(), logits);
    pending.feed->each(first + begin, HostCopy(logits, stream_).view());
  }
}

TensorView Decoder::feed(std::span<const Feed> feeds) {
  results_.reset();
  const auto count = static_cast<int64_t>(feeds.size());
  const TensorView last = results_.take(dtype_, {count, config_.hidden_size});
  const TensorView logits = results_.take(accumulation_dtype(dtype_), {count, config_.vocab_size});
  std::vector<Pending> pending;
  for (size_t i = 0; i < feeds.size(); ++i) {
    LAMINA_CHECK(!feeds[i].tokens.empty(), "feed {} has no token", i);
    for (const int32_t token : feeds[i].tokens)
      LAMINA_CHECK(token >= 0 && token < config_.vocab_size, "token {} of {}", token, config_.vocab_size);
    pending.push_back({&feeds[i], i});
  }
  while (!pending.empty()) pass(pending, last);
  if (count > 0) ops::linear(ctx_, last, stage_.head_weight(), logits);
  return logits_.emplace(logits, stream_).view();
}

}  // namespace lamina::inference
