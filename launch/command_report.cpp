#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/io/file.h"
#include "launch/commands.h"
#include "launch/report/page.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

struct ReportOptions {
  std::vector<std::string> folders;
  std::string output;
};

void write_report(const ReportOptions& options) {
  const std::vector<fs::path> folders(options.folders.begin(), options.folders.end());
  fs::path output = options.output;
  if (output.empty()) output = (folders.size() == 1 ? folders.front() : fs::path(".")) / "report.html";
  if (fs::is_directory(output)) throw Error("{}: is a folder, expected the name of a file", output.string());
  const std::string page = report::make_page(folders);
  io::write_file_atomically(output, page);
  fmt::print("{}  {:.1f} MB\n", output.string(), static_cast<double>(page.size()) / 1e6);
}

}  // namespace

void register_report(CLI::App& app) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* command = app.add_subcommand("report", "Draw runs, or a sweep, as one HTML page that needs no network");
  command->footer(
      "Examples:\n"
      "  lamina report runs/tiny                             # runs/tiny/report.html\n"
      "  lamina report runs/a runs/b --output a-and-b.html   # overlaid, with the first step and layer that differ\n"
      "  lamina report sweeps/ladder                         # all runs of a sweep, and the fitted laws");
  command->add_option("runs", options->folders, "Folders of runs, or the folder of one sweep")->required();
  command->add_option("--output", options->output,
                      "The page; default: report.html in the run's or sweep's folder, for several runs in this one");
  command->callback([options] { write_report(*options); });
}

}  // namespace lamina
