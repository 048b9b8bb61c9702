#include "inference/batcher.h"

#include <algorithm>
#include <new>

#include "core/base/error.h"

namespace lamina::inference {

Batcher::Batcher(Decoder& decoder, const Tokenizer& tokenizer, const Limits& limits)
    : decoder_(decoder), tokenizer_(tokenizer), limits_(limits) {
  LAMINA_CHECK(limits.sequences > 0 && limits.waiting >= 0, "{} sequences, {} waiting", limits.sequences,
               limits.waiting);
  generator_.emplace(decoder_, tokenizer_);
}

std::unique_ptr<Batcher::Ticket> Batcher::submit(std::vector<Request> requests) {
  LAMINA_CHECK(!requests.empty(), "no request");
  auto state = std::make_shared<State>();
  for (Request& request : requests) {
    LAMINA_CHECK(request.num_samples <= limits_.sequences, "{} samples in {} places", request.num_samples,
                 limits_.sequences);
    state->unfinished += request.num_samples;
    state->waiting.push_back(std::move(request));
  }
  const std::scoped_lock lock(mutex_);
  if (is_closed_) return nullptr;
  queue_.push_back(state);
  admit();
  // What has no place at all must be among those that may wait.
  if (state->begun == 0 && static_cast<int64_t>(queue_.size()) > limits_.waiting) {
    std::erase(queue_, state);
    return nullptr;
  }
  has_work_.notify_one();
  return std::make_unique<Ticket>(*this, std::move(state));
}

void Batcher::close() {
  const std::scoped_lock lock(mutex_);
  is_closed_ = true;
}

bool Batcher::is_closed() const {
  const std::scoped_lock lock(mutex_);
  return is_closed_;
}

Batcher::Load Batcher::load() const {
  const std::scoped_lock lock(mutex_);
  return {places_, static_cast<int64_t>(queue_.size())};
}

// In turns; whoever is first waits for enough places, so that no request waits for ever.
void Batcher::admit() {
  while (!queue_.empty()) {
    const std::shared_ptr<State> state = queue_.front();
    const int64_t samples = state->waiting.front().num_samples;
    if (places_ + samples > limits_.sequences) return;
    places_ += samples;
    queue_.pop_front();
    joining_.push_back({state, state->begun++, std::move(state->waiting.front())});
    state->waiting.pop_front();
    if (!state->waiting.empty()) queue_.push_back(state);
  }
}

std::vector<TokenEvent> Batcher::take(State& state, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  state.changed.wait_for(lock, patience,
                         [&] { return !state.events.empty() || state.unfinished == 0 || !state.failure.empty(); });
  if (!state.failure.empty()) throw Error("{}", state.failure);
  return std::exchange(state.events, {});
}

bool Batcher::has_ended(const State& state) const {
  const std::scoped_lock lock(mutex_);
  return state.unfinished == 0 && state.events.empty();
}

void Batcher::give_up(State& state) {
  const std::scoped_lock lock(mutex_);
  if (state.is_abandoned || state.unfinished == 0) return;
  state.is_abandoned = true;  // the computing thread takes out what runs
  std::erase_if(queue_, [&](const auto& each) { return each.get() == &state; });
  std::erase_if(joining_, [&](const Joining& each) {
    if (each.state.get() != &state) return false;
    places_ -= each.request.num_samples;
    return true;
  });
  admit();
  has_work_.notify_one();
}

void Batcher::leave_abandoned() {
  std::erase_if(running_, [&](const auto& entry) {
    if (!entry.second.state->is_abandoned) return false;
    generator_->cancel(entry.first);
    places_ -= entry.second.unfinished;
    return true;
  });
}

void Batcher::deliver(std::vector<TokenEvent>& events) {
  for (TokenEvent& event : events) {
    const auto found = running_.find(event.request);
    Running& running = found->second;
    State& state = *running.state;
    event.request = running.index;
    if (event.finish != Finish::no) {
      --places_;
      --state.unfinished;
      --running.unfinished;
    }
    state.events.push_back(std::move(event));
    state.changed.notify_all();
    if (running.unfinished == 0) running_.erase(found);
  }
}

void Batcher::fail(State& state, const std::string& reason) {
  state.failure = reason;
  state.unfinished = 0;
  state.waiting.clear();
  state.changed.notify_all();
}

void Batcher::fail_all(const std::string& reason) {
  const std::scoped_lock lock(mutex_);
  for (const auto& [number, running] : running_) fail(*running.state, reason);
  for (const Joining& joining : joining_) fail(*joining.state, reason);
  for (const auto& state : queue_) fail(*state, reason);
  running_.clear();
  joining_.clear();
  queue_.clear();
  places_ = 0;
  generator_.emplace(decoder_, tokenizer_);
}

bool Batcher::step(std::chrono::milliseconds patience) {
  {
    std::unique_lock lock(mutex_);
    if (running_.empty()) has_work_.wait_for(lock, patience, [&] { return !joining_.empty(); });
    leave_abandoned();
    admit();
    for (Joining& each : joining_) {
      const int64_t samples = each.request.num_samples;
      running_.emplace(generator_->add(std::move(each.request)), Running{each.state, each.index, samples});
    }
    joining_.clear();
  }
  if (running_.empty()) return false;
  std::vector<TokenEvent> events;
  try {
    events = generator_->step();
  } catch (const Error& failure) {  // of memory: the caches may be half written
    fail_all(failure.what());
    return true;
  } catch (const std::bad_alloc&) {
    fail_all("out of memory");
    return true;
  }
  const std::scoped_lock lock(mutex_);
  deliver(events);
  leave_abandoned();
  admit();
  return true;
}

}  // namespace lamina::inference
