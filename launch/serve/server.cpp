#include "launch/serve/server.h"

#include <httplib.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <random>

#include "core/base/error.h"
#include "core/base/log.h"
#include "launch/serve/answer.h"

namespace lamina::serve {
namespace {

using nlohmann::ordered_json;

constexpr const char* json_type = "application/json";

void set_error(httplib::Response& response, const ApiError& error) {
  response.status = error.status;
  if (error.status == 429) response.set_header("Retry-After", "1");
  response.set_content(error.to_json().dump(), json_type);
}

// A path and a method come from outside: no line breaks in the log, and no end of it.
std::string printable(const std::string& text) {
  std::string out;
  for (const char c : text.substr(0, 60)) out += c > ' ' && c < 127 ? c : '?';
  return out;
}

// What is read after the refusal of a request, so that the next one of the connection is found.
void drain(const httplib::Request& request, const httplib::ContentReader& reader) {
  if (request.is_multipart_form_data())
    reader([](const auto&) { return true; }, [](const char*, size_t) { return true; });
  else if (request.has_header("Content-Length") || request.has_header("Transfer-Encoding"))
    reader([](const char*, size_t) { return true; });
}

ApiError unknown_path(const httplib::Request& request) {
  return {404,
          fmt::format("{} {}: no such address here; expected POST /v1/completions, GET /v1/models or GET /health",
                      request.method, printable(request.path)),
          {},
          "not_found"};
}

const char* allowed_method(const std::string& path) {
  if (path == "/v1/completions") return "POST";
  if (path == "/health" || path == "/v1/models" || path.starts_with("/v1/models/")) return "GET, HEAD";
  return nullptr;
}

void refuse_address(const httplib::Request& request, httplib::Response& response) {
  const char* allowed = allowed_method(request.path);
  if (!allowed) return set_error(response, unknown_path(request));
  response.set_header("Allow", allowed);
  set_error(response, {405,
                       fmt::format("{} {}: expected {}", request.method, printable(request.path), allowed),
                       {},
                       "method_not_allowed"});
}

// What went wrong before there was a request, or where no handler was asked.
std::string reason_of(int status) {
  switch (status) {
    case 400:
      return "no HTTP request that can be read";
    case 413:
      return "the request is too large";
    case 414:
      return "the address is too long";
    default:
      return fmt::format("HTTP status {}", status);
  }
}

}  // namespace

Server::Server(const ServerOptions& options, const Tokenizer& tokenizer, inference::Batcher& batcher)
    : options_(options),
      tokenizer_(tokenizer),
      batcher_(batcher),
      started_(std::time(nullptr)),
      http_(std::make_unique<httplib::Server>()) {
  // One thread per connection: of all requests that may be here, and some for what is answered at once or waits for its next request.
  constexpr int64_t spare_threads = 32;
  const auto threads = static_cast<size_t>(options.batch.sequences + options.batch.waiting + spare_threads);
  http_->new_task_queue = [threads] { return new httplib::ThreadPool(threads); };
  http_->set_payload_max_length(static_cast<size_t>(options.max_body_bytes));
  http_->set_tcp_nodelay(true);
  http_->set_keep_alive_max_count(1000);
  add_routes();
}

Server::~Server() {
  stop();
}

void Server::add_routes() {
  const auto with_body = [this](const httplib::Request& request, httplib::Response& response,
                                const httplib::ContentReader& reader) {
    if (request.method == "POST" && request.path == "/v1/completions")
      return answer_completion(request, response, reader);
    drain(request, reader);
    refuse_address(request, response);
  };
  const auto without_body = [this](const httplib::Request& request, httplib::Response& response) {
    const std::string models = "/v1/models/";
    if (request.method == "OPTIONS") return refuse_address(request, response);
    if (request.path == "/health") return show_health(response);
    if (request.path == "/v1/models") return list_models(response);
    if (request.path.starts_with(models)) return show_model(request.path.substr(models.size()), response);
    refuse_address(request, response);
  };
  http_->Post(".*", with_body).Put(".*", with_body).Patch(".*", with_body).Delete(".*", with_body);
  http_->Get(".*", without_body).Options(".*", without_body);
  http_->set_error_handler(
      httplib::Server::HandlerWithResponse([](const httplib::Request&, httplib::Response& response) {
        if (response.body.empty()) set_error(response, {response.status, reason_of(response.status)});
        return httplib::Server::HandlerResponse::Handled;
      }));
  http_->set_exception_handler(
      [](const httplib::Request&, httplib::Response& response, const std::exception_ptr& pointer) {
        try {
          std::rethrow_exception(pointer);
        } catch (const ApiError& error) {
          set_error(response, error);
        } catch (const std::exception& failure) {
          log::error("a request failed: {}", failure.what());
          set_error(response, {500, "the server failed at this request"});
        }
      });
  http_->set_pre_routing_handler([](const httplib::Request&, httplib::Response&) {
    RequestRecord::current() = {};
    return httplib::Server::HandlerResponse::Unhandled;
  });
  http_->set_logger([](const httplib::Request& request, const httplib::Response& response) {
    RequestRecord::current().write(fmt::format("{} {}", printable(request.method), printable(request.path)),
                                   response.status);
  });
}

std::string Server::read_body(const httplib::Request& request, const httplib::Response& response,
                              const httplib::ContentReader& reader) const {
  const std::string type = request.get_header_value("Content-Type");
  const std::string plain = type.substr(0, type.find_last_not_of(' ', type.find(';') - 1) + 1);
  if (!std::equal(plain.begin(), plain.end(), json_type, json_type + std::strlen(json_type),
                  [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; })) {
    drain(request, reader);
    throw ApiError(415, fmt::format("Content-Type: found '{}', expected {}", printable(type), json_type));
  }
  if (!request.has_header("Content-Length") && !request.has_header("Transfer-Encoding"))
    throw ApiError(400, "the request has no body, expected a JSON object");
  std::string body;
  bool is_too_large = false;
  const bool is_whole = reader([&](const char* data, size_t size) {
    is_too_large = is_too_large || body.size() + size > static_cast<size_t>(options_.max_body_bytes);
    if (!is_too_large) body.append(data, size);  // and the rest is drained
    return true;
  });
  if (is_too_large || response.status == 413)  // the library's number when the headers announce too much
    throw ApiError(413, fmt::format("the body is too large, expected at most {} bytes", options_.max_body_bytes));
  if (!is_whole) throw ApiError(400, "the body ended early, or is not what its headers say");
  return body;
}

void Server::answer_completion(const httplib::Request& http_request, httplib::Response& response,
                               const httplib::ContentReader& reader) {
  const auto deadline = Clock::now() + std::chrono::seconds(options_.max_seconds);
  const auto answering = std::make_shared<Answering>(num_answering_);
  CompletionRequest request =
      parse_completion_request(read_body(http_request, response, reader), options_.model, tokenizer_, options_.limits);
  const uint64_t seed =
      request.seed ? *request.seed : (uint64_t{std::random_device{}()} << 32 | std::random_device{}());
  auto ticket = batcher_.submit(request.to_requests(seed));
  if (!ticket) {
    if (batcher_.is_closed()) throw ApiError(503, "the server is stopping");
    throw ApiError(429, fmt::format("{} requests wait already, try again later", options_.batch.waiting), {},
                   "too_many_requests");
  }
  const CompletionAnswer::Origin origin{fmt::format("cmpl-{:x}-{}", started_, ++num_completions_), std::time(nullptr),
                                        deadline};
  const ClientSocket client(http_request.remote_addr, http_request.remote_port, http_request.local_port);
  const auto answer =
      std::make_shared<CompletionAnswer>(std::move(request), tokenizer_, std::move(ticket), client, origin);
  if (!answer->request().stream) {
    if (const auto whole = answer->whole())
      response.set_content(whole->dump(), json_type);
    else
      response.status = client_closed_request;  // nobody reads it
    return;
  }
  response.set_header("Cache-Control", "no-cache");
  response.set_chunked_content_provider("text/event-stream", [answer, answering](size_t, httplib::DataSink& sink) {
    const bool is_whole =
        answer->stream([&](const std::string& event) { return sink.write(event.data(), event.size()); });
    if (is_whole) sink.done();
    return is_whole;
  });
}

ordered_json Server::model_object() const {
  return {{"id", options_.model}, {"object", "model"}, {"created", started_}, {"owned_by", "lamina"}};
}

void Server::list_models(httplib::Response& response) const {
  response.set_content(ordered_json{{"object", "list"}, {"data", ordered_json::array({model_object()})}}.dump(),
                       json_type);
}

void Server::show_model(const std::string& name, httplib::Response& response) const {
  if (name != options_.model)
    throw ApiError(404, fmt::format("found no model '{}', expected '{}'", printable(name), options_.model), "model",
                   "model_not_found");
  response.set_content(model_object().dump(), json_type);
}

void Server::show_health(httplib::Response& response) const {
  const auto load = batcher_.load();
  const bool is_closed = batcher_.is_closed();
  response.status = is_closed ? 503 : 200;
  response.set_content(
      ordered_json{{"status", is_closed ? "stopping" : "ok"}, {"sequences", load.sequences}, {"waiting", load.waiting}}
          .dump(),
      json_type);
}

int Server::start() {
  // Not the library's own, with which a second server would share the port.
  int listener = -1;
  http_->set_socket_options([&](int socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    listener = socket;
  });
  errno = 0;
  port_ = options_.port;
  if (options_.port == 0)
    port_ = http_->bind_to_any_port(options_.host);
  else if (!http_->bind_to_port(options_.host, options_.port))
    port_ = -1;
  if (port_ < 0)
    throw Error("can't listen on {} port {}: {}", options_.host, options_.port,
                errno == 0 ? "no such address" : std::strerror(errno));
  ::listen(listener, SOMAXCONN);  // the library's queue of connections is five long
  is_listening_ = true;
  thread_ = std::thread([this] {
    http_->listen_after_bind();
    is_listening_ = false;
  });
  while (is_listening_ && !http_->is_running())
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // stop() needs it
  return port_;
}

void Server::stop() {
  if (!thread_.joinable()) return;
  http_->stop();
  end_idle_connections(port_);
  thread_.join();
}

}  // namespace lamina::serve
