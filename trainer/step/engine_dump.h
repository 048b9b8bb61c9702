// Fills the audit trail of one training step (step_dump.h) from an engine: before the pass, after it and after the update.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "configs/schema/config.h"
#include "trainer/record/step_dump.h"
#include "trainer/step/engine.h"

namespace lamina {

// All calls are collective. Destroyed before finish(), it leaves no file.
class EngineDump {
 public:
  // Before the pass: the batch, of which tokens and targets are this data-parallel rank's, and the parameters.
  EngineDump(const Config& config, Engine& engine, MemoryLedger* ledger, const std::filesystem::path& path,
             int64_t step, std::span<int32_t> tokens, std::span<int32_t> targets);
  // After the pass, before clipping. token_losses: of this data-parallel rank.
  void add_gradients(double loss, double aux_loss, std::span<double> token_losses);
  // After the update.
  void finish();

 private:
  void add_values(const std::string& group, bool gradients);

  const Config& config_;
  Engine& engine_;
  MemoryLedger* ledger_;
  StepDump dump_;
};

}  // namespace lamina
