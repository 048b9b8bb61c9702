#include "parallel/comm/traced.h"

#include <utility>

namespace lamina::comm {
namespace {

class Traced final : public Request::State {
 public:
  Traced(Request request, trace::Recorder& recorder, int64_t span)
      : request_(std::move(request)), recorder_(recorder), span_(span) {}
  // The outer request is destroyed without waiting only when it is given up.
  ~Traced() override {
    if (done_) return;
    request_.give_up();
    recorder_.close(span_);
  }
  bool test() override {
    if (!done_ && request_.test()) finish();
    return done_;
  }
  void wait() override {
    if (done_) return;
    request_.wait();
    finish();
  }

 private:
  void finish() {
    done_ = true;
    recorder_.close(span_);
  }

  Request request_;
  trace::Recorder& recorder_;
  int64_t span_;
  bool done_ = false;
};

}  // namespace

Request traced(Request request, trace::Recorder& recorder, int64_t span) {
  return Request(std::make_unique<Traced>(std::move(request), recorder, span));
}

void wait_traced(Request& request, trace::Recorder* recorder, const char* name) {
  const trace::Scope scope(recorder, trace::Track::waiting, name);
  request.wait();
}

}  // namespace lamina::comm
