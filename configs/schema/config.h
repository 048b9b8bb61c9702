// The experiment file, as plain structs: one per section, each key spelled as in the YAML.
//
// Decoding is strict (configs/schema/decode.h): an unknown key, a wrong type, a value out of range or an impossible
// combination is an Error that names the file, the line and the nearest valid key. No key is accepted and ignored.
// Defaults below are the documentation's source (docs/configuration.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lamina {

struct RunConfig {
  std::string name = "run";
  uint64_t seed = 1;
  std::string output_dir;      // the run folder; default runs/<name>
  std::string device = "cpu";  // cpu, or cuda: NVIDIA GPUs, one per rank
  int num_threads = 0;         // per rank; 0: the cores of this machine divided by the ranks on it
};

enum class Mixer { mla, kda };
enum class Residual { standard, full_attnres, block_attnres, mhc };

// Keys of reference.ModelConfig; Hugging Face names where one exists.
struct ModelConfig {
  int64_t vocab_size = 0;         // 0: the tokenizer's
  int64_t hidden_size = 0;        // required
  int64_t num_hidden_layers = 0;  // required; decoder layers (attention + MLP)
  double rms_norm_eps = 1e-5;
  bool tie_word_embeddings = false;
  double initializer_range = 0.02;
  std::optional<int64_t>
      mup_base_width;  // initial values and learning rates follow hidden_size / this (model/width_rule.h)
  Residual residual = Residual::block_attnres;
  int64_t attn_res_block_size = 2;   // decoder layers per block; the last block may be short
  int64_t num_residual_streams = 4;  // of mhc
  // Token mixer of each layer; the pattern repeats. Empty: mla everywhere. Its keys are `num_attention_heads` to
  // `v_head_dim`; those of Kimi Delta Attention (kda) the next four.
  std::vector<Mixer> mixers;
  int64_t num_attention_heads = 0;     // required with mla
  std::optional<int64_t> q_lora_rank;  // absent: one query projection
  int64_t kv_lora_rank = 0;            // required with mla
  double kv_a_layernorm_eps = 1e-6;
  int64_t qk_nope_head_dim = 0;  // required with mla
  int64_t qk_rope_head_dim = 0;  // the key part shared by all heads; not rotated (NoPE); may be 0
  int64_t v_head_dim = 0;        // required with mla
  int64_t linear_num_heads = 0;  // required with kda
  int64_t linear_head_dim = 0;   // required with kda
  int64_t short_conv_kernel_size = 4;
  std::optional<double> gate_lower_bound;  // absent: g = -exp(A) softplus(f); -5: g = -5 sigmoid(exp(A) f)
  int64_t intermediate_size = 0;           // required where a layer has the dense MLP
  int64_t num_experts = 0;                 // 0: every layer has the dense MLP
  int64_t first_k_dense_replace = 1;       // the first layers keep the dense MLP
  int64_t num_experts_per_token = 0;       // required with experts
  int64_t num_shared_experts = 1;
  int64_t moe_intermediate_size = 0;  // required with experts; of each expert
  double routed_scaling_factor = 1.0;
  bool moe_renormalize = true;
  double aux_loss_alpha = 0;  // sequence-wise balance loss, summed over the MoE layers

  Mixer mixer(int64_t layer) const {
    return mixers.empty() ? Mixer::mla : mixers[static_cast<size_t>(layer) % mixers.size()];
  }
  bool is_moe(int64_t layer) const { return num_experts > 0 && layer >= first_k_dense_replace; }
  // Attention Residuals: sublayers read the outputs before them through a softmax.
  bool has_depth_reads() const { return residual == Residual::full_attnres || residual == Residual::block_attnres; }
  // Rows of hidden_size that a token's hidden stream has.
  int64_t num_streams() const { return residual == Residual::mhc ? num_residual_streams : 1; }
};

struct SourceConfig {
  std::string path;     // folder written by `lamina prepare`
  double weight = 1.0;  // share of the sequences, normalised over the sources; 0: only stages read it
};

struct ValidationConfig {
  std::string path;            // empty: no validation
  int64_t num_sequences = 64;  // reserved at the end of this source, never trained on
  int64_t interval = 100;      // steps between validations; 0: only at the end
};

struct DataConfig {
  int64_t seq_len = 0;              // required; tokens predicted per sequence
  std::vector<SourceConfig> train;  // required, at least one
  ValidationConfig validation;
  bool document_mask = false;  // attention, states and convolutions stay inside a document
  // Tokens of the pieces of text from which sequences of all lengths are cut; absent: the longest seq_len of the run's stages.
  std::optional<int64_t> piece_len;
};

enum class ScheduleName { gpipe, one_f_one_b, interleaved_1f1b, zero_bubble };  // "1f1b" in the file
enum class BlockTransport { cached, full };
// How the GPUs' memory travels between ranks: nccl, or host: through the hosts' memory and the CPU runs' transport. automatic: NCCL
// where the build has it and no two ranks share a GPU.
enum class GpuTransport { automatic, nccl, host };

struct ParallelConfig {
  int pipeline = 1;        // pipeline ranks
  int virtual_stages = 1;  // chunks per pipeline rank
  int data = 0;            // data-parallel ranks; 0: all ranks / pipeline
  int expert = 1;          // expert-parallel ranks, a divisor of data: each has its share of the experts
  ScheduleName schedule = ScheduleName::interleaved_1f1b;
  BlockTransport block_transport = BlockTransport::cached;  // of block summaries between pipeline ranks
  GpuTransport gpu_transport = GpuTransport::automatic;
  std::vector<int64_t>
      split;  // decoder layers per chunk, pipeline x virtual_stages entries; empty ("auto"): balanced by cost
  double timeout_seconds = 600;  // a rank that waits longer for another ends the job and names the absent ones
};

