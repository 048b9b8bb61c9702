// The names in a run's `checkpoints/`:
//   step-00000100              committed when it holds COMMITTED
//   step-00000100.tmp          being written
//   step-00000100.old          committed, while another checkpoint of the same step takes its place
//   step-00000100.tmp-delete   being deleted
//   step-00000100.diverged     set aside: no finite step follows it
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lamina {

struct CommittedCheckpoint {
  int64_t step;
  std::filesystem::path path;
};

// By step; of one step, the .old one comes first.
std::vector<CommittedCheckpoint> list_committed(const std::filesystem::path& checkpoints_dir);

// Removes what a killed process left: temporary, half deleted and uncommitted folders, and those set aside; an .old one whose successor was
// committed. An .old one without a successor gets its name back.
void clean_leftovers(const std::filesystem::path& checkpoints_dir);

// Gives the finished temporary folder its name and commits it. On failure the temporary folder (under whichever name) is
// removed, and a checkpoint of the same step that stood there before stands again.
void publish(const std::filesystem::path& temporary, const std::filesystem::path& final_path,
             const std::string& marker);

// Renames, then removes: a kill in between leaves nothing that looks like a checkpoint.
void remove_folder(const std::filesystem::path& folder);

// Keeps the newest `keep` up to and including `step`; 0 keeps all. Later ones aren't counted: a run that goes on from before them
// has refused them, and they must not push out the whole ones.
void remove_older(const std::filesystem::path& checkpoints_dir, int64_t step, int64_t keep);

}  // namespace lamina
