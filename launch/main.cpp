#include <fmt/ranges.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <new>
#include <thread>

#include "configs/schema/nearest.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/signals.h"
#include "core/base/stop.h"
#include "core/device/cpu/waiting.h"
#include "launch/commands.h"
#include "launch/process.h"
#include "launch/program.h"

namespace lamina {
namespace {

constexpr int exit_error = 1;     // what a user can mend
constexpr int exit_internal = 2;  // a bug

// All ranks read the same file and find the same mistake before MPI is up: rank 0 tells it. The others wait for mpirun to end them, by
// SIGTERM first; one that is still there found a mistake of its own machine, or has no rank 0 left to tell it.
int fail(const std::string& message, int code) {
  const LauncherRanks ranks = launcher_ranks();
  if (ranks.rank > 0) {
    for (int i = 0; i < 200; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(25));
      if (stop::requested()) return code;
    }
    log::configure({0, 1, log::Level::info});
    log::error("[rank {}] {}", ranks.rank, message);
  } else {
    log::error("{}", message);
  }
  log::flush();
  return code;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  return names;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

std::string suggestion(const std::string& found, const std::vector<std::string>& names) {
  if (const auto near = nearest_name(found, names)) return "did you mean " + *near + "?";
  return fmt::format("expected one of {}", fmt::join(names, ", "));
}

// One line for what CLI11 refuses, with the nearest valid name.
std::string usage_message(const CLI::App& app, const CLI::ParseError& failure, int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  if (first.empty()) return "found no command, " + suggestion("", command_names(app)) + " (lamina --help)";
  const std::vector<const CLI::App*> commands =
      app.get_subcommands([&](const CLI::App* c) { return c->get_name() == first; });
  const CLI::App* command = commands.empty() ? nullptr : commands.front();
  if (!command) {
    const bool is_option = first.starts_with("-");
    return fmt::format("{} '{}', {}", is_option ? "unknown option" : "unknown command", first,
                       suggestion(first, is_option ? option_names(app) : command_names(app)));
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&failure)) {
    for (const std::string& extra : command->remaining()) {
      if (extra.starts_with("-"))
        return fmt::format("{}: unknown option '{}', {}", first, extra, suggestion(extra, option_names(*command)));
      return fmt::format("{}: unexpected argument '{}' (lamina {} --help)", first, extra, first);
    }
  }
  return fmt::format("{}: {} (lamina {} --help)", first, failure.what(), first);
}

int run(int argc, char** argv) {
  CLI::App app("Lamina pretrains language models with Attention Residuals.", "lamina");
  app.set_version_flag("--version", program_name());
  app.require_subcommand(1);
  app.footer(
      "Example:\n"
      "  lamina prepare --tokenizer bytes --output data/english books/*.txt\n"
      "  lamina check configs/tiny.yaml\n"
      "  mpirun -n 2 lamina train configs/tiny.yaml train.num_steps=100\n"
      "Each command has its own --help.");
  register_prepare(app);
  register_tokenizer(app);
  register_train(app);
  register_eval(app);
  register_sample(app);
  register_serve(app);
  register_check(app);
  register_plan(app);
  register_verify(app);
  register_sweep(app);
  register_doctor(app);
  register_inspect(app);
  register_fit(app);
  register_export(app);
  register_import(app);
  register_report(app);
  register_completion(app);
  register_man(app);
  try {
    signals::move_to_own_thread();  // whatever the command, and before a library starts a thread
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::Success& request) {  // --help, --version
    return app.exit(request);
  } catch (const CLI::ParseError& failure) {
    return fail("error: " + usage_message(app, failure, argc, argv), exit_error);
  } catch (const Stopped& stopped) {
    if (launcher_ranks().rank == 0)
      log::info("stopped: {}; the same command goes on (exit status {})", stopped.what(), exit_resume);
    log::flush();
    return exit_resume;
  } catch (const Diverged& diverged) {
    if (launcher_ranks().rank == 0) log::error("error: {} (exit status {})", diverged.what(), exit_diverged);
    log::flush();
    return exit_diverged;
  } catch (const InternalError& failure) {
    return fail(fmt::format("internal error: {}", failure.what()), exit_internal);
  } catch (const std::bad_alloc&) {
    return fail("error: out of memory", exit_error);
  } catch (const std::exception& failure) {  // Error, and the file system's
    return fail(fmt::format("error: {}", failure.what()), exit_error);
  }
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  lamina::cpu::shorten_spins(argv);  // before anything else
  // Writing past the limit on file sizes then fails with a reason, as a full disk does, instead of killing the process.
  std::signal(SIGXFSZ, SIG_IGN);
  return lamina::run(argc, argv);
}
