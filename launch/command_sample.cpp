#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/io/file.h"
#include "data/utf8.h"
#include "inference/generator.h"
#include "launch/commands.h"
#include "launch/gpus.h"
#include "launch/process.h"
#include "trainer/text_model.h"

namespace lamina {
namespace {

using nlohmann::json;

struct SampleOptions {
  std::string checkpoint, prompt, prompt_file, tokenizer_from, device;
  inference::Request request;
  bool as_json = false;
  int num_threads = 0;
};

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

std::string read_prompt(const SampleOptions& options) {
  if (options.prompt_file.empty()) return options.prompt;
  if (options.prompt_file != "-") return io::read_file(options.prompt_file);
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

const char* name_of(inference::Finish finish) {
  switch (finish) {
    case inference::Finish::length:
      return "length";
    case inference::Finish::stop_text:
      return "stop";
    case inference::Finish::end_of_document:
      return "end_of_document";
    case inference::Finish::no:
      break;
  }
  return "";
}

// One line per token, and one at the end of each sample.
class JsonLines {
 public:
  JsonLines(const Tokenizer& tokenizer, int num_samples)
      : tokenizer_(tokenizer), samples_(static_cast<size_t>(num_samples)) {}

  void show(const inference::TokenEvent& event) {
    Sample& sample = samples_[static_cast<size_t>(event.sample)];
    sample.text += event.text;
    sample.log_probability += event.log_probability;
    json line = {{"sample", event.sample}, {"index", sample.num_tokens++},
                 {"token", event.token},   {"token_text", text_of(event.token)},
                 {"text", event.text},     {"logprob", event.log_probability}};
    if (!event.likeliest.empty()) {
      json& list = line["likeliest"] = json::array();
      for (const auto& [token, log_probability] : event.likeliest)
        list.push_back({{"token", token}, {"token_text", text_of(token)}, {"logprob", log_probability}});
    }
    write(line);
    if (event.finish == inference::Finish::no) return;
    write({{"sample", event.sample},
           {"finish", name_of(event.finish)},
           {"num_tokens", sample.num_tokens},
           {"logprob", sample.log_probability},
           {"text", sample.text}});
  }

 private:
  struct Sample {
    std::string text;
    int64_t num_tokens = 0;
    double log_probability = 0;
  };
  std::string text_of(int32_t token) const {
    int64_t replaced = 0;  // a token may spell a part of a character
    return repair_utf8(tokenizer_.text_of(token, -1), replaced);
  }
  static void write(const json& line) { print(line.dump() + "\n"); }

  const Tokenizer& tokenizer_;
  std::vector<Sample> samples_;
};

// The samples one after the other, each as it is written: what belongs to a later one waits.
class PlainText {
 public:
  PlainText(std::string prompt, int num_samples)
      : prompt_(std::move(prompt)), waiting_(static_cast<size_t>(num_samples)) {
    begin();
  }
  void show(const inference::TokenEvent& event) {
    Waiting& sample = waiting_[static_cast<size_t>(event.sample)];
    sample.text += event.text;
    sample.is_done = event.finish != inference::Finish::no;
    for (;;) {
      Waiting& shown = waiting_[current_];
      print(shown.text);
      shown.text.clear();
      if (!shown.is_done) return;
      print("\n");
      if (++current_ == waiting_.size()) return;
      begin();
    }
  }

 private:
  struct Waiting {
    std::string text;
    bool is_done = false;
  };
  void begin() const {
    if (waiting_.size() > 1) print(fmt::format("--- {} of {}\n", current_ + 1, waiting_.size()));
    print(prompt_);
  }

  std::string prompt_;
  std::vector<Waiting> waiting_;
  size_t current_ = 0;
};

// Longer texts than those of training are no error: nothing in the model has a position. But it was never asked for them.
class LengthNotice {
 public:
  explicit LengthNotice(int64_t seq_len) : seq_len_(seq_len) {}
  void at(int64_t num_tokens) {
    if (said_ || num_tokens <= seq_len_) return;
    said_ = true;
    log::warning("the text has come to {} tokens; the model was trained on sequences of {} and goes on beyond",
                 num_tokens, seq_len_);
  }

 private:
  int64_t seq_len_;
  bool said_ = false;
};

void sample(const SampleOptions& options) {
  const std::string prompt = read_prompt(options);
  TextModel model(options.checkpoint, options.tokenizer_from, options.device);
  inference::Request request = options.request;
  request.tokens = model.tokens_of(prompt);
  if (options.as_json && !request.num_likeliest) request.num_likeliest = 0;
  LengthNotice notice(model.config().data.seq_len);
  const auto num_prompt_tokens = static_cast<int64_t>(request.tokens.size());
  notice.at(num_prompt_tokens);
  std::vector<int64_t> num_tokens(static_cast<size_t>(request.num_samples), num_prompt_tokens);
  inference::Generator generator(model.decoder(), model.tokenizer());
  JsonLines lines(model.tokenizer(), request.num_samples);
  std::optional<PlainText> plain;
  if (!options.as_json) plain.emplace(prompt, request.num_samples);
  generator.add(std::move(request));
  while (!generator.idle()) {
    for (const inference::TokenEvent& event : generator.step()) {
      if (plain)
        plain->show(event);
      else
        lines.show(event);
      notice.at(++num_tokens[static_cast<size_t>(event.sample)]);
    }
  }
}

}  // namespace

void register_sample(CLI::App& app) {
  auto options = std::make_shared<SampleOptions>();
  inference::Request& request = options->request;
  CLI::App* command = app.add_subcommand("sample", "Generate text from a checkpoint");
  command->footer(
      "Example:\n  lamina sample --checkpoint runs/tiny --prompt \"The sea\" --max-tokens 300 --temperature 0.7");
  command->add_option("--checkpoint", options->checkpoint, "A checkpoint, or a run folder (its newest)")->required();
  CLI::Option* prompt = command->add_option("--prompt", options->prompt, "Text to continue");
  command->add_option("--prompt-file", options->prompt_file, "File with the text to continue; -: standard input")
      ->excludes(prompt);
  command->add_option("--max-tokens", request.max_tokens, "Tokens to generate at most, per sample")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--num-samples", request.num_samples, "Continuations, each drawn for itself")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--temperature", request.sampling.temperature, "0 takes the likeliest token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-k", request.sampling.top_k, "Draw from the k likeliest; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-p", request.sampling.top_p, "Draw from the likeliest with this probability together")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--stop", request.stop, "Text before which a sample ends; may be given several times")
      ->check([](const std::string& text) { return text.empty() ? std::string("expected a text") : std::string(); })
      ->take_all();
  command->add_option("--seed", request.seed, "Same seed, same text")->capture_default_str();
  CLI::Option* as_json =
      command->add_flag("--json", options->as_json, "A line of JSON per token, with its log-probability");
  command
      ->add_option("--likeliest", request.num_likeliest,
                   "With --json: how many of each place's likeliest tokens to list")
      ->check(CLI::Range(0, 1000))
      ->needs(as_json);
  command->add_option("--tokenizer-from", options->tokenizer_from,
                      "Token folder with the tokenizer; default: the checkpoint's own");
  add_device_option(*command, options->device);
  command->add_option("--threads", options->num_threads, "0: all cores")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->callback([options] {
    options->device = usable_device(options->device);
    RunConfig run;
    run.num_threads = options->num_threads;
    run_in_world(run, [&](const World& world) {
      if (world.rank == 0) sample(*options);  // one process is enough
    });
  });
}

}  // namespace lamina
