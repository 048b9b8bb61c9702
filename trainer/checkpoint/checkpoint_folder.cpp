#include "trainer/checkpoint/checkpoint_folder.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "trainer/checkpoint/checkpoint_manifest.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

// "step-00000100.old" is {100, ".old"}; other names are none of ours.
struct Name {
  int64_t step;
  std::string suffix;
};

std::optional<Name> parse_name(const std::string& name) {
  constexpr std::string_view prefix = "step-";
  if (!name.starts_with(prefix)) return std::nullopt;
  Name parsed{};
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, parsed.step);
  if (error != std::errc() || parsed.step < 0) return std::nullopt;
  parsed.suffix = std::string(stop, end);
  for (const char* known : {"", ".tmp", ".old", ".tmp-delete", ".diverged"})
    if (parsed.suffix == known) return parsed;
  return std::nullopt;
}

std::vector<std::pair<Name, fs::path>> list_ours(const fs::path& dir) {
  std::vector<std::pair<Name, fs::path>> found;
  std::error_code error;
  fs::directory_iterator entry(dir, error);
  if (error == std::errc::no_such_file_or_directory) return found;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    if (const auto name = parse_name(entry->path().filename().string())) found.emplace_back(*name, entry->path());
  if (error) throw Error("{}: can't list: {}", dir.string(), error.message());
  return found;
}

bool is_committed(const fs::path& folder) {
  return fs::exists(folder / marker_name);
}

fs::path with_suffix(fs::path path, const char* suffix) {
  return path += suffix;
}

}  // namespace

void remove_folder(const fs::path& folder) {
  std::error_code error;
  const bool is_doomed = folder.extension() == ".tmp-delete";
  const fs::path doomed =
      is_doomed ? folder : fs::path(with_suffix(fs::path(folder).replace_extension(), ".tmp-delete"));
  if (!is_doomed) {
    fs::remove_all(doomed, error);
    io::rename_durably(folder, doomed);
  }
  fs::remove_all(doomed, error);
  if (error) throw Error("{}: can't remove: {}", doomed.string(), error.message());
}

namespace {

// The new checkpoint is committed by now, so training may go on; the next save tries again.
void remove_or_warn(const fs::path& folder) {
  try {
    remove_folder(folder);
  } catch (const Error& error) {
    log::warning("{}", error.what());
  }
}

}  // namespace

std::vector<CommittedCheckpoint> list_committed(const fs::path& checkpoints_dir) {
  std::vector<CommittedCheckpoint> found;
  for (const auto& [name, path] : list_ours(checkpoints_dir))
    if ((name.suffix.empty() || name.suffix == ".old") && is_committed(path)) found.push_back({name.step, path});
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    const bool a_is_current = a.path.extension() != ".old", b_is_current = b.path.extension() != ".old";
    return std::tie(a.step, a_is_current) < std::tie(b.step, b_is_current);
  });
  return found;
}

void clean_leftovers(const fs::path& checkpoints_dir) {
  for (const auto& [name, path] : list_ours(checkpoints_dir)) {
    if (name.suffix == ".old" && is_committed(path)) continue;
    if (name.suffix.empty() && is_committed(path)) continue;
    remove_folder(path);
  }
  for (const auto& [name, path] : list_ours(checkpoints_dir)) {
    if (name.suffix != ".old") continue;
    const fs::path current = fs::path(path).replace_extension();
    if (fs::exists(current)) {
      remove_folder(path);
    } else {
      io::rename_durably(path, current);
    }
  }
}

void publish(const fs::path& temporary, const fs::path& final_path, const std::string& marker) {
  const fs::path old = with_suffix(final_path, ".old");
  bool displaced = false, renamed = false;
  try {
    io::fsync_directory(temporary);
    if (fs::exists(final_path)) {
      io::rename_durably(final_path, old);
      displaced = true;
    }
    io::rename_durably(temporary, final_path);
    renamed = true;
    io::write_file_atomically(final_path / marker_name, marker);
  } catch (...) {
    std::error_code ignored;
    // Without its marker first: a kill in the middle of this leaves nothing that looks whole.
    fs::remove(final_path / marker_name, ignored);
    fs::remove_all(renamed ? final_path : temporary, ignored);
    if (displaced) fs::rename(old, final_path, ignored);
    throw;
  }
  if (displaced) remove_or_warn(old);
}

void remove_older_checkpoints(const fs::path& checkpoints_dir, int64_t step, int64_t keep) {
  remove_older(checkpoints_dir, step, keep);
}

void set_checkpoint_aside(const fs::path& checkpoints_dir, int64_t step) {
  const fs::path current = checkpoints_dir / checkpoint_folder_name(step), aside = with_suffix(current, ".diverged");
  if (!is_committed(current)) return;
  if (fs::exists(aside)) remove_folder(aside);
  io::rename_durably(current, aside);
}

void remove_older(const fs::path& checkpoints_dir, int64_t step, int64_t keep) {
  if (keep <= 0) return;
  std::vector<CommittedCheckpoint> committed = list_committed(checkpoints_dir);
  std::erase_if(committed, [&](const CommittedCheckpoint& checkpoint) { return checkpoint.step > step; });
  for (size_t i = 0; i + static_cast<size_t>(keep) < committed.size(); ++i) remove_or_warn(committed[i].path);
}

}  // namespace lamina
