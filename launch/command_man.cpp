#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "configs/schema/reference.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "launch/commands.h"
#include "launch/parser_table.h"

namespace lamina {
namespace {

// As they are typed: the first item of a list.
std::vector<std::string> keys_to_type() {
  std::vector<std::string> keys = configuration_keys();
  for (std::string& key : keys)
    for (size_t at; (at = key.find("[]")) != std::string::npos;) key.replace(at, 2, ".0");
  return keys;
}

void write_out(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw Error("standard output: can't write");
}

void write_pages(const std::vector<ParserCommand>& table, const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw Error("{}: can't create the folder: {}", folder.string(), error.message());
  for (size_t i = 0; i < table.size(); ++i)
    io::write_file_atomically(folder / (manual_page_name(table[i]) + ".1"), manual_page(table, i));
}

}  // namespace

void register_completion(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "Print the script with which a shell completes what is typed");
  command->footer(
      "Examples:\n"
      "  source <(lamina completion bash)\n"
      "  lamina completion fish > ~/.config/fish/completions/lamina.fish");
  command->add_option("shell", *shell, "The shell")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([shell, &app] {
    const std::vector<ParserCommand> table = parser_table(app);
    const auto script = *shell == "bash" ? bash_completion : *shell == "zsh" ? zsh_completion : fish_completion;
    write_out(script(table, keys_to_type()));
  });
}

void register_man(CLI::App& app) {
  struct Options {
    std::string command, output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("man", "Print a manual page, or write all of them");
  command->footer(
      "Examples:\n"
      "  lamina man train | man -l -\n"
      "  lamina man --output ~/.local/share/man/man1");
  std::vector<std::string> names;
  for (const CLI::App* other : app.get_subcommands({})) names.push_back(other->get_name());
  CLI::Option* which =
      command->add_option("command", options->command, "Of this command; of the program when not given")
          ->check(CLI::IsMember(names));
  command->add_option("--output", options->output, "Write the pages of the program and all commands to this folder")
      ->excludes(which);
  command->callback([options, &app] {
    const std::vector<ParserCommand> table = parser_table(app);
    if (!options->output.empty()) return write_pages(table, options->output);
    size_t page = 0;
    for (size_t i = 1; i < table.size(); ++i)
      if (table[i].name == options->command) page = i;
    write_out(manual_page(table, page));
  });
}

}  // namespace lamina
