#include "launch/report/page.h"

#include <fmt/format.h>

#include <ctime>

#include "core/base/error.h"
#include "launch/report/assets.h"
#include "launch/report/comparison.h"
#include "launch/report/run_document.h"
#include "launch/report/sweep_document.h"
#include "trainer/checkpoint/version.h"

namespace lamina::report {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string escape_html(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else {
      out += c;
    }
  }
  return out;
}

// A '<' stands only inside JSON's strings; escaped there, neither "</script" nor "<!--" can end or change the element.
std::string embed(const json& document) {
  const std::string text = document.dump(-1, ' ', false, json::error_handler_t::replace);
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
  return out;
}

void refuse_twice(const std::vector<fs::path>& folders) {
  for (size_t i = 0; i < folders.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      std::error_code none;  // a folder that is not there is told where it is read
      if (fs::equivalent(folders[i], folders[j], none))
        throw Error("{}: the same folder as {}, expected each run once", folders[i].string(), folders[j].string());
    }
}

std::string now_in_words() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  return fmt::format("{:04}-{:02}-{:02} {:02}:{:02} UTC", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                     parts.tm_hour, parts.tm_min);
}

json runs_document(const std::vector<fs::path>& folders, std::string& title) {
  std::vector<study::RunData> runs;
  json documents = json::array();
  const Limits limits = limits_for(folders.size());
  for (const fs::path& folder : folders) {
    runs.push_back(study::read_run(folder));
    documents.push_back(run_document(runs.back(), limits));
    title += (title.empty() ? "" : ", ") + runs.back().name;
  }
  json out = {{"kind", "runs"}, {"runs", std::move(documents)}};
  if (runs.size() > 1) out["comparison"] = comparison_document(runs);
  return out;
}

}  // namespace

std::string to_html(const json& document, const std::string& title) {
  std::string out =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'; img-src data:\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  out += fmt::format("<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n", escape_html(title), style_sheet());
  out += "<noscript><p>This page draws its data with the script it carries: switch JavaScript on.</p></noscript>\n";
  out += fmt::format("<main id=\"page\"></main>\n<script type=\"application/json\" id=\"data\">{}</script>\n",
                     embed(document));
  out += fmt::format("<script>\n{}</script>\n</body>\n</html>\n", scripts());
  return out;
}

std::string make_page(const std::vector<fs::path>& folders) {
  LAMINA_CHECK(!folders.empty(), "a page of no run");
  refuse_twice(folders);
  std::string title;
  json document;
  if (study::is_sweep(folders.front()) && folders.size() == 1) {
    const study::SweepData sweep = study::read_sweep(folders.front());
    title = sweep.name;
    document = {{"kind", "sweep"}, {"sweep", sweep_document(sweep)}};
  } else {
    for (const fs::path& folder : folders)
      if (study::is_sweep(folder))
        throw Error("{}: a sweep's folder beside others, expected it alone, or runs of it", folder.string());
    document = runs_document(folders, title);
  }
  document["made_at"] = now_in_words();
  document["program"] = program_version;
  return to_html(document, title);
}

}  // namespace lamina::report
