// The commands and options of the one parser, as completion scripts and manual pages want them.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace lamina {

struct ParserOption {
  std::vector<std::string> names;    // "-h", "--help"; of an argument its name alone
  std::string value;                 // "TEXT", "INT", ..; empty: a flag
  std::vector<std::string> choices;  // of the value; empty: any
  std::string limits;                // of a number: "INT in [0 - 4096]"; may be empty
  std::string standard;              // what holds when it is left out; may be empty
  std::string meaning;
  bool is_argument = false;  // without a name
  bool is_required = false;
  bool is_repeated = false;
};

struct ParserCommand {
  std::string name;  // empty: the program itself
  std::string summary;
  std::string footer;
  std::vector<ParserOption> options;
  bool takes_overrides() const;  // key.path=value
};

// The program itself first, then its commands in their order.
std::vector<ParserCommand> parser_table(const CLI::App& app);

// For `lamina completion`. `keys` are those of an experiment file.
std::string bash_completion(const std::vector<ParserCommand>& table, const std::vector<std::string>& keys);
std::string zsh_completion(const std::vector<ParserCommand>& table, const std::vector<std::string>& keys);
std::string fish_completion(const std::vector<ParserCommand>& table, const std::vector<std::string>& keys);

// A page of section 1, as man(7) has it: of `table[which]`.
std::string manual_page(const std::vector<ParserCommand>& table, size_t which);
std::string manual_page_name(const ParserCommand& command);  // "lamina-train"

}  // namespace lamina
