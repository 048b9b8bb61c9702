// The tensors of a model: which there are, where they lie, and how they start.
//
// Names and shapes are those of the exported checkpoint (Hugging Face names, matrices [out, in]). Inside, matrices that are
// multiplied with the same input lie next to each other, so that one product serves both ("fused"): the query projection
// with kv_a_proj_with_mqa, and gate_proj with up_proj.
//
// Two flat buffers ("groups"): matrices in the compute dtype, and vectors (norm weights, depth queries) always in the
// accumulation dtype, because a bf16 norm weight near 1 can't take a small step. Each group has a flat gradient buffer in
// the accumulation dtype.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/device/buffer.h"
#include "core/tensor/view.h"
#include "parallel/zero/shard_map.h"

namespace lamina::model {

enum class Init : uint8_t { normal, ones, zeros };

struct ParameterSpec {
  std::string name;
  Shape shape;
  Init init = Init::normal;
  bool is_matrix = true;              // group
  bool joined_with_previous = false;  // fused with the matrix before it
  int site = -1;                      // sublayer it belongs to; -1: the embedding, 2 num_hidden_layers: the output site
};

// Every tensor, in the order in which they lie in memory (depth order).
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);
int64_t num_parameters(const ModelConfig& config);

// One flat buffer of parameters and its gradients.
struct ParameterGroup {
  DType dtype;                            // of the parameters
  std::vector<zero::FlatParameter> flat;  // as the shard map wants them
  std::vector<int> spec_of;               // index into Parameters::specs() of each
  zero::ShardMap shards;
  Buffer values;
  Buffer gradients;
  TensorView all_values() const;     // [num_padded]
  TensorView all_gradients() const;  // [num_padded], accumulation dtype
};

// Which parameters a pipeline rank holds, by index into parameter_specs(). A tied embedding is held by the ranks of the first
// and of the last chunk; the first one is its primary holder.
struct LocalParameters {
  std::vector<bool> held;
  std::vector<bool> primary;  // saved, counted in norms: true on exactly one pipeline rank
};
LocalParameters all_parameters(const ModelConfig& config);

class Parameters {
 public:
  Parameters(const ModelConfig& config, DType compute, int dp_size, Device device, MemoryLedger* ledger);
  Parameters(const ModelConfig& config, const LocalParameters& local, DType compute, int dp_size, Device device,
             MemoryLedger* ledger);

  // Of the whole model; an index means the same on every rank.
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  int index_of(const std::string& name) const;  // LAMINA_CHECKs that it exists
  bool has(const std::string& name) const { return index_.contains(name); }
  bool is_held(int index) const { return local_.held[static_cast<size_t>(index)]; }
  bool is_primary(int index) const { return local_.primary[static_cast<size_t>(index)]; }
  // Of those held:
  TensorView value(int index) const;     // logical shape
  TensorView gradient(int index) const;  // logical shape, accumulation dtype
  TensorView value(const std::string& name) const { return value(index_of(name)); }
  TensorView gradient(const std::string& name) const { return gradient(index_of(name)); }
  // Rows of `first` and of the matrices joined to it, as one matrix [sum of out, in].
  TensorView fused_value(const std::string& first, const std::string& last) const;
  TensorView fused_gradient(const std::string& first, const std::string& last) const;

  ParameterGroup& matrices() { return matrices_; }
  ParameterGroup& vectors() { return vectors_; }
  // Position of a parameter inside its group.
  int index_in_group(int index) const { return place_[static_cast<size_t>(index)]; }

  // Values as a function of (seed, name, element index) only.
  void initialise(uint64_t seed, double initializer_range);
  void zero_gradients();

 private:
  TensorView view(int index, bool gradient) const;
  TensorView fused(const std::string& first, const std::string& last, bool gradient) const;

  std::vector<ParameterSpec> specs_;
  LocalParameters local_;
  std::map<std::string, int> index_;
  std::vector<int> place_;  // in its group; -1: not held
  ParameterGroup matrices_, vectors_;
};

// Elements [begin, begin + out.num_elements()) of a tensor at the start of training, rounded once to out's dtype.
void initialise_range(const ParameterSpec& spec, uint64_t seed, double initializer_range, int64_t begin,
                      TensorView out);

}  // namespace lamina::model
