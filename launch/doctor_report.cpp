#include "launch/doctor_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace lamina::doctor {
namespace {

const char* word(Status status) {
  return status == Status::ok ? "ok" : status == Status::note ? "note" : "problem";
}

}  // namespace

void Report::ok(std::string topic, std::string text) {
  findings_.push_back({Status::ok, std::move(topic), std::move(text), ""});
}
void Report::note(std::string topic, std::string text, std::string remedy) {
  findings_.push_back({Status::note, std::move(topic), std::move(text), std::move(remedy)});
}
void Report::problem(std::string topic, std::string text, std::string remedy) {
  findings_.push_back({Status::problem, std::move(topic), std::move(text), std::move(remedy)});
}

int Report::num_problems() const {
  return static_cast<int>(std::count_if(findings_.begin(), findings_.end(),
                                        [](const Finding& finding) { return finding.status == Status::problem; }));
}

std::string Report::text() const {
  std::string text;
  for (const Finding& finding : findings_) {
    text += fmt::format("{:<8} {:<18} {}\n", word(finding.status), finding.topic, finding.text);
    if (!finding.remedy.empty()) text += fmt::format("{:<27} mend: {}\n", "", finding.remedy);
  }
  return text;
}

std::string Report::json() const {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Finding& finding : findings_)
    list.push_back({{"status", word(finding.status)},
                    {"topic", finding.topic},
                    {"text", finding.text},
                    {"remedy", finding.remedy}});
  const int problems = num_problems();
  const nlohmann::ordered_json all = {
      {"status", problems > 0 ? "problem" : "ok"}, {"problems", problems}, {"findings", list}};
  // A host's name or a path may be no UTF-8.
  return all.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::vector<Finding> Report::parse(const std::string& json) {
  std::vector<Finding> findings;
  for (const auto& entry : nlohmann::json::parse(json).at("findings")) {
    const std::string status = entry.at("status");
    findings.push_back({status == "ok"     ? Status::ok
                        : status == "note" ? Status::note
                                           : Status::problem,
                        entry.at("topic"), entry.at("text"), entry.at("remedy")});
  }
  return findings;
}

}  // namespace lamina::doctor
