// The subcommands of `lamina`, one launch/command_<name>.cpp each. To add one: declare its register function here, define
// it in its file, and call it in main.cpp.
//
//   void register_train(CLI::App& app) {
//     struct Options { std::string config; std::vector<std::string> overrides; };
//     auto options = std::make_shared<Options>();                       // lives as long as the callback
//     CLI::App* command = app.add_subcommand("train", "Train a model");  // the line that `lamina --help` shows
//     command->footer("Example:\n  mpirun -n 2 lamina train configs/tiny.yaml train.num_steps=10");
//     command->add_option("config", options->config, "Experiment file")->required();
//     command->add_option("overrides", options->overrides, "key.path=value, each replaces one key");
//     command->callback([options] { ... });
//   }
//
// A callback that returns has succeeded; to fail, throw Error with one line (main.cpp logs it and exits with 1).
// Decode the configuration first; only then enter run_in_world() (launch/process.h), which starts MPI.
// What the user asked for (a summary, sampled text) goes to stdout; the log goes to stderr.
#pragma once

#include <CLI/CLI.hpp>

namespace lamina {

void register_prepare(CLI::App& app);
void register_tokenizer(CLI::App& app);
void register_train(CLI::App& app);
void register_eval(CLI::App& app);
void register_sample(CLI::App& app);
void register_serve(CLI::App& app);
void register_check(CLI::App& app);
void register_plan(CLI::App& app);
void register_verify(CLI::App& app);
void register_sweep(CLI::App& app);
void register_doctor(CLI::App& app);
void register_inspect(CLI::App& app);
void register_fit(CLI::App& app);
void register_export(CLI::App& app);
void register_import(CLI::App& app);
void register_report(CLI::App& app);
// These two describe the commands before them.
void register_completion(CLI::App& app);
void register_man(CLI::App& app);

}  // namespace lamina
