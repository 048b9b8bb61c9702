// README.md of an exported model: what it is, what it was trained on and how far, and how to load it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/export/hf_config.h"

namespace lamina {

struct ExportFacts {
  std::string program;               // that exports
  std::string tokenizer;             // its name; empty: unknown
  bool has_tokenizer_json = true;    // AutoTokenizer loads it
  std::string rounded_weights = {};  // how the weights were rounded before they were written; empty: not at all
  std::vector<std::string> rounded_kinds = {};  // of which tensors, where it was this export
};

// Losses are those of the run folder that `checkpoint` lies in, where it does.
std::string model_card(const std::filesystem::path& checkpoint, const CheckpointInfo& info, const Config& config,
                       const HfModel& hf, const ExportFacts& facts);

}  // namespace lamina
