// Requests that come from many threads and are decoded together by one. Each waits until it has a place in the batch, joins between
// two passes of the model and leaves when its texts have ended or nobody wants them any more.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "inference/generator.h"

namespace lamina::inference {

class Batcher {
  struct State;

 public:
  struct Limits {
    int64_t sequences = 32;  // decoded at a time; a request has one per sample
    int64_t waiting = 64;    // clients of whose requests some wait
  };
  // What a client asked for at once. Destroyed before its end it gives its places back.
  class Ticket {
   public:
    Ticket(Batcher& batcher, std::shared_ptr<State> state) : batcher_(batcher), state_(std::move(state)) {}
    ~Ticket() { batcher_.give_up(*state_); }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    // What has come since the last call. Waits until there is something, all has ended, or `patience` is over. TokenEvent::request
    // counts the requests of the ticket. Error when the computing thread can't go on with them.
    std::vector<TokenEvent> take(std::chrono::milliseconds patience) { return batcher_.take(*state_, patience); }
    bool has_ended() const { return batcher_.has_ended(*state_); }  // and all of it was taken

   private:
    Batcher& batcher_;
    std::shared_ptr<State> state_;
  };
  struct Load {
    int64_t sequences = 0;  // in the batch, or about to join it
    int64_t waiting = 0;    // clients of whose requests some wait
  };

  // Both must outlive the batcher, which must outlive its tickets.
  Batcher(Decoder& decoder, const Tokenizer& tokenizer, const Limits& limits);

  // Any thread. Null when too many wait, or after close(). Each request has at most `limits.sequences` samples, and the clients' take
  // turns, so that one with many does not hold up the others.
  std::unique_ptr<Ticket> submit(std::vector<Request> requests);
  void close();
  bool is_closed() const;
  Load load() const;

  // The thread that computes. One pass; waits up to `patience` for something to do. False when there was nothing.
  bool step(std::chrono::milliseconds patience);
  void fail_all(const std::string& reason);  // the tickets' owners get it as an Error

 private:
  struct State {
    std::deque<Request> waiting;
    int64_t begun = 0;       // requests
    int64_t unfinished = 0;  // samples
    bool is_abandoned = false;
    std::vector<TokenEvent> events;
    std::string failure;
    std::condition_variable changed;
  };
  struct Joining {
    std::shared_ptr<State> state;
    int64_t index;
    Request request;
  };
  struct Running {
    std::shared_ptr<State> state;
    int64_t index, unfinished;
  };
  std::vector<TokenEvent> take(State& state, std::chrono::milliseconds patience);
  bool has_ended(const State& state) const;
  void give_up(State& state);
  // With the lock.
  void admit();
  void leave_abandoned();
  void deliver(std::vector<TokenEvent>& events);
  static void fail(State& state, const std::string& reason);

  Decoder& decoder_;
  const Tokenizer& tokenizer_;
  const Limits limits_;
  std::optional<Generator> generator_;  // the computing thread's
  std::map<int64_t, Running> running_;  // the same; by the generator's number

  mutable std::mutex mutex_;  // for what follows, and all states
  std::condition_variable has_work_;
  std::deque<std::shared_ptr<State>> queue_;
  std::vector<Joining> joining_;
  int64_t places_ = 0;  // taken
  bool is_closed_ = false;
};

}  // namespace lamina::inference
