// A page: one HTML file that holds its data, styles and scripts, and asks the network for nothing.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace lamina::report {

// document: {kind: "runs", runs, comparison} or {kind: "sweep", sweep}. Nothing in it can leave the data's element.
std::string to_html(const nlohmann::json& document, const std::string& title);

// A folder of runs, or one of a sweep. Error: a broken folder, one named twice, a sweep beside others.
std::string make_page(const std::vector<std::filesystem::path>& folders);

}  // namespace lamina::report
