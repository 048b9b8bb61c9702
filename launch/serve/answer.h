// The answer to one completion request, whole or as a stream of events, and the line that the log gets about a request.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "inference/batcher.h"
#include "launch/serve/client_socket.h"
#include "launch/serve/completion_response.h"

namespace lamina::serve {

// nginx's number for the log: there was nobody left to answer.
constexpr int client_closed_request = 499;

// Of the request that this thread works on. No text gets into it.
struct RequestRecord {
  static RequestRecord& current();
  void write(const std::string& what, int status);  // to the log

  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  std::optional<Usage> usage;
  std::string note;
};

// Counts while it lives.
class Answering {
 public:
  explicit Answering(std::atomic<int64_t>& count) : count_(count) { ++count_; }
  ~Answering() { --count_; }
  Answering(const Answering&) = delete;
  Answering& operator=(const Answering&) = delete;

 private:
  std::atomic<int64_t>& count_;
};

class CompletionAnswer {
 public:
  struct Origin {
    std::string id;
    int64_t created;  // seconds since 1970
    std::chrono::steady_clock::time_point deadline;
  };
  // The tokenizer must outlive it.
  CompletionAnswer(CompletionRequest request, const Tokenizer& tokenizer,
                   std::unique_ptr<inference::Batcher::Ticket> ticket, const ClientSocket& client,
                   const Origin& origin);

  const CompletionRequest& request() const { return request_; }
  // The JSON object; none when the client has hung up, which gives back its places. Throws ApiError.
  std::optional<nlohmann::ordered_json> whole();
  // Server-sent events up to "[DONE]", or to one with an error. False when the client has hung up, or `write` is false.
  bool stream(const std::function<bool(const std::string&)>& write);

 private:
  bool advance();  // false when the client has hung up
  bool stream_events(const std::function<bool(const std::string&)>& write);
  nlohmann::ordered_json object(const nlohmann::ordered_json& choices) const;
  void keep_best();
  void end_record(const std::string& note);

  const CompletionRequest request_;
  std::unique_ptr<inference::Batcher::Ticket> ticket_;
  const ClientSocket client_;
  const Origin origin_;
  std::vector<std::unique_ptr<Choice>> choices_;  // best_of of each prompt
  Usage usage_;
};

}  // namespace lamina::serve
