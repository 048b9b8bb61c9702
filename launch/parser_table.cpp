#include "launch/parser_table.h"

#include <algorithm>
#include <sstream>

namespace lamina {
namespace {

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> words;
  std::istringstream in(list);
  for (std::string word; std::getline(in, word, ',');) words.push_back(word);
  return words;
}

// "TEXT:{bf16,fp32}", "INT:INT in [0 - 4096]", "FLOAT:POSITIVE": the type, then what a check says.
void set_value(ParserOption& entry, const std::string& type) {
  const size_t colon = type.find(':');
  entry.value = type.substr(0, colon);
  if (colon == std::string::npos) return;
  const std::string check = type.substr(colon + 1);
  if (check.starts_with('{') && check.ends_with('}'))
    entry.choices = split(check.substr(1, check.size() - 2));
  else if (check.find(" in [") != std::string::npos)
    entry.limits = check;
}

ParserOption entry_of(const CLI::Option& option) {
  ParserOption entry;
  entry.is_argument = option.get_positional();
  if (entry.is_argument) entry.names.push_back(option.get_single_name());
  for (const std::string& name : option.get_snames()) entry.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) entry.names.push_back("--" + name);
  if (option.get_items_expected_max() > 0) set_value(entry, option.get_type_name());
  entry.standard = option.get_default_str();
  entry.meaning = option.get_description();
  entry.is_required = option.get_required();
  entry.is_repeated = option.get_items_expected_max() > 1;
  return entry;
}

ParserCommand command_of(const CLI::App& app, const std::string& name) {
  ParserCommand command{name, app.get_description(), app.get_footer(), {}};
  for (const CLI::Option* option : app.get_options()) command.options.push_back(entry_of(*option));
  return command;
}

}  // namespace

bool ParserCommand::takes_overrides() const {
  return std::any_of(options.begin(), options.end(),
                     [](const ParserOption& option) { return option.is_argument && option.names[0] == "overrides"; });
}

std::vector<ParserCommand> parser_table(const CLI::App& app) {
  std::vector<ParserCommand> table{command_of(app, "")};
  for (const CLI::App* command : app.get_subcommands({})) table.push_back(command_of(*command, command->get_name()));
  return table;
}

}  // namespace lamina
