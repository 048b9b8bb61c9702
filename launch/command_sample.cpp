#include <cstdio>
#include <memory>
#include <string>

#include "launch/commands.h"
#include "launch/process.h"
#include "trainer/sample.h"

namespace lamina {

void register_sample(CLI::App& app) {
  struct Options {
    std::string checkpoint;
    SampleOptions sample;
    int num_threads = 0;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("sample", "Generate text from a checkpoint");
  command->footer(
      "Example:\n  lamina sample --checkpoint runs/tiny --prompt \"The sea \" --max-tokens 300 --temperature 0.7");
  command->add_option("--checkpoint", options->checkpoint, "A checkpoint, or a run folder (its newest)")->required();
  command->add_option("--prompt", options->sample.prompt, "Text to continue");
  command->add_option("--max-tokens", options->sample.max_tokens, "Tokens to generate at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--temperature", options->sample.temperature, "0 takes the likeliest token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-k", options->sample.top_k, "Draw from the k likeliest; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-p", options->sample.top_p, "Draw from the likeliest with this probability together")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", options->sample.seed, "Same seed, same text")->capture_default_str();
  command->add_option("--tokenizer-from", options->sample.data_path,
                      "Token folder with the tokenizer; default: the checkpoint's own");
  command->add_option("--threads", options->num_threads, "0: all cores")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->callback([options] {
    RunConfig run;
    run.num_threads = options->num_threads;
    run_in_world(run, [&](World& world) {
      if (world.rank != 0) return;  // one process is enough for one sequence
      std::fputs(options->sample.prompt.c_str(), stdout);
      sample(options->checkpoint, options->sample, [](std::string_view piece) {
        std::fwrite(piece.data(), 1, piece.size(), stdout);
        std::fflush(stdout);
      });
      std::fputc('\n', stdout);
    });
  });
}

}  // namespace lamina
