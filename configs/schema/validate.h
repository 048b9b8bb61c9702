// Rules that join several keys.
#pragma once

#include <map>
#include <set>
#include <string>

#include "configs/schema/config.h"

namespace lamina::schema {

// Where the keys that the user wrote stand.
struct Given {
  std::string name;                              // of the file
  std::map<std::string, std::string> origin_of;  // key path -> "file.yaml:12"
  bool expands_paths = false;        // of a user's file, not of a stored configuration, whose paths are written out
  std::set<std::string> at_default;  // those whose value is the default's: generated files write every key
  bool is_config = true;             // an experiment: an unknown key may belong to another of its sections

  // "file.yaml:12: key", with the line of the nearest section around it when the key itself was not written.
  std::string place(const std::string& key) const;
};

void validate(const Config& config, const Given& given);

// Fills the values that depend on other keys: run.output_dir, debug.dump_path, train.optimizer.attn_res_lr_factor; shortens a learning
// rate schedule that does not fit into the run, which config.notes tells.
void derive_defaults(Config& config);

}  // namespace lamina::schema
