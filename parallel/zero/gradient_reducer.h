// Gradients are summed over the data-parallel ranks bucket by bucket while the backward pass still runs, each rank keeping
// the part it owns; after the optimizer the parameters are gathered the same way. In place in the flat buffers.
//
// Both issue their collectives in an order that is the same on every rank, as long as the calls are made in the same order
// on every rank: no call's effect on the order depends on timing.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/trace.h"
#include "parallel/comm/communicator.h"
#include "parallel/zero/shard_map.h"

namespace lamina::zero {

class GradientReducer {
 public:
  // `comm`, `map` and `stream` must outlive it. `gradients` is the flat buffer, [map.num_padded]. uses[p]: how often
  // parameter_ready(p) is called per step (a tied parameter has several); empty: once each; 0: ready from the start.
  GradientReducer(comm::Communicator& comm, const ShardMap& map, TensorView gradients, Stream& stream,
                  std::vector<int> uses = {});

  void begin_step();
  // The parameter's gradient (or one of its uses' share) is final. Launches the buckets that are complete, from the last
  // bucket to the first; a bucket that is complete early waits for its turn. Blocks while max_in_flight are under way,
  // which bounds the receive memory.
  void parameter_ready(int parameter);
  void progress();  // cheap
  // Returns when the owned interval of every bucket holds the sum; the rest of the buffer keeps this rank's own values.
  void finish();

  static constexpr size_t max_in_flight = 4;

  // Buckets in flight and waits for them are recorded there. Null: nothing is.
  void set_trace(trace::Recorder* trace) { trace_ = trace; }

 private:
  void launch_complete_buckets();
  void launch(int bucket);
  [[noreturn]] void report_missing() const;

  comm::Communicator& comm_;
  const ShardMap& map_;
  TensorView gradients_;
  Stream& stream_;
  std::vector<int> uses_;
  std::vector<int> remaining_uses_;        // [parameter], this step
  std::vector<int> remaining_parameters_;  // [bucket], this step
  int next_bucket_ = -1;                   // to be launched; -1: all were
  bool in_step_ = false;
  std::vector<comm::Request> in_flight_;  // oldest first
  trace::Recorder* trace_ = nullptr;
};

class ParameterGatherer {
 public:
  // `comm`, `map` and `stream` must outlive it. `parameters` is the flat buffer, [map.num_padded].
  ParameterGatherer(comm::Communicator& comm, const ShardMap& map, TensorView parameters, Stream& stream);

  // From here on the owned intervals are read and the others written.
  void start();
  void wait_for_bucket(int bucket);  // its parameters may be read
  void progress();                   // cheap
  void finish();

  void set_trace(trace::Recorder* trace) { trace_ = trace; }  // as above

 private:
  comm::Communicator& comm_;
  const ShardMap& map_;
  TensorView parameters_;
  Stream& stream_;
  std::vector<comm::Request> requests_;  // [bucket]
  bool started_ = false;
  trace::Recorder* trace_ = nullptr;
};

}  // namespace lamina::zero
