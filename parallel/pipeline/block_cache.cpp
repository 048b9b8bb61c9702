#include "parallel/pipeline/block_cache.h"

#include <algorithm>

#include "core/base/error.h"

namespace lamina::pipeline {

BlockCache::BlockCache(const BlockRoutes& routes, int pp_rank, int64_t max_elements, DType dtype, Device device,
                       MemoryLedger* ledger)
    : routes_(routes),
      pp_rank_(pp_rank),
      num_summaries_(0),
      num_copies_(routes.transport == BlockTransport::full ? static_cast<int>(routes.chunks.size()) / routes.num_ranks
                                                           : 1),
      dtype_(dtype),
      acc_(accumulation_dtype(dtype)),
      device_(device),
      values_(max_elements * size_of(dtype), device, ledger, "block summaries"),
      gradients_(max_elements * size_of(acc_), device, ledger, "block summary gradients") {
  for (const ChunkRoutes& chunk : routes.chunks)
    for (const std::vector<int>* list : {&chunk.reads, &chunk.sent})
      for (int summary : *list) num_summaries_ = std::max(num_summaries_, summary + 1);
  for (int c = pp_rank; c < static_cast<int>(routes.chunks.size()); c += routes.num_ranks) {
    const ChunkRoutes& chunk = routes.chunks[static_cast<size_t>(c)];
    for (int summary : chunk.reads) ++expected_deposits_[{copy_of(c), summary}];
    for (int summary : chunk.sent) ++expected_deposits_[{copy_of(c), summary}];
  }
}

int BlockCache::copy_of(int chunk) const {
  LAMINA_CHECK(chunk % routes_.num_ranks == pp_rank_, "chunk {} on rank {} of {}", chunk, pp_rank_, routes_.num_ranks);
  return num_copies_ == 1 ? 0 : chunk / routes_.num_ranks;
}

size_t BlockCache::index(int chunk, int microbatch, int summary) const {
  LAMINA_CHECK(microbatch >= 0 && microbatch < num_microbatches_ && summary >= 0 && summary < num_summaries_,
               "summary {} of micro-batch {}: there are {} and {}", summary, microbatch, num_summaries_,
               num_microbatches_);
  return (static_cast<size_t>(microbatch) * static_cast<size_t>(num_copies_) + static_cast<size_t>(copy_of(chunk))) *
             static_cast<size_t>(num_summaries_) +
         static_cast<size_t>(summary);
}

BlockCache::Entry& BlockCache::entry(int chunk, int microbatch, int summary) {
  return entries_[index(chunk, microbatch, summary)];
}
const BlockCache::Entry& BlockCache::entry(int chunk, int microbatch, int summary) const {
  return entries_[index(chunk, microbatch, summary)];
}

void BlockCache::begin(int num_microbatches, const Shape& shape) {
  check_empty();
  LAMINA_CHECK(shape.num_elements() * size_of(dtype_) <= values_.num_bytes(), "summaries {}", shape.to_string());
  num_microbatches_ = num_microbatches;
  shape_ = shape;
  peak_ = 0;
  entries_.resize(static_cast<size_t>(num_microbatches) * static_cast<size_t>(num_copies_) *
                  static_cast<size_t>(num_summaries_));
  for (Entry& entry : entries_) {
    entry.released = false;
    entry.mode = ops::GradMode::overwrite;
    entry.depositors.clear();
  }
}

void BlockCache::check_empty() const {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const size_t per_microbatch = static_cast<size_t>(num_copies_) * static_cast<size_t>(num_summaries_);
    LAMINA_CHECK(entry.value == nullptr && entry.gradient == nullptr && entry.pins == 0,
                 "summary {} of micro-batch {} left a {} behind on pipeline rank {}",
                 i % static_cast<size_t>(num_summaries_), i / per_microbatch,
                 entry.gradient != nullptr ? "gradient" : "value", pp_rank_);
  }
}

TensorView BlockCache::reserve(int chunk, int microbatch, int summary) {
  Entry& e = entry(chunk, microbatch, summary);
  LAMINA_CHECK(e.value == nullptr, "summary {} of micro-batch {} is on pipeline rank {} already (chunk {})", summary,
               microbatch, pp_rank_, chunk);
  e.value = values_.take();
  e.released = e.held = false;
  return view(e.value, dtype_);
}

void BlockCache::count(Entry& e) {
  e.held = true;
  peak_ = std::max(peak_, ++held_);
}

