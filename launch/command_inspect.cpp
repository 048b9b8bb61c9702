#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "data/token_file.h"
#include "launch/commands.h"
#include "launch/origin.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/export/hf_config.h"
#include "trainer/record/run_folder.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

struct InspectOptions {
  std::string path;
  bool tensors = false;
  bool verify = false;
};

// The checkpoint itself, or the newest committed one of a run folder or of its checkpoints/.
fs::path resolve_checkpoint(const fs::path& path) {
  if (!fs::is_directory(path))
    throw Error("{}: {}, expected the folder of a checkpoint or of a run", path.string(),
                fs::exists(path) ? "is not a folder" : "not found");
  fs::path folder = path.lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "runs/tiny/" ends in an empty name
  if (fs::exists(folder / "checkpoint.h5") || folder.filename().string().starts_with("step-")) return folder;
  for (const fs::path& candidates : {folder / "checkpoints", folder}) {
    const std::vector<fs::path> committed = list_committed_checkpoints(candidates);
    if (!committed.empty()) return committed.back();
  }
  throw Error("{}: no committed checkpoint found", path.string());
}

std::string thousands(int64_t count) {
  std::string digits = fmt::format("{}", count);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<size_t>(at), ",");
  return digits;
}

void print_tensors(const std::vector<CheckpointTensor>& tensors) {
  size_t width = 0;
  for (const CheckpointTensor& tensor : tensors) width = std::max(width, tensor.name.size());
  fmt::print("tensors\n");
  for (const CheckpointTensor& tensor : tensors)
    fmt::print("  {:<{}}  {}  {}\n", tensor.name, width, name_of(tensor.dtype), tensor.shape.to_string());
}

// "parameters", "optimizer/m", ..: the tensors of each, and their elements.
void print_totals(const std::vector<CheckpointTensor>& tensors) {
  struct Total {
    int64_t num_tensors = 0, num_elements = 0;
  };
  std::map<std::string, Total> totals;
  for (const CheckpointTensor& tensor : tensors) {
    const size_t slash = tensor.name.rfind('/');
    Total& total = totals[slash == std::string::npos ? "other" : tensor.name.substr(0, slash)];
    ++total.num_tensors;
    total.num_elements += tensor.shape.num_elements();
  }
  for (const auto& [group, total] : totals)
    fmt::print("{:<14} {} elements in {} tensor{}\n", group, thousands(total.num_elements), total.num_tensors,
               total.num_tensors == 1 ? "" : "s");
}

// `section`: only the one that begins with this line.
void print_configuration(const std::string& yaml, const std::string& section = "") {
  fmt::print("configuration\n");
  std::istringstream in(yaml);
  bool shows = section.empty();
  for (std::string line; std::getline(in, line);) {
    if (!section.empty() && !line.starts_with(' ')) shows = line == section;
    if (shows) fmt::print("  {}\n", line);
  }
}

void inspect_tokens(const InspectOptions& options) {
  const TokenFile file = TokenFile::open(options.path);
  const TokenFileInfo& info = file.info();
  fmt::print("token folder   {}\n", options.path);
  fmt::print("tokenizer      {}, vocabulary {}, end of document {}\n", info.tokenizer, info.vocab_size,
             info.end_of_document);
  fmt::print("tokenizer_hash {}\n", info.tokenizer_hash);
  fmt::print("tokens         {} in {} documents, hash {}\n", thousands(info.num_tokens), thousands(info.num_documents),
             info.tokens_hash);
  fmt::print("text           {} bytes, hash {}\n", thousands(info.num_bytes), info.text_hash);
  std::istringstream names(info.sources);
  for (std::string name; std::getline(names, name);) fmt::print("source         {}\n", name);
  for (const TokenInput& input : file.files_elsewhere())
    fmt::print("in place       {}, {} tokens from byte {} of {}\n", input.file.string(), thousands(input.num_tokens),
               input.offset, thousands(input.file_bytes));
  fmt::print("{}", describe_origin(options.path));
  if (options.verify) file.verify();
  fmt::print("whole          {}\n", options.verify ? "yes, every byte has its checksum"
                                                   : "every file has its length (--verify reads every byte)");
}

