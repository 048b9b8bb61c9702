#include <sstream>

#include "core/base/log.h"
#include "parallel/comm/agreement.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_files.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/checkpoint_manifest.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

using ShardCheck = std::vector<CheckpointProblem> (*)(const fs::path& checkpoint, const ShardFile& shard);

// Every `num_parts`-th shard from `part`, and the index, which all need.
std::vector<CheckpointProblem> check_part(const fs::path& checkpoint, size_t part, size_t num_parts,
                                          ShardCheck check_shard) {
  std::vector<CheckpointProblem> problems;
  try {
    const Manifest manifest = read_manifest(checkpoint);
    for (size_t i = part; i < manifest.shards.size(); i += num_parts)
      for (CheckpointProblem& problem : check_shard(checkpoint, manifest.shards[i]))
        problems.push_back(std::move(problem));
  } catch (const CheckpointDamaged& damaged) {
    problems.push_back(damaged.problem());
  } catch (const std::exception& error) {  // a failing disk, a file system that isn't shared among the ranks
    problems.push_back({"", error.what()});
  }
  return problems;
}

// One line; empty when there is no problem.
std::string summary(const std::vector<CheckpointProblem>& problems) {
  if (problems.empty()) return "";
  std::string text = fmt::format("{}: {}", problems[0].file, problems[0].reason);
  if (problems.size() > 1) text += fmt::format(" (and {} more)", problems.size() - 1);
  return text;
}

void log_refused(const fs::path& checkpoint, const std::string& reason) {
  log::error("refused checkpoint {}: {}", checkpoint.string(), reason);
}

std::string all_refused(const fs::path& checkpoints_dir, size_t count, const std::string& names) {
  return fmt::format(
      "{}: {} committed checkpoint(s) found and all refused ({}), expected a whole one; remove the folder to start "
      "over",
      checkpoints_dir.string(), count, names);
}

// Newest first, one per line.
std::string list_candidates(const fs::path& checkpoints_dir) {
  std::string text;
  const std::vector<CommittedCheckpoint> committed = list_committed(checkpoints_dir);
  for (size_t i = committed.size(); i-- > 0;) text += committed[i].path.filename().string() + "\n";
  return text;
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// `reason_to_refuse` is empty for a whole checkpoint.
template <class Judge>
std::optional<fs::path> first_whole(const fs::path& checkpoints_dir, const std::string& candidates,
                                    Judge reason_to_refuse) {
  std::string names;
  const std::vector<std::string> lines = split_lines(candidates);
  for (const std::string& name : lines) {
    if (reason_to_refuse(checkpoints_dir / name).empty()) return checkpoints_dir / name;
    names += (names.empty() ? "" : ", ") + name;
  }
  if (!lines.empty()) throw Error(all_refused(checkpoints_dir, lines.size(), names));
  return std::nullopt;
}

}  // namespace

std::vector<fs::path> list_committed_checkpoints(const fs::path& checkpoints_dir) {
  std::vector<fs::path> paths;
  for (const CommittedCheckpoint& checkpoint : list_committed(checkpoints_dir)) paths.push_back(checkpoint.path);
  return paths;
}

std::vector<CheckpointProblem> verify_checkpoint(const fs::path& checkpoint) {
  return check_part(checkpoint, 0, 1, verify_shard);
}

std::vector<CheckpointProblem> check_file_sizes(const fs::path& checkpoint) {
  return check_part(checkpoint, 0, 1, check_shard_size);
}

std::optional<fs::path> find_checkpoint(const fs::path& checkpoints_dir) {
  return first_whole(checkpoints_dir, list_candidates(checkpoints_dir), [](const fs::path& checkpoint) {
    const std::string reason = summary(verify_checkpoint(checkpoint));
    if (!reason.empty()) log_refused(checkpoint, reason);
    return reason;
  });
}

std::optional<fs::path> find_checkpoint(const fs::path& checkpoints_dir, comm::Communicator& comm) {
  std::string candidates;
  run_and_agree(comm, [&] {
    if (comm.rank() == 0) candidates = list_candidates(checkpoints_dir);
  });
  candidates = broadcast_text(comm, candidates);
  return first_whole(checkpoints_dir, candidates, [&](const fs::path& checkpoint) {
    const auto part = static_cast<size_t>(comm.rank()), num_parts = static_cast<size_t>(comm.size());
    std::string reason;
    for (const std::string& found : gather_text(comm, summary(check_part(checkpoint, part, num_parts, verify_shard))))
      if (reason.empty()) reason = found;
    if (!reason.empty()) log_refused(checkpoint, reason);
    return broadcast_text(comm, reason);
  });
}

}  // namespace lamina