TensorView BlockCache::put(int chunk, int microbatch, int summary) {
  const TensorView room = reserve(chunk, microbatch, summary);
  count(entry(chunk, microbatch, summary));
  return room;
}

void BlockCache::arrived(int chunk, int microbatch, int summary) {
  Entry& e = entry(chunk, microbatch, summary);
  LAMINA_CHECK(e.value != nullptr && !e.held, "summary {} of micro-batch {} arrived in chunk {} unexpectedly", summary,
               microbatch, chunk);
  count(e);
}

TensorView BlockCache::value(int chunk, int microbatch, int summary) const {
  const Entry& e = entry(chunk, microbatch, summary);
  LAMINA_CHECK(e.value != nullptr && e.held, "summary {} of micro-batch {} is not on pipeline rank {} (chunk {})",
               summary, microbatch, pp_rank_, chunk);
  return view(e.value, dtype_);
}

void BlockCache::free_value(Entry& e) {
  values_.give(e.value);
  e.value = nullptr;
  held_ -= e.held ? 1 : 0;
}

void BlockCache::pin(int chunk, int microbatch, int summary) {
  Entry& e = entry(chunk, microbatch, summary);
  LAMINA_CHECK(e.value != nullptr, "summary {} of micro-batch {} is sent by chunk {}, which does not hold it", summary,
               microbatch, chunk);
  ++e.pins;
}

void BlockCache::unpin(int chunk, int microbatch, int summary) {
  Entry& e = entry(chunk, microbatch, summary);
  LAMINA_CHECK(e.pins > 0, "summary {} of micro-batch {}", summary, microbatch);
  if (--e.pins == 0 && e.released) free_value(e);
}

void BlockCache::release(int chunk, int microbatch, int summary) {
  Entry& e = entry(chunk, microbatch, summary);
  LAMINA_CHECK(e.value != nullptr && !e.released, "summary {} of micro-batch {} is released twice (chunk {})", summary,
               microbatch, chunk);
  e.released = true;
  if (e.pins == 0) free_value(e);
}

void BlockCache::release_all(int microbatch) {
  const auto per_microbatch = static_cast<size_t>(num_copies_) * static_cast<size_t>(num_summaries_);
  for (size_t i = 0; i < per_microbatch; ++i) {
    Entry& e = entries_[static_cast<size_t>(microbatch) * per_microbatch + i];
    if (e.value == nullptr || e.released) continue;
    e.released = true;
    if (e.pins == 0) free_value(e);
  }
}

BlockCache::Accumulator BlockCache::deposit(int depositor, int chunk, int microbatch, int summary) {
  Entry& e = entry(chunk, microbatch, summary);
  if (e.gradient == nullptr) {
    e.gradient = gradients_.take();
    e.mode = ops::GradMode::overwrite;
  }
  if (e.depositors.empty() || e.depositors.back() != depositor) e.depositors.push_back(depositor);
  return {view(e.gradient, acc_), &e.mode};
}

BlockCache::Accumulator BlockCache::deposit_of_reader(int chunk, int microbatch, int summary) {
  return deposit(chunk, chunk, microbatch, summary);
}

BlockCache::Accumulator BlockCache::deposit_of_hop(int chunk, int microbatch, int summary) {
  const int depositor = static_cast<int>(routes_.chunks.size()) + chunk;
  const std::vector<int>& seen = entry(chunk, microbatch, summary).depositors;
  LAMINA_CHECK(std::find(seen.begin(), seen.end(), depositor) == seen.end(),
               "the gradient of summary {}, micro-batch {}, came back twice on the hop out of chunk {}", summary,
               microbatch, chunk);
  return deposit(depositor, chunk, microbatch, summary);
}

TensorView BlockCache::complete_gradient(int chunk, int microbatch, int summary) const {
  const Entry& e = entry(chunk, microbatch, summary);
  const auto found = expected_deposits_.find({copy_of(chunk), summary});
  const int expected = found == expected_deposits_.end() ? 0 : found->second;
  LAMINA_CHECK(static_cast<int>(e.depositors.size()) == expected,
               "the gradient of summary {}, micro-batch {}, in chunk {} has {} of its {} parts", summary, microbatch,
               chunk, e.depositors.size(), expected);
  return expected == 0 ? TensorView() : view(e.gradient, acc_);
}

void BlockCache::drop_gradient(int chunk, int microbatch, int summary) {
  Entry& e = entry(chunk, microbatch, summary);
  if (e.gradient == nullptr) return;
  gradients_.give(e.gradient);
  e.gradient = nullptr;
}

}  // namespace lamina::pipeline
