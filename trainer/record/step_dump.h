// The audit trail of one step, as one HDF5 file:
//   /tokens, /targets [global_batch, seq_len] int32     /token_loss [global_batch, seq_len]     /loss, /aux_loss scalars
//   /parameters/<name> before the update     /gradients/<name> before clipping     /parameters_after/<name>
//   attributes of "/": `config`, the resolved configuration; `step`
// Floating point data is float32, float64 when the pieces are. Written under a temporary name, then renamed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "core/io/hdf5.h"
#include "parallel/comm/communicator.h"
#include "trainer/checkpoint/checkpoint.h"

namespace lamina {

// Filled as the step goes on. All calls are collective, in the same order on every rank; rank 0 owns the file. A
// failure on rank 0 (a full disk) is an Error on every rank. Destroyed before finish(), it leaves no file.
class StepDump {
 public:
  StepDump(const std::filesystem::path& path, const std::string& config_yaml, int64_t step, comm::Communicator& comm);
  ~StepDump();
  StepDump(StepDump&& other) noexcept;
  StepDump& operator=(StepDump&& other) noexcept;

  // Gathers the ranges that the ranks own: every element of every tensor from exactly one rank. A tensor at a time
  // passes through rank 0. Sequences are pieces too: rows [a, b) of /tokens are elements [a * seq_len, b * seq_len).
  void add(std::span<const TensorPiece> mine);
  void add_scalar(const std::string& name, double value, DType dtype = DType::f32);  // rank 0's value

  void finish();  // the file has its name and is on the disk when this returns

 private:
  void discard() noexcept;

  std::filesystem::path path_;
  std::filesystem::path temporary_;   // rank 0
  std::optional<io::Hdf5File> file_;  // rank 0
  comm::Communicator* comm_ = nullptr;
};

}  // namespace lamina
