// The tensors of a model: which there are, where they lie, and how they start.
//
// Names and shapes are those of the exported checkpoint (Hugging Face names, matrices [out, in]). Inside, matrices that are
// multiplied with the same input lie next to each other, so that one product serves them all ("fused"): the query projection
// with kv_a_proj_with_mqa; the six first projections of KDA; gate_proj with up_proj, w1 with w3.
//
// Three flat buffers ("groups"): matrices in the compute dtype; those of the routed experts, which are replicated over other
// ranks than the rest; and vectors (norm weights, depth queries, convolutions, decays, the mixing of streams) always in the accumulation
// dtype, because a bf16 norm weight near 1 can't take a small step. Each group has a flat gradient buffer in the accumulation dtype,
// unless nothing is trained.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/device/buffer.h"
#include "core/device/stream.h"
#include "core/tensor/view.h"
#include "parallel/zero/shard_map.h"

namespace lamina::model {

// normal: initializer_range x init_scale; convolution: uniform within 1 / sqrt(taps); log_decay: log U(1, 16); decay_bias: the inverse
// softplus of a time step that is log-uniform between 1e-3 and 1e-1 (Mamba; Kimi Linear's own values are not published).
// mixing_bias, mixing_gate: b and alpha of hyper-connections (core/ops/hyper_connections/hyper_connections.h), so that the model begins as the one with the
// standard residual. W is zero, alpha 0.01 (arXiv 2512.24880). H_post is 1 (b = 0). H_res is near the identity, b = 0 and -8 for the other
// permutations (mHC-lite's code). H_pre adds up to 1, 3/4 of it from stream (sublayer mod n) and the rest from the others alike: equal
// streams would get equal gradients for ever.
enum class Init : uint8_t { normal, ones, zeros, convolution, log_decay, decay_bias, mixing_bias, mixing_gate };

enum class Group : uint8_t { matrices, experts, vectors };
constexpr size_t num_groups = 3;

struct ParameterSpec {
  std::string name;
  Shape shape;
  Init init = Init::normal;
  Group group = Group::matrices;
  bool joined_with_previous = false;  // fused with the one before it
  int site = -1;                      // sublayer it belongs to; -1: the embedding, 2 num_hidden_layers: the output site
  int expert = -1;                    // of the routed experts
  bool wide_in = false;               // of a matrix: its input grows with hidden_size (not a rank or a head's size)
  bool wide_out = false;   // its output does (not a rank, a head's size, the experts' number, the vocabulary)
  double init_scale = 1;   // of initializer_range (width_rule.h)
  bool is_linear = false;  // matrix of a linear layer: a unit of Muon
  bool decays = true;      // weight decay
  bool is_trained = true;  // false: the router's selection bias, which has neither gradient nor optimizer
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
  Buffer gradients;                  // empty without
  TensorView all_values() const;     // [num_padded]
  TensorView all_gradients() const;  // [num_padded], accumulation dtype; without gradients its data is null
};

// Which parameters a rank holds, by index into parameter_specs(): those of its layers, of the routed experts its share. A tied
// embedding is held by the ranks of the first and of the last chunk; the first one is its primary holder.
struct LocalParameters {
  std::vector<bool> held;
  std::vector<bool> primary;  // saved, counted in norms: true on exactly one pipeline (and expert) rank
};
LocalParameters all_parameters(const ModelConfig& config);

// How many ranks share out the optimizer's work on a parameter: those that hold the same one.
struct Replicas {
  int data = 1;
  int expert_data = 1;  // of the routed experts: data / expert
};

// Whether gradients are kept beside the parameters. Without them a model can only be run forward.
enum class Gradients : bool { none, kept };

class Parameters {
 public:
  Parameters(const ModelConfig& config, DType compute, int dp_size, Device device, MemoryLedger* ledger,
             Gradients gradients = Gradients::kept);
  Parameters(const ModelConfig& config, const LocalParameters& local, DType compute, const Replicas& replicas,
             Device device, MemoryLedger* ledger, Gradients gradients = Gradients::kept);

  // Of the whole model; an index means the same on every rank.
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  int index_of(const std::string& name) const;  // LAMINA_CHECKs that it exists
  bool has(const std::string& name) const { return index_.contains(name); }
  bool is_held(int index) const { return local_.held[static_cast<size_t>(index)]; }
  bool is_primary(int index) const { return local_.primary[static_cast<size_t>(index)]; }
  // Of those held:
  TensorView value(int index) const;     // logical shape
  TensorView gradient(int index) const;  // logical shape, accumulation dtype; without gradients its data is null
  TensorView value(const std::string& name) const { return value(index_of(name)); }
  TensorView gradient(const std::string& name) const { return gradient(index_of(name)); }
  // Rows of `first` and of those joined to it up to `last`, as one matrix [sum of rows, elements of a row].
  TensorView fused_value(const std::string& first, const std::string& last) const;
  TensorView fused_gradient(const std::string& first, const std::string& last) const;

  ParameterGroup& group(Group group) { return groups_[static_cast<size_t>(group)]; }
  std::array<ParameterGroup, num_groups>& groups() { return groups_; }  // in the order of Group
  bool has_gradients() const { return gradients_ == Gradients::kept; }
  // Position of a parameter inside its group.
  int index_in_group(int index) const { return place_[static_cast<size_t>(index)]; }

  // Values as a function of (seed, name, element index) only.
  void initialise(uint64_t seed, double initializer_range);
  void zero_gradients(Stream& stream);

 private:
  int64_t offset_in_group(int index) const;      // elements
  Shape fused_shape(int first, int last) const;  // of the matrix of their rows; LAMINA_CHECKs that they are adjacent

  std::vector<ParameterSpec> specs_;
  LocalParameters local_;
  std::map<std::string, int> index_;
  std::vector<int> place_;  // in its group; -1: not held
  Gradients gradients_;
  std::array<ParameterGroup, num_groups> groups_;
};

// Elements [begin, begin + out.num_elements()) of a tensor at the start of training, rounded once to out's dtype; in stream order.
void initialise_range(const ParameterSpec& spec, uint64_t seed, double initializer_range, int64_t begin, TensorView out,
                      Stream& stream);

}  // namespace lamina::model