void inspect_export(const InspectOptions& options) {
  const std::string config = (fs::path(options.path) / "config.json").string();
  const HfModel hf = parse_hf_config(io::read_file(config), config);
  fmt::print("exported       {}\n", options.path);
  fmt::print("tokenizer_hash {}\n", hf.tokenizer.hash.empty() ? "not known" : hf.tokenizer.hash);
  const std::string origin = describe_origin(options.path);
  fmt::print("{}", origin.empty() ? "origin         not known: the folder has no origin.json\n" : origin);
  Config shown;
  shown.model = hf.model;
  print_configuration(to_yaml(shown), "model:");
}

// A line per start of the run.
void print_starts(const fs::path& run) {
  const RunFolder folder{run};
  if (!fs::exists(folder.starts())) return;
  std::istringstream in(io::read_file(folder.starts()));
  for (std::string line; std::getline(in, line);) {
    const auto row = nlohmann::ordered_json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object()) continue;  // half written when the process died
    fmt::print("run\n");
    for (const auto& [key, value] : row.items())
      fmt::print("  {:<14} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
  }
}

void inspect(const InspectOptions& options) {
  const fs::path given = options.path;
  if ((options.tensors || options.verify) && fs::exists(given / "config.json"))
    throw Error("{}: found an exported model, expected a checkpoint or a token folder for --tensors and --verify",
                options.path);
  if (options.tensors && fs::exists(given / "tokens.h5"))
    throw Error("{}: found a token folder, expected a checkpoint for --tensors", options.path);
  if (fs::exists(given / "tokens.h5")) return inspect_tokens(options);
  if (fs::exists(given / "config.json")) return inspect_export(options);
  const fs::path checkpoint = resolve_checkpoint(options.path);
  const CheckpointInfo info = read_checkpoint_info(checkpoint);  // throws when its index or marker is damaged
  const std::vector<CheckpointTensor> tensors = list_checkpoint_tensors(checkpoint);
  fmt::print("checkpoint     {}\n", checkpoint.string());
  fmt::print("step           {}\n", info.step);
  fmt::print("written        {} by {} rank{} ({} data-parallel), program {}\n", info.written_at, info.world_size,
             info.world_size == 1 ? "" : "s", info.data_parallel, info.program_version);
  if (const auto contents = info.extra.find("contents"); contents == info.extra.end())
    fmt::print("sampler        {} sequences consumed, fingerprint {}, seed {}\n", thousands(info.sequences_consumed),
               info.sampler_fingerprint, info.seed);
  fmt::print("tokenizer      {}\n", !info.tokenizer                 ? "none"
                                    : info.tokenizer->model.empty() ? info.tokenizer->name
                                                                    : fmt::format("{}, {} bytes", info.tokenizer->name,
                                                                                  info.tokenizer->model.size()));
  for (const auto& [key, value] : info.extra) {
    const auto lines = std::count(value.begin(), value.end(), '\n');
    fmt::print("{:<14} {}\n", key, lines == 0 ? value : fmt::format("{} lines", lines));
  }
  print_starts(given);
  print_totals(tensors);
  print_configuration(info.config_yaml);
  if (options.tensors) print_tensors(tensors);

  // Without --verify: presence and size of every file, which costs nothing. With it: every byte.
  const std::vector<CheckpointProblem> problems =
      options.verify ? verify_checkpoint(checkpoint) : check_file_sizes(checkpoint);
  if (problems.empty()) {
    fmt::print("whole          {}\n", options.verify
                                          ? "yes, every byte has its checksum"
                                          : "committed, every file has its size (--verify reads every byte)");
    return;
  }
  for (const CheckpointProblem& problem : problems) fmt::print("damaged        {}: {}\n", problem.file, problem.reason);
  std::fflush(stdout);
  throw Error("{}: {}: {}{}", checkpoint.string(), problems[0].file, problems[0].reason,
              problems.size() == 1 ? "" : fmt::format(" (and {} more)", problems.size() - 1));
}

}  // namespace

void register_inspect(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand("inspect",
                                         "Show what a checkpoint, run, token folder or exported model is and where it "
                                         "comes from, and whether it is whole");
  command->footer("Example:\n  lamina inspect runs/tiny --tensors --verify");
  command
      ->add_option("checkpoint", options->path,
                   "Folder of a checkpoint, of a run (its newest one), of tokens, or of an exported model")
      ->required();
  command->add_flag("--tensors", options->tensors, "List every tensor with its shape and dtype");
  command->add_flag("--verify", options->verify, "Read every byte and compare the checksums");
  command->callback([options] { inspect(*options); });
}

}  // namespace lamina