enum class OptimizerName { adamw, muon };

// Tensors that are updated otherwise than the rest. Of several groups that match a tensor, the last one that gives a key decides it.
struct OptimizerGroupConfig {
  std::string pattern;              // required; of fnmatch(3), over the whole name of a tensor
  std::optional<double> lr_factor;  // of the learning rate, at every step
  std::optional<double> weight_decay;
  std::optional<OptimizerName> rule;  // muon: of matrices only
};

struct OptimizerConfig {
  OptimizerName name = OptimizerName::adamw;  // muon: matrices of linear layers by Muon, the rest by AdamW
  double lr = 0;                              // required
  double weight_decay = 0.1;
  double momentum = 0.95;  // of Muon
  double qk_clip = 100;    // largest attention logit of MLA before its weights are scaled down; 0: off
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  std::optional<double> attn_res_lr_factor;  // of depth queries and their norms; absent: default_attn_res_lr_factor()
  std::vector<OptimizerGroupConfig> groups;
};

enum class LrScheduleName { constant, wsd, cosine };
struct LrScheduleConfig {
  LrScheduleName name = LrScheduleName::wsd;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;    // wsd: length of the linear decay that ends at the last step
  double min_lr_ratio = 0.1;  // the floor, as a share of lr
};

enum class Precision { fp32, bf16, fp64 };  // fp64: the reference implementations only, for checking
// How the CPU multiplies bf16 matrices (core/ops/bf16_products.h). automatic: each class of shapes as it is quicker.
enum class Bf16ProductsChoice { automatic, native, fp32 };
enum class Recompute { none, selective, full };

// The batch grows in equal rises from `from` to train.global_batch_size. All three or none.
struct BatchRampConfig {
  std::optional<int64_t> from;       // sequences of the first batch
  std::optional<int64_t> steps;      // the step after these is the first with the whole batch
  std::optional<int64_t> increment;  // sequences of each rise
};

enum class OnSpike { warn, skip, rewind };
// Multiple-choice items that the model answers while it trains (docs/formats.md).
struct EvalConfig {
  std::vector<std::string> tasks;  // files; a file's name without folder and ending names it in the metrics
  int64_t interval = 100;          // steps between evaluations; 0: only at the end
};

struct TrainConfig {
  int64_t num_steps = 0;          // required
  int64_t global_batch_size = 0;  // required; sequences per optimizer step
  int64_t micro_batch_size = 0;   // required; sequences per forward; global = micro x data x num_microbatches
  Precision precision = Precision::bf16;
  Bf16ProductsChoice bf16_products = Bf16ProductsChoice::automatic;
  Recompute recompute = Recompute::none;
  double grad_clip = 1.0;          // global norm; 0: off
  double router_bias_rate = 1e-3;  // of the experts' selection bias, per step; 0: off
  double max_minutes =
      0;  // wall clock from the start of the process; then a checkpoint and exit status 75; 0: no limit
  OnSpike on_spike = OnSpike::warn;
  double spike_threshold = 10;  // standard deviations of the noise; 0: only numbers that aren't finite are spikes
  int64_t max_spikes = 10;      // within SpikeWatch::window batches (trainer/record/spike_watch.h)
  std::string skip_steps;       // ranges of batches that are passed over (step_ranges.h)
  BatchRampConfig batch_ramp;
  OptimizerConfig optimizer;
  LrScheduleConfig lr_schedule;
  EvalConfig eval;
};

// What is otherwise from a step on (batch_plan.h); what is absent stays as it was.
struct StageConfig {
  int64_t from_step = 0;  // required
  std::optional<int64_t> global_batch_size, micro_batch_size, seq_len;
  std::vector<double> weights;  // of data.train, in order
  std::optional<double> lr_factor;
};

struct CheckpointConfig {
  int64_t interval = 0;   // steps between checkpoints; 0: none by steps
  double minutes = 30;    // wall clock from one checkpoint to the next, at most (and a step); 0: none by time
  int64_t keep = 3;       // newest ones kept; 0: all
  std::string init_from;  // checkpoint folder whose parameters a new run starts from
};

struct LoggingConfig {
  int64_t interval = 10;              // steps between console lines; metrics.jsonl has every step
  int64_t layer_stats_interval = 10;  // steps between rows of layers.jsonl; 0: off
  double peak_gflops = 0;             // of one rank, for the MFU; 0: measured at the start
  bool tensorboard = true;            // event files beside metrics.jsonl
  std::vector<int64_t> trace_steps;   // steps, counted from 1, of which traces/step-<step>.json is written
};

struct DebugConfig {
  int64_t dump_step = 0;  // write the step dump of this step; 0: off. Steps count from 1.
  std::string dump_path;  // default <output_dir>/dump-step-<step>.h5
};

struct Config {
  RunConfig run;
  ModelConfig model;
  DataConfig data;
  ParallelConfig parallel;
  TrainConfig train;
  std::vector<StageConfig> stages;
  CheckpointConfig checkpoint;
  LoggingConfig logging;
  DebugConfig debug;
  std::vector<std::string> notes;  // what was changed to make the rest fit: to be told, not part of the configuration
};

}  // namespace lamina
