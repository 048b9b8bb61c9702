#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <sstream>

#include "core/base/stop.h"
#include "launch/parser_table.h"
#include "launch/program.h"

namespace lamina {
namespace {

// For roff: no backslash, hyphen or first point of a line is taken for something else. Characters beyond ASCII are named.
std::string roff(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool begins_line = i == 0 || text[i - 1] == '\n';
    if (c == '\\') {
      result += "\\e";
    } else if (c == '-') {
      result += "\\-";
    } else if ((c == '.' || c == '\'') && begins_line) {
      result += "\\&";
      result += text[i];
    } else if (c < 0x80) {
      result += text[i];
    } else {
      const size_t more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
      uint32_t code = c & (0x3fU >> more);
      for (size_t k = 0; k < more && i + 1 < text.size(); ++k)
        code = code << 6 | (static_cast<unsigned char>(text[++i]) & 0x3fU);
      result += fmt::format("\\[u{:04X}]", code);
    }
  }
  return result;
}

std::string upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

std::string value_of(const ParserOption& option) {
  return option.choices.empty() ? option.value : fmt::format("{}", fmt::join(option.choices, "|"));
}

std::string synopsis(const ParserCommand& command) {
  std::string text = fmt::format(".B lamina{}\n", command.name.empty() ? "" : " " + roff(command.name));
  if (command.name.empty()) return text + "\\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]\n";
  text += "[\\fIOPTIONS\\fR]\n";
  for (const ParserOption& option : command.options) {
    if (!option.is_argument) continue;
    std::string name = fmt::format("\\fI{}\\fR{}", roff(option.names[0]), option.is_repeated ? " ..." : "");
    text += option.is_required ? name + "\n" : "[" + name + "]\n";
  }
  return text;
}

std::string entry(const ParserOption& option) {
  std::string names;
  for (const std::string& name : option.names)
    names += fmt::format("{}\\f{}{}\\fR", names.empty() ? "" : ", ", option.is_argument ? 'I' : 'B', roff(name));
  if (!option.is_argument && !option.value.empty()) names += fmt::format(" \\fI{}\\fR", roff(value_of(option)));
  std::vector<std::string> notes;
  if (option.is_required) notes.emplace_back("required");
  if (!option.is_argument && option.is_repeated) notes.emplace_back("as often as needed");
  if (option.is_argument && !option.choices.empty())
    notes.push_back(fmt::format("one of {}", fmt::join(option.choices, ", ")));
  if (!option.limits.empty()) notes.push_back(option.limits);
  if (!option.standard.empty()) notes.push_back("default: " + option.standard);
  return fmt::format(".TP\n{}\n{}{}\n", names, roff(option.meaning),
                     notes.empty() ? "" : roff(fmt::format(" ({})", fmt::join(notes, "; "))));
}

std::string options_section(const ParserCommand& command, const char* title, bool arguments) {
  std::string entries;
  for (const ParserOption& option : command.options)
    if (option.is_argument == arguments) entries += entry(option);
  return entries.empty() ? "" : fmt::format(".SH {}\n{}", title, entries);
}

// Examples, and what is to be known beside them: lines as they are.
std::string footer_section(const std::string& footer) {
  std::string text;
  std::istringstream in(footer);
  std::string title = "NOTES";
  for (std::string line; std::getline(in, line);) {
    if (line == "Example:" || line == "Examples:")
      title = "EXAMPLES";
    else
      text += roff(line) + "\n";
  }
  return text.empty() ? "" : fmt::format(".SH {}\n.nf\n{}.fi\n", title, text);
}

std::string exit_status() {
  const std::pair<int, const char*> statuses[] = {
      {0, "Done."},
      {1, "Something that the user can mend: one line on standard error says what was found and what was expected."},
      {2, "A fault of the program."},
      {exit_resume, "Stopped early, at a signal or a limit of time: the same command goes on."},
      {exit_diverged, "Numbers of the run are no longer finite."}};
  std::string text = ".SH EXIT STATUS\n";
  for (const auto& [status, meaning] : statuses) text += fmt::format(".TP\n.B {}\n{}\n", status, roff(meaning));
  return text;
}

}  // namespace

std::string manual_page_name(const ParserCommand& command) {
  return command.name.empty() ? "lamina" : "lamina-" + command.name;
}

std::string manual_page(const std::vector<ParserCommand>& table, size_t which) {
  const ParserCommand& command = table.at(which);
  const std::string name = manual_page_name(command);
  std::string summary = command.summary;
  if (summary.ends_with('.')) summary.pop_back();
  std::string page = fmt::format(".\\\" Written by `lamina man`.\n.TH {} 1 \"{}\" \"{}\" \"Lamina\"\n",
                                 roff(upper(name)), program_date(), roff(program_name()));
  page += ".ad l\n";  // options and paths are long words: lines of them have no blanks to widen
  page += fmt::format(".SH NAME\n{} \\- {}\n.SH SYNOPSIS\n{}", roff(name), roff(summary), synopsis(command));
  page += options_section(command, "ARGUMENTS", true);
  page += options_section(command, "OPTIONS", false);
  std::vector<std::string> others;
  if (which == 0) {
    page += ".SH COMMANDS\n";
    for (size_t i = 1; i < table.size(); ++i) {
      page += fmt::format(".TP\n.B {}\n{}\n", roff(table[i].name), roff(table[i].summary));
      others.push_back(fmt::format(".BR {} (1)", roff(manual_page_name(table[i]))));
    }
  } else {
    others.emplace_back(".BR lamina (1)");
  }
  page += footer_section(command.footer) + exit_status();
  page += fmt::format(".SH SEE ALSO\n{}\n", fmt::join(others, ",\n"));
  return page;
}

}  // namespace lamina
