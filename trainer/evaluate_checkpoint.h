// `lamina eval`: what a checkpoint's model knows of validation sets, texts and multiple-choice items.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "data/text_input.h"
#include "evaluation/perplexity.h"
#include "evaluation/probes.h"
#include "evaluation/tasks.h"
#include "parallel/comm/communicator.h"

namespace lamina {

struct EvaluationOrder {
  std::filesystem::path checkpoint;     // or a run folder (its newest)
  std::vector<std::string> validation;  // token folders, of each its last data.validation.num_sequences sequences
  std::vector<std::string> texts;       // files, or "-" once
  std::vector<std::string> tasks;       // files of items
  std::optional<int64_t> context;       // tokens in view; absent: data.seq_len, and the longest of the items
  std::optional<evaluation::ProbeOptions> probes;  // without lengths: data.seq_len, twice and four times that
  TextFormat format;                               // of the texts
  bool allow_trained = false;
  bool ablate_sources = false;  // the validation sets without each source of the depth reads, too
  std::string write_text;       // file for the text of the only validation set; empty: none
};

struct ValidationResult {
  std::string path;
  evaluation::Perplexity all;
  struct Ablated {
    std::string source;
    double loss = 0;
  };
  std::vector<Ablated> ablated;
};

struct CheckpointEvaluation {
  std::filesystem::path checkpoint;
  int64_t step = 0, context = 0;
  std::vector<ValidationResult> validation;
  std::vector<std::pair<std::string, evaluation::Perplexity>> texts;
  std::vector<std::pair<evaluation::Task, evaluation::TaskResult>> tasks;
  std::vector<std::pair<evaluation::Probe, evaluation::TaskResult>> probes;
};

// The configuration that the newest checkpoint of a run folder whose head is whole, or this one, was saved with, with changes.
Config stored_config(const std::filesystem::path& path, const std::vector<std::string>& overrides);

// Collective. The model is the checkpoint's, and must be the configuration's; data, batch, precision and layout are the configuration's,
// the latter where the ranks allow it. Absent when a stop was agreed on. Error for a checkpoint, a validation set, a text or an item
// that is not right for the others.
std::optional<CheckpointEvaluation> evaluate_checkpoint(const Config& asked, const EvaluationOrder& order,
                                                        comm::Communicator& comm, int device_index);

}  // namespace lamina
