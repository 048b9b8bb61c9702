#include "core/base/trace.h"

#include "core/base/error.h"

namespace lamina::trace {
namespace {

constexpr int64_t dropped = -1;
constexpr double still_open = -1;  // as an end

}  // namespace

Recorder::Recorder(Clock::time_point origin, size_t capacity) : origin_(origin), capacity_(capacity) {
  spans_.reserve(capacity);
}

int64_t Recorder::open(Span span) {
  if (spans_.size() == capacity_) {
    ++num_dropped_;
    return dropped;
  }
  span.begin = now();
  span.end = still_open;
  spans_.push_back(span);
  ++num_open_;
  return static_cast<int64_t>(spans_.size()) - 1;
}

void Recorder::close(int64_t id) {
  if (id == dropped) return;
  LAMINA_CHECK(id >= 0 && id < static_cast<int64_t>(spans_.size()), "span {} of {}", id, spans_.size());
  Span& span = spans_[static_cast<size_t>(id)];
  LAMINA_CHECK(span.end == still_open, "span {} ({}) is closed twice", id, span.name);
  span.end = now();
  --num_open_;
}

void Recorder::add(const Span& span) {
  LAMINA_CHECK(span.end >= span.begin, "{} ends at {}, before it begins at {}", span.name, span.end, span.begin);
  if (spans_.size() == capacity_) {
    ++num_dropped_;
    return;
  }
  spans_.push_back(span);
}

const std::vector<Span>& Recorder::spans() const {
  LAMINA_CHECK(num_open_ == 0, "{} of {} spans are still open", num_open_, spans_.size());
  return spans_;
}

Scope::Scope(Recorder* recorder, Track track, const char* name) : recorder_(recorder) {
  if (recorder_ == nullptr) return;
  Span span;
  span.track = track;
  span.name = name;
  id_ = recorder_->open(span);
}

Scope::~Scope() {
  if (recorder_ != nullptr) recorder_->close(id_);
}

}  // namespace lamina::trace
