#include "parallel/zero/gradient_reducer.h"

#include <utility>

#include "core/base/error.h"
#include "parallel/comm/traced.h"

namespace lamina::zero {

namespace {

void check_buffer(const comm::Communicator& comm, const ShardMap& map, const TensorView& flat) {
  LAMINA_CHECK(map.dp_size == comm.size(), "a shard map for {} ranks, a group of {}", map.dp_size, comm.size());
  LAMINA_CHECK(flat.is_contiguous() && flat.num_elements() == map.num_padded, "a flat buffer {} for {} elements",
               flat.to_string(), map.num_padded);
}

TensorView part(const TensorView& flat, const Interval& interval) {
  return {
      static_cast<char*>(flat.data) + interval.begin * size_of(flat.dtype), flat.dtype, {interval.size()}, flat.device};
}

// A bucket's time in flight; bytes: what this rank sends.
int64_t open_span(trace::Recorder& trace, const char* name, int bucket, int64_t bytes) {
  trace::Span span;
  span.track = trace::Track::data_parallel;
  span.name = name;
  span.bucket = bucket;
  span.bytes = bytes;
  return trace.open(span);
}

}  // namespace

GradientReducer::GradientReducer(comm::Communicator& comm, const ShardMap& map, TensorView gradients, Stream& stream,
                                 std::vector<int> uses)
    : comm_(comm), map_(map), gradients_(gradients), stream_(stream), uses_(std::move(uses)) {
  check_buffer(comm, map, gradients);
  if (uses_.empty()) uses_.assign(map.offsets.size(), 1);
  LAMINA_CHECK(uses_.size() == map.offsets.size(), "uses of {} parameters, {} in the map", uses_.size(),
               map.offsets.size());
  for (int count : uses_) LAMINA_CHECK(count >= 0, "{} uses", count);
}

void GradientReducer::begin_step() {
  LAMINA_CHECK(!in_step_, "the step before is not finished");
  in_step_ = true;
  remaining_uses_ = uses_;
  remaining_parameters_.assign(map_.buckets.size(), 0);
  for (size_t b = 0; b < map_.buckets.size(); ++b)
    for (int p = map_.buckets[b].first_parameter; p < map_.buckets[b].end_parameter; ++p)
      remaining_parameters_[b] += uses_[static_cast<size_t>(p)] > 0 ? 1 : 0;
  next_bucket_ = static_cast<int>(map_.buckets.size()) - 1;
  launch_complete_buckets();
}

void GradientReducer::parameter_ready(int parameter) {
  LAMINA_CHECK(in_step_, "parameter {} outside a step", parameter);
  LAMINA_CHECK(parameter >= 0 && parameter < static_cast<int>(remaining_uses_.size()), "parameter {} of {}", parameter,
               remaining_uses_.size());
  int& remaining = remaining_uses_[static_cast<size_t>(parameter)];
  LAMINA_CHECK(remaining > 0, "parameter {} is reported more often than its {} uses", parameter,
               uses_[static_cast<size_t>(parameter)]);
  if (--remaining > 0) return;
  if (--remaining_parameters_[static_cast<size_t>(map_.bucket_of(parameter))] == 0) launch_complete_buckets();
}

void GradientReducer::launch_complete_buckets() {
  while (next_bucket_ >= 0 && remaining_parameters_[static_cast<size_t>(next_bucket_)] == 0) launch(next_bucket_--);
}

void GradientReducer::launch(int bucket) {
  if (in_flight_.size() == max_in_flight) {
    comm::wait_traced(in_flight_.front(), trace_, "wait for reductions");
    in_flight_.erase(in_flight_.begin());
  }
  const TensorView all = part(gradients_, map_.buckets[static_cast<size_t>(bucket)].elements);
  const TensorView own = part(gradients_, map_.owned(bucket, comm_.rank()));
  const int64_t span = trace_ == nullptr ? 0 : open_span(*trace_, "reduce", bucket, all.num_bytes() - own.num_bytes());
  comm::Request request = comm_.reduce_scatter(all, own, comm::ReduceOp::sum, stream_);
  in_flight_.push_back(trace_ == nullptr ? std::move(request) : comm::traced(std::move(request), *trace_, span));
}

void GradientReducer::progress() {
  for (comm::Request& request : in_flight_) request.test();
}

void GradientReducer::report_missing() const {
  int missing = 0, first = -1;
  for (size_t p = 0; p < remaining_uses_.size(); ++p) {
    if (remaining_uses_[p] == 0) continue;
    if (first < 0) first = static_cast<int>(p);
    ++missing;
  }
  throw InternalError(fmt::format(
      "{} of {} parameters were not reported before finish(), the first is {} ({} of {} uses)", missing,
      remaining_uses_.size(), first, uses_[static_cast<size_t>(first)] - remaining_uses_[static_cast<size_t>(first)],
      uses_[static_cast<size_t>(first)]));
}

void GradientReducer::finish() {
  LAMINA_CHECK(in_step_, "finish() outside a step");
  if (next_bucket_ >= 0) report_missing();
  {
    const trace::Scope scope(trace_, trace::Track::waiting, "wait for reductions");
    for (comm::Request& request : in_flight_) request.wait();
  }
  in_flight_.clear();
  in_step_ = false;
}

ParameterGatherer::ParameterGatherer(comm::Communicator& comm, const ShardMap& map, TensorView parameters,
                                     Stream& stream)
    : comm_(comm), map_(map), parameters_(parameters), stream_(stream) {
  check_buffer(comm, map, parameters);
}

void ParameterGatherer::start() {
  LAMINA_CHECK(!started_, "the gathering before is not finished");
  started_ = true;
  requests_.clear();
  for (size_t b = 0; b < map_.buckets.size(); ++b) {
    const auto bucket = static_cast<int>(b);
    const TensorView own = part(parameters_, map_.owned(bucket, comm_.rank()));
    const TensorView all = part(parameters_, map_.buckets[b].elements);
    const int64_t span =
        trace_ == nullptr ? 0 : open_span(*trace_, "gather", bucket, own.num_bytes() * (comm_.size() - 1));
    comm::Request request = comm_.all_gather(own, all, stream_);
    requests_.push_back(trace_ == nullptr ? std::move(request) : comm::traced(std::move(request), *trace_, span));
  }
}

void ParameterGatherer::wait_for_bucket(int bucket) {
  LAMINA_CHECK(started_, "bucket {} is not being gathered", bucket);
  requests_.at(static_cast<size_t>(bucket)).wait();
}

void ParameterGatherer::progress() {
  for (comm::Request& request : requests_) request.test();
}

void ParameterGatherer::finish() {
  LAMINA_CHECK(started_, "finish() before start()");
  const trace::Scope scope(trace_, trace::Track::waiting, "wait for gathers");
  for (comm::Request& request : requests_) request.wait();
  started_ = false;
}

}  // namespace lamina::zero
