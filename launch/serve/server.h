// OpenAI's completions endpoint over HTTP. Each connection has a thread; the texts come from a batch that one other thread computes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "inference/batcher.h"
#include "launch/serve/completion_request.h"

namespace httplib {
class ContentReader;
class Server;
struct Request;
struct Response;
}  // namespace httplib

namespace lamina::serve {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;  // 0: any that is free
  std::string model;
  int64_t max_body_bytes = 8 << 20;
  RequestLimits limits;
  inference::Batcher::Limits batch;
  int64_t max_seconds = 600;  // of a request, its waiting included
};

class Server {
 public:
  // All must outlive the server.
  Server(const ServerOptions& options, const Tokenizer& tokenizer, inference::Batcher& batcher);
  ~Server();

  // Listens from here on and answers on threads of its own; returns the port. Error when the address can't be had.
  int start();
  // False once nobody can connect any more, though nobody asked for that.
  bool is_listening() const { return is_listening_; }
  bool is_answering() const { return num_answering_ > 0; }  // completions
  void stop();                                              // waits for the answers that are being written

 private:
  using Clock = std::chrono::steady_clock;

  void add_routes();
  void answer_completion(const httplib::Request& request, httplib::Response& response,
                         const httplib::ContentReader& reader);
  // Refuses what is no JSON, and more than may come: throws ApiError.
  std::string read_body(const httplib::Request& request, const httplib::Response& response,
                        const httplib::ContentReader& reader) const;
  nlohmann::ordered_json model_object() const;
  void list_models(httplib::Response& response) const;
  void show_model(const std::string& name, httplib::Response& response) const;
  void show_health(httplib::Response& response) const;

  const ServerOptions options_;
  const Tokenizer& tokenizer_;
  inference::Batcher& batcher_;
  const int64_t started_;  // seconds since 1970
  std::atomic<uint64_t> num_completions_ = 0;
  std::atomic<int64_t> num_answering_ = 0;
  std::atomic<bool> is_listening_ = false;
  int port_ = 0;
  std::unique_ptr<httplib::Server> http_;
  std::thread thread_;
};

}  // namespace lamina::serve
