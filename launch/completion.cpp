#include <fmt/ranges.h>

#include <algorithm>

#include "launch/parser_table.h"

namespace lamina {
namespace {

using Table = std::vector<ParserCommand>;

// In single quotes, for any of the shells.
std::string quoted(const std::string& text, bool is_fish = false) {
  std::string result = "'";
  for (const char c : text) {
    if (c == '\'')
      result += is_fish ? "\\'" : "'\\''";
    else if (c == '\\' && is_fish)
      result += "\\\\";
    else
      result += c;
  }
  return result + "'";
}

std::vector<std::string> option_names(const ParserCommand& command) {
  std::vector<std::string> names;
  for (const ParserOption& option : command.options)
    if (!option.is_argument) names.insert(names.end(), option.names.begin(), option.names.end());
  return names;
}

std::vector<std::string> command_names(const Table& table) {
  std::vector<std::string> names;
  for (size_t i = 1; i < table.size(); ++i) names.push_back(table[i].name);
  return names;
}

// The choices of a command's argument, where one has any.
std::vector<std::string> argument_choices(const ParserCommand& command) {
  for (const ParserOption& option : command.options)
    if (option.is_argument && !option.choices.empty()) return option.choices;
  return {};
}

}  // namespace

std::string bash_completion(const Table& table, const std::vector<std::string>& keys) {
  std::string commands, values;
  for (size_t i = 1; i < table.size(); ++i) {
    const ParserCommand& command = table[i];
    commands += fmt::format("    {}) options={} words={} takes_keys={} ;;\n", command.name,
                            quoted(fmt::format("{}", fmt::join(option_names(command), " "))),
                            quoted(fmt::format("{}", fmt::join(argument_choices(command), " "))),
                            command.takes_overrides() ? "yes" : "''");
    for (const ParserOption& option : command.options) {
      if (option.is_argument || option.value.empty()) continue;
      std::vector<std::string> patterns;
      for (const std::string& name : option.names) patterns.push_back(quoted(command.name + " " + name));
      values += fmt::format("    {}) values={} ;;\n", fmt::join(patterns, "|"),
                            quoted(fmt::format("{}", fmt::join(option.choices, " "))));
    }
  }
  const std::string root =
      fmt::format("{} {}", fmt::join(command_names(table), " "), fmt::join(option_names(table.front()), " "));
  return fmt::format(
      R"(# Completion of lamina for bash, written by `lamina completion bash`. To use it: source this file.

_lamina_keys={}

# Nothing in COMPREPLY leaves the word to readline, which completes file names.
_lamina() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} options words takes_keys values=none
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W {} -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{}    *) return ;;
  esac
  local is_value=''
  if [[ $word == = ]]; then        # bash takes the "=" of --option=value and key=value for a word
    word='' is_value=yes
  elif [[ $before == = ]]; then
    before=${{COMP_WORDS[COMP_CWORD-2]}} is_value=yes
  fi
  case "${{COMP_WORDS[1]}} $before" in
{}  esac
  if [[ $values != none ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$word"))
  elif [[ -n $is_value ]]; then
    return
  elif [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  elif [[ -n $words ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  elif [[ -n $takes_keys && -n $word ]] && (( COMP_CWORD > 2 )); then
    COMPREPLY=($(compgen -W "$_lamina_keys" -S = -- "$word"))
    [[ ${{#COMPREPLY[@]}} -gt 0 ]] && compopt -o nospace 2> /dev/null
  fi
  return 0
}}

complete -o default -o bashdefault -F _lamina lamina
)",
      quoted(fmt::format("{}", fmt::join(keys, " "))), quoted(root), commands, values);
}

namespace {

// What `_arguments` reads: `[` and `:` have a meaning there.
std::string zsh_text(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

std::string zsh_action(const ParserOption& option) {
  if (!option.choices.empty()) return fmt::format("({})", fmt::join(option.choices, " "));
  return option.value == "INT" || option.value == "UINT" || option.value == "FLOAT" ? " " : "_files";
}

std::string zsh_arguments(const ParserCommand& command) {
  std::string arguments;
  bool is_first_argument = true;
  for (const ParserOption& option : command.options) {
    std::vector<std::string> words;
    if (option.is_argument) {
      const bool keys = option.names[0] == "overrides";
      const std::string place = option.is_repeated ? "*" : is_first_argument ? "1" : "2";
      words.push_back(
          fmt::format("{}:{}:{}", place, zsh_text(option.names[0]), keys ? "_lamina_keys" : zsh_action(option)));
      is_first_argument = false;
    } else {
      for (const std::string& name : option.names)
        words.push_back(
            fmt::format("{}{}[{}]{}", option.is_repeated ? "*" : "", name, zsh_text(option.meaning),
                        option.value.empty() ? "" : fmt::format(":{}:{}", option.value, zsh_action(option))));
    }
    for (const std::string& word : words) arguments += " \\\n        " + quoted(word);
  }
  return arguments;
}

}  // namespace

std::string zsh_completion(const Table& table, const std::vector<std::string>& keys) {
  std::string commands, cases;
  for (size_t i = 1; i < table.size(); ++i) {
    commands += "    " + quoted(table[i].name + ":" + table[i].summary) + "\n";
    cases += fmt::format("    {})\n      _arguments{} ;;\n", table[i].name, zsh_arguments(table[i]));
  }
  std::vector<std::string> options;
  for (const ParserOption& option : table.front().options)
    for (const std::string& name : option.names) options.push_back(quoted(name));
  return fmt::format(R"(#compdef lamina
# Completion of lamina for zsh, written by `lamina completion zsh`. To use it: source this file, or put it as _lamina on fpath.

_lamina_keys() {{
  compadd -S = -- {}
  _files
}}

_lamina() {{
  local -a commands=(
{}  )
  if (( CURRENT == 2 )); then
    _describe command commands
    compadd -- {}
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
{}  esac
}}

if [[ $funcstack[1] == _lamina ]]; then
  _lamina "$@"
else
  compdef _lamina lamina
fi
)",
                     fmt::join(keys, " "), commands, fmt::join(options, " "), cases);
}

std::string fish_completion(const Table& table, const std::vector<std::string>& keys) {
  std::string text =
      "# Completion of lamina for fish, written by `lamina completion fish`. To use it: source this file.\n\n";
  for (size_t i = 0; i < table.size(); ++i) {
    const ParserCommand& command = table[i];
    const bool is_root = i == 0;
    const std::string when = is_root ? "__fish_use_subcommand" : "__fish_seen_subcommand_from " + command.name;
    if (!is_root)
      text += fmt::format("complete -c lamina -n __fish_use_subcommand -f -a {} -d {}\n", command.name,
                          quoted(command.summary, true));
    for (const ParserOption& option : command.options) {
      if (option.is_argument) continue;
      text += fmt::format("complete -c lamina -n {}", quoted(when, true));
      for (const std::string& name : option.names)
        text += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      if (!option.choices.empty())
        text += fmt::format(" -x -a {}", quoted(fmt::format("{}", fmt::join(option.choices, " ")), true));
      else if (!option.value.empty())
        text += " -r";
      text += fmt::format(" -d {}\n", quoted(option.meaning, true));
    }
    if (const auto choices = argument_choices(command); !choices.empty())
      text += fmt::format("complete -c lamina -n {} -f -a {}\n", quoted(when, true),
                          quoted(fmt::format("{}", fmt::join(choices, " ")), true));
    if (command.takes_overrides())
      text += fmt::format("complete -c lamina -n {} -a {} -d 'key of the experiment file'\n", quoted(when, true),
                          quoted(fmt::format("{}=", fmt::join(keys, "= ")), true));
  }
  return text;
}

}  // namespace lamina
