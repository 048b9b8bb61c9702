#include <chrono>
#include <cstdio>
#include <memory>

#include "core/base/log.h"
#include "core/base/stop.h"
#include "launch/commands.h"
#include "launch/gpus.h"
#include "launch/process.h"
#include "launch/serve/server.h"
#include "model/sequence_cache.h"
#include "trainer/text_model.h"

namespace lamina {
namespace {

using namespace std::chrono_literals;

struct ServeOptions {
  std::string checkpoint, tokenizer_from, device;
  serve::ServerOptions server;
  int64_t stop_seconds = 30;
  int num_threads = 0;
};

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

void say_what_it_takes(const serve::ServerOptions& options, const TextModel& model) {
  const ModelConfig& config = model.config().model;
  const DType dtype = model.dtype();
  const int64_t tokens = options.limits.prompt_tokens + options.limits.max_tokens;
  const int64_t bytes =
      model::SequenceCache::fixed_bytes(config, dtype) + tokens * model::SequenceCache::bytes_per_token(config, dtype);
  log::info("at most {} texts at a time of {} tokens: {:.2f} GiB beside the model", options.batch.sequences, tokens,
            static_cast<double>(options.batch.sequences * bytes) / (1 << 30));
  if (tokens > model.config().data.seq_len)
    log::info("the model was trained on sequences of {} tokens; longer texts are no error and not cut",
              model.config().data.seq_len);
  if (!is_loopback(options.host))
    log::warning("{} can be reached from other machines, and nobody is asked who they are", options.host);
}

void serve_model(const ServeOptions& options) {
  stop::catch_signals(/*interrupt_too=*/true, "ending the requests that are being answered");
  TextModel model(options.checkpoint, options.tokenizer_from, options.device);
  serve::ServerOptions server_options = options.server;
  if (server_options.model.empty()) server_options.model = model.config().run.name;
  server_options.limits.samples = server_options.batch.sequences;
  say_what_it_takes(server_options, model);
  inference::Batcher batcher(model.decoder(), model.tokenizer(), server_options.batch);
  serve::Server server(server_options, model.tokenizer(), batcher);
  const int port = server.start();
  const std::string host =
      server_options.host.find(':') == std::string::npos ? server_options.host : "[" + server_options.host + "]";
  fmt::print("serving {} at http://{}:{}/v1\n", server_options.model, host, port);
  std::fflush(stdout);
  while (!stop::requested()) {
    if (!server.is_listening()) throw Error("port {}: nobody can connect any more", port);
    batcher.step(100ms);
  }
  log::info("{}: no new requests; those here have {} s", stop::reason(), options.stop_seconds);
  batcher.close();
  const auto answer_for = [&](std::chrono::seconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    while (server.is_answering() && std::chrono::steady_clock::now() < end) batcher.step(10ms);
  };
  answer_for(std::chrono::seconds(options.stop_seconds));
  batcher.fail_all("the server is stopping");
  answer_for(5s);  // who was cut off is told so
  server.stop();
}

}  // namespace

void register_serve(CLI::App& app) {
  auto options = std::make_shared<ServeOptions>();
  serve::ServerOptions& server = options->server;
  CLI::App* command = app.add_subcommand("serve", "Answer OpenAI's completions requests over HTTP");
  command->footer(
      "Example:\n  lamina serve runs/tiny --port 8000\n"
      "  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\\n"
      "       -d '{\"model\": \"tiny\", \"prompt\": \"The sea\", \"max_tokens\": 50}'");
  const auto limit = [&](const char* name, int64_t& value, const char* what) {
    command->add_option(name, value, what)->check(CLI::Range(int64_t{1}, int64_t{1} << 40))->capture_default_str();
  };
  command->add_option("checkpoint", options->checkpoint, "A checkpoint, or a run folder (its newest)")->required();
  command
      ->add_option("--host", server.host,
                   "Address to listen on; others than this machine's own can be reached from outside")
      ->capture_default_str();
  command->add_option("--port", server.port, "0: any that is free")->check(CLI::Range(0, 65535))->capture_default_str();
  command->add_option("--model-name", server.model, "What requests call the model; default: the run's name");
  command->add_option("--tokenizer-from", options->tokenizer_from,
                      "Token folder with the tokenizer; default: the checkpoint's own");
  add_device_option(*command, options->device);
  command
      ->add_option("--max-sequences", server.batch.sequences,
                   "Texts that are decoded at a time, of all requests together")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option("--max-waiting", server.batch.waiting,
                   "Requests that wait for a place at most; further ones get 429")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  limit("--max-prompt-tokens", server.limits.prompt_tokens, "Of each prompt");
  limit("--max-tokens", server.limits.max_tokens, "What a request may ask for as max_tokens");
  limit("--max-body-bytes", server.max_body_bytes, "Of a request");
  limit("--max-seconds", server.max_seconds, "Of a request, its wait for a place included");
  command
      ->add_option("--stop-seconds", options->stop_seconds,
                   "How long requests may go on after SIGTERM, SIGINT or SIGUSR1")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  command->add_option("--threads", options->num_threads, "0: all cores")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->callback([options] {
    options->device = usable_device(options->device);
    RunConfig run;
    run.num_threads = options->num_threads;
    run_in_world(run, [&](const World& world) {
      if (world.size > 1) throw Error("lamina serve: found {} ranks, expected one process", world.size);
      serve_model(*options);
    });
  });
}

}  // namespace lamina
