// The block summaries that one rank holds, and the accumulators of their gradients: one copy of each for all its chunks
// (BlockTransport::cached), or one per chunk (full). What comes and goes is decided by BlockRoutes; the cache counts, so that
// a gradient that is lost, or added twice, is an error and not a slightly wrong model.
//
// Values are in the compute dtype, gradients in its accumulation dtype: each depositor adds in place, in the order of the
// schedule, which is the same in every run of a layout.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "core/device/buffer_pool.h"
#include "core/ops/op.h"
#include "parallel/pipeline/block_routes.h"

namespace lamina::pipeline {

class BlockCache {
 public:
  // max_elements: of one summary, tokens x hidden_size. `routes` must outlive the cache.
  BlockCache(const BlockRoutes& routes, int pp_rank, int64_t max_elements, DType dtype, Device device,
             MemoryLedger* ledger);

  // Before a pass over num_microbatches; everything of the pass before must be gone. shape: [tokens, hidden_size].
  void begin(int num_microbatches, const Shape& shape);
  void check_empty() const;  // throws InternalError naming what was left behind

  // Values. `chunk` is the one that brings, reads or sends; with `cached` all chunks of the rank share a copy.
  TensorView put(int chunk, int microbatch, int summary);  // uninitialised room for a copy that must not be there yet
  // The same for one that a message brings: room is reserved when the receive is posted, the summary is held from arrived().
  TensorView reserve(int chunk, int microbatch, int summary);
  void arrived(int chunk, int microbatch, int summary);
  TensorView value(int chunk, int microbatch, int summary) const;
  void pin(int chunk, int microbatch, int summary);  // a message reads it: release() takes effect after unpin()
  void unpin(int chunk, int microbatch, int summary);
  void release(int chunk, int microbatch, int summary);
  void release_all(int microbatch);  // forward-only passes

  // Gradients. A depositor is a chunk of this rank that reads the summary, or a hop on which this rank sent it. Every
  // depositor asks once or more for the accumulator and adds to it as `mode` says, then sets mode to accumulate.
  struct Accumulator {
    TensorView gradient;
    ops::GradMode* mode;
  };
  Accumulator deposit_of_reader(int chunk, int microbatch, int summary);
  Accumulator deposit_of_hop(int chunk, int microbatch, int summary);
  // The sum over all depositors. LAMINA_CHECKs that each of them was there, once. Empty when there is none to wait for.
  TensorView complete_gradient(int chunk, int microbatch, int summary) const;
  void drop_gradient(int chunk, int microbatch, int summary);

  int num_held() const { return held_; }                  // values
  int peak_held() const { return peak_; }                 // since begin()
  int num_buffers() const { return values_.peak_out(); }  // those reserved for messages included, since ever

 private:
  struct Entry {
    void* value = nullptr;
    void* gradient = nullptr;
    ops::GradMode mode = ops::GradMode::overwrite;
    int pins = 0;
    bool released = false, held = false;
    std::vector<int> depositors;  // chunk, or num_chunks + chunk for its hop
  };
  Entry& entry(int chunk, int microbatch, int summary);
  const Entry& entry(int chunk, int microbatch, int summary) const;
  size_t index(int chunk, int microbatch, int summary) const;
  int copy_of(int chunk) const;  // which of the rank's copies this chunk uses
  Accumulator deposit(int depositor, int chunk, int microbatch, int summary);
  void free_value(Entry& entry);
  void count(Entry& entry);
  TensorView view(void* data, DType dtype) const { return {data, dtype, shape_, device_}; }

  const BlockRoutes& routes_;
  int pp_rank_, num_summaries_, num_copies_;
  DType dtype_, acc_;
  Device device_;
  BufferPool values_, gradients_;
  Shape shape_;
  int num_microbatches_ = 0, held_ = 0, peak_ = 0;
  std::vector<Entry> entries_;                            // [microbatch][copy][summary]
  std::map<std::pair<int, int>, int> expected_deposits_;  // (copy, summary)
};

}  // namespace lamina::pipeline
