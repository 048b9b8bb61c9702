// Every key of the configuration, declared once: name, field, valid range, meaning. The reader, the writer and the
// reference page are visitors of these declarations. Defaults are the initialisers in config.h.
//
// A visitor has key(name, field, rule, meaning), section(name, struct, meaning) and list(name, vector, rule, meaning).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>

#include "configs/schema/config.h"
#include "configs/schema/device.h"

namespace lamina::schema {

struct Rule {
  bool is_required = false;
  std::optional<double> min, max;
  bool min_open = false, max_open = false;
  std::string default_text;  // where the default is derived from other keys
  std::string empty_word;    // of a list of numbers or names: the word that stands for the empty list
  bool is_path = false;      // of a text: ~ and environment variables are written out

  Rule required() const {
    Rule r = *this;
    r.is_required = true;
    return r;
  }
  Rule at_least(double bound) const {
    Rule r = *this;
    r.min = bound;
    return r;
  }
  Rule above(double bound) const {
    Rule r = *this;
    r.min = bound;
    r.min_open = true;
    return r;
  }
  Rule at_most(double bound) const {
    Rule r = *this;
    r.max = bound;
    return r;
  }
  Rule below(double bound) const {
    Rule r = *this;
    r.max = bound;
    r.max_open = true;
    return r;
  }
  Rule derived(const std::string& text) const {
    Rule r = *this;
    r.default_text = text;
    return r;
  }

  Rule path() const {
    Rule r = *this;
    r.is_path = true;
    return r;
  }
  Rule or_word(const std::string& word) const {
    Rule r = *this;
    r.empty_word = word;
    return r;
  }

  bool allows(double value) const;
  std::string range() const;  // "at least 0 and below 1"; empty without bounds
};

template <class E>
struct enum_names;
template <>
struct enum_names<Residual> {
  static constexpr std::array<std::pair<const char*, Residual>, 4> value = {{{"standard", Residual::standard},
                                                                             {"full_attnres", Residual::full_attnres},
                                                                             {"block_attnres", Residual::block_attnres},
                                                                             {"mhc", Residual::mhc}}};
};
template <>
struct enum_names<ScheduleName> {
  static constexpr std::array<std::pair<const char*, ScheduleName>, 4> value = {
      {{"gpipe", ScheduleName::gpipe},
       {"1f1b", ScheduleName::one_f_one_b},
       {"interleaved_1f1b", ScheduleName::interleaved_1f1b},
       {"zero_bubble", ScheduleName::zero_bubble}}};
};
template <>
struct enum_names<BlockTransport> {
  static constexpr std::array<std::pair<const char*, BlockTransport>, 2> value = {
      {{"cached", BlockTransport::cached}, {"full", BlockTransport::full}}};
};
template <>
struct enum_names<GpuTransport> {
  static constexpr std::array<std::pair<const char*, GpuTransport>, 3> value = {
      {{"auto", GpuTransport::automatic}, {"nccl", GpuTransport::nccl}, {"host", GpuTransport::host}}};
};
template <>
struct enum_names<Mixer> {
  static constexpr std::array<std::pair<const char*, Mixer>, 2> value = {{{"mla", Mixer::mla}, {"kda", Mixer::kda}}};
};
template <>
struct enum_names<OptimizerName> {
  static constexpr std::array<std::pair<const char*, OptimizerName>, 2> value = {
      {{"adamw", OptimizerName::adamw}, {"muon", OptimizerName::muon}}};
};
template <>
struct enum_names<LrScheduleName> {
  static constexpr std::array<std::pair<const char*, LrScheduleName>, 3> value = {
      {{"constant", LrScheduleName::constant}, {"wsd", LrScheduleName::wsd}, {"cosine", LrScheduleName::cosine}}};
};
template <>
struct enum_names<OnSpike> {
  static constexpr std::array<std::pair<const char*, OnSpike>, 3> value = {
      {{"warn", OnSpike::warn}, {"skip", OnSpike::skip}, {"rewind", OnSpike::rewind}}};
};
template <>
struct enum_names<Precision> {
  static constexpr std::array<std::pair<const char*, Precision>, 3> value = {
      {{"fp32", Precision::fp32}, {"bf16", Precision::bf16}, {"fp64", Precision::fp64}}};
};
template <>
struct enum_names<Bf16ProductsChoice> {
  static constexpr std::array<std::pair<const char*, Bf16ProductsChoice>, 3> value = {
      {{"auto", Bf16ProductsChoice::automatic},
       {"native", Bf16ProductsChoice::native},
       {"fp32", Bf16ProductsChoice::fp32}}};
};
template <>
struct enum_names<FigureBasis> {
  static constexpr std::array<std::pair<const char*, FigureBasis>, 3> value = {
      {{"datasheet", FigureBasis::datasheet}, {"measured", FigureBasis::measured}, {"assumed", FigureBasis::assumed}}};
};
template <>
struct enum_names<Recompute> {
  static constexpr std::array<std::pair<const char*, Recompute>, 3> value = {
      {{"none", Recompute::none}, {"selective", Recompute::selective}, {"full", Recompute::full}}};
};

template <class V>
void describe(V& v, RunConfig& c) {
  v.key("name", c.name, Rule(), "Name of the run.");
  v.key("seed", c.seed, Rule().at_least(0), "Initial parameters and the order of the data are functions of it.");
  v.key("output_dir", c.output_dir, Rule().derived("runs/<name>").path(), "The run folder.");
  v.key("device", c.device, Rule(),
        "Where the run computes: `cpu`, or `cuda`: NVIDIA GPUs, one per rank (`lamina doctor` tells whether one is "
        "usable). fp64 "
        "runs on the CPU only.");
  v.key("num_threads", c.num_threads, Rule().at_least(0),
        "Threads per rank; 0: the cores that this process may use, shared with the other ranks on them. A resumed run "
        "gives the same bits only with the same number.");
}

template <class V>
void describe(V& v, ModelConfig& c) {
  const Rule size = Rule().required().at_least(1);
  v.key("vocab_size", c.vocab_size, Rule().at_least(0), "Rows of the embedding; 0: the tokenizer's vocabulary.");
  v.key("hidden_size", c.hidden_size, size, "Width of the residual stream.");
  v.key("num_hidden_layers", c.num_hidden_layers, size, "Decoder layers, each an attention and an MLP.");
  v.key("rms_norm_eps", c.rms_norm_eps, Rule().above(0), "Epsilon of the RMS norms.");
  v.key("tie_word_embeddings", c.tie_word_embeddings, Rule(), "The head uses the embedding's matrix.");
  v.key("initializer_range", c.initializer_range, Rule().above(0), "Standard deviation of the initial matrices.");
  v.key("mup_base_width", c.mup_base_width, Rule().at_least(1),
        "The `hidden_size` at which learning rate and `initializer_range` were chosen: at another width, initial "
        "matrices "
        "and learning rates follow the maximal-update rule, so that these serve there too. Not with "
        "`tie_word_embeddings`.");
  v.key("residual", c.residual, Rule(), "Residual scheme. `mhc` runs on the CPU only.");
  v.key("attn_res_block_size", c.attn_res_block_size, Rule().at_least(1),
        "Decoder layers per block, the last block may be short. Only with `residual: block_attnres`.");
  v.key("num_residual_streams", c.num_residual_streams, Rule().at_least(2).at_most(4),
        "Streams of a token between sublayers; mixing them takes the weights of all their permutations. Only with "
        "`residual: mhc`.");
  v.key("mixers", c.mixers, Rule(),
        "Token mixer of each layer, repeated when there are more layers; absent: `mla` everywhere.");
  const Rule latent = Rule().at_least(1).derived("required with mla");
  v.key("num_attention_heads", c.num_attention_heads, latent, "Attention heads.");
  v.key("q_lora_rank", c.q_lora_rank, Rule().at_least(1), "Rank of the query projection; absent: one full matrix.");
  v.key("kv_lora_rank", c.kv_lora_rank, latent, "Rank of the shared key and value projection.");
  v.key("kv_a_layernorm_eps", c.kv_a_layernorm_eps, Rule().above(0), "Epsilon of the norm inside that projection.");
  v.key("qk_nope_head_dim", c.qk_nope_head_dim, latent, "Width per head of queries and keys, each head its own.");
  v.key("qk_rope_head_dim", c.qk_rope_head_dim, Rule().at_least(0),
        "Width of the key part that all heads share; not rotated (NoPE).");
  v.key("v_head_dim", c.v_head_dim, latent, "Width per head of the values.");
  v.key("linear_num_heads", c.linear_num_heads, Rule().at_least(1).derived("required with kda"),
        "Heads of Kimi Delta Attention. This and the next three only with `kda` in `mixers`.");
  v.key("linear_head_dim", c.linear_head_dim, Rule().at_least(1).derived("required with kda"),
        "Width per head of its queries, keys and values.");
  v.key("short_conv_kernel_size", c.short_conv_kernel_size, Rule().at_least(1), "Taps of its causal convolutions.");
  v.key("gate_lower_bound", c.gate_lower_bound, Rule().below(0),
        "Least log decay per step; absent: unbounded, by a softplus.");
  v.key("intermediate_size", c.intermediate_size, Rule().at_least(1).derived("required with a dense MLP"),
        "Width of the dense MLP.");
  v.key("num_experts", c.num_experts, Rule().at_least(0),
        "Routed experts of a mixture-of-experts layer; 0: every layer has the dense MLP.");
  v.key("first_k_dense_replace", c.first_k_dense_replace, Rule().at_least(0),
        "The first layers that keep the dense MLP. This and the next six only with `num_experts`.");
  v.key("num_experts_per_token", c.num_experts_per_token, Rule().at_least(1).derived("required with experts"),
        "Routed experts that each token goes to.");
  v.key("num_shared_experts", c.num_shared_experts, Rule().at_least(0), "Experts that every token goes to.");
  v.key("moe_intermediate_size", c.moe_intermediate_size, Rule().at_least(1).derived("required with experts"),
        "Width of each expert.");
  v.key("routed_scaling_factor", c.routed_scaling_factor, Rule().above(0), "Factor of the routed experts' sum.");
  v.key("moe_renormalize", c.moe_renormalize, Rule(), "The weights of a token's experts add up to one.");
  v.key("aux_loss_alpha", c.aux_loss_alpha, Rule().at_least(0), "Weight of the sequence-wise balance loss.");
}

template <class V>
void describe(V& v, SourceConfig& c) {
  v.key("path", c.path, Rule().required().path(), "Folder written by `lamina prepare`.");
  v.key("weight", c.weight, Rule().at_least(0),
        "Share of the sequences, normalised over the sources; 0: read only in `stages` that say so.");
}

template <class V>
void describe(V& v, ValidationConfig& c) {
  v.key("path", c.path, Rule().path(), "Folder written by `lamina prepare`; empty: no validation.");
  v.key("num_sequences", c.num_sequences, Rule().at_least(1),
        "Sequences reserved at the end of this source, never trained on. Only with a `path`.");
  v.key("interval", c.interval, Rule().at_least(0),
        "Steps between validations; 0: only at the end. Only with a `path`.");
}

template <class V>
void describe(V& v, DataConfig& c) {
  v.key("seq_len", c.seq_len, Rule().required().at_least(1), "Tokens predicted per sequence.");
  v.list("train", c.train, Rule().required(), "Sources of the training sequences, at least one, each a section of:");
  v.section("validation", c.validation, "Held-out loss.");
  v.key(
      "document_mask", c.document_mask, Rule(),
      "Tokens see their own document only: attention, recurrent states and convolutions start anew where one starts.");
  v.key("piece_len", c.piece_len, Rule().at_least(1).derived("the longest seq_len of the stages"),
        "Tokens of the pieces of text from which sequences of every length are cut: a multiple of each `seq_len` up to "
        "it. A stage with a longer one starts a new epoch of every source.");
}

template <class V>
void describe(V& v, ParallelConfig& c) {
  v.key("pipeline", c.pipeline, Rule().at_least(1),
        "Pipeline ranks: each has a share of the layers. ranks = pipeline x data.");
  v.key("virtual_stages", c.virtual_stages, Rule().at_least(1),
        "Chunks of consecutive layers per pipeline rank; chunk c is on rank c mod `pipeline`.");
  v.key("data", c.data, Rule().at_least(0), "Data-parallel ranks; 0: all ranks / `pipeline`.");
  v.key("expert", c.expert, Rule().at_least(1),
        "Expert-parallel ranks, a divisor of the data-parallel ones. Only with `model.num_experts`.");
  v.key("schedule", c.schedule, Rule(),
        "Order of the micro-batches' forward and backward passes; `1f1b` only with `virtual_stages: 1`, where "
        "`interleaved_1f1b` is the same.");
  v.key("block_transport", c.block_transport, Rule(),
        "Block summaries between pipeline ranks. `cached`: each travels to a rank once; `full`: all of them on every "
        "hop. Not with `residual: standard` or `mhc`.");
  v.key("gpu_transport", c.gpu_transport, Rule(),
        "Between the GPUs' memories. `nccl`: needs a GPU of its own for each rank; `host`: through the hosts' memory, "
        "over "
        "MPI; `auto`: `nccl` where the build has it and no two ranks share a GPU. Only with `run.device: cuda`.");
  v.key("split", c.split, Rule().at_least(0).or_word("auto"),
        "Decoder layers of each chunk, `pipeline` x `virtual_stages` entries in chunk order; `auto`: balanced by cost. "
        "Only the first and the last chunk may have 0.");
  v.key("timeout_seconds", c.timeout_seconds, Rule().above(0),
        "A rank that waits longer than this for another ends the job and names the missing ranks and hosts. While "
        "ranks wait for files, as in a save, the log says so instead and they keep waiting.");
}

template <class V>
void describe(V& v, OptimizerGroupConfig& c) {
  v.key("pattern", c.pattern, Rule().required(),
        "Names of tensors as `lamina inspect` lists them, as a shell pattern over the whole name: `*` is any text, `?` "
        "one "
        "character, `[0-3]` one of a set.");
  v.key("lr_factor", c.lr_factor, Rule().at_least(0),
        "Factor of the learning rate at every step; 0 leaves them as they are.");
  v.key("weight_decay", c.weight_decay, Rule().at_least(0),
        "In place of `train.optimizer.weight_decay`, also for `A_log` and `dt_bias`, which don't decay otherwise.");
  v.key("rule", c.rule, Rule(), "What updates them; `muon` takes matrices only (of embedding and head too).");
}

template <class V>
void describe(V& v, OptimizerConfig& c) {
  v.key("name", c.name, Rule(),
        "`adamw`, or `muon`: Muon for the matrices of linear layers, each on its own, and AdamW for everything else.");
  v.key("lr", c.lr, Rule().required().above(0), "Peak learning rate.");
  v.key("weight_decay", c.weight_decay, Rule().at_least(0), "Decoupled weight decay.");
  v.key("momentum", c.momentum, Rule().at_least(0).below(1),
        "Momentum of Muon (Nesterov). Only with `name: muon` or a group's `rule: muon`.");
  v.key(
      "qk_clip", c.qk_clip, Rule().at_least(0),
      "Query and key weights of an attention head are scaled down after a step in which a logit exceeded this; 0: off. "
      "Only with `name: muon`.");
  v.key("beta1", c.beta1, Rule().at_least(0).below(1), "Decay of the first moment.");
  v.key("beta2", c.beta2, Rule().at_least(0).below(1), "Decay of the second moment.");
  v.key("eps", c.eps, Rule().above(0), "Added to the root of the second moment.");
  v.key(
      "attn_res_lr_factor", c.attn_res_lr_factor, Rule().at_least(0).derived("min(1, 0.15 / (lr x hidden_size))"),
      "Factor of the learning rate of depth queries and their norms (`*_res_proj.weight`, `*_res_norm.weight`). With "
      "the default, a step moves a depth read's logit by at most about 0.15. Not with `residual: standard` or `mhc`.");
  v.list("groups", c.groups, Rule(),
         "Tensors with a learning rate, weight decay or rule of their own. A group gives at least one of the three. "
         "Where several match a tensor, the last one that gives a key decides it; a key that decides nothing is an "
         "error. Each a section of:");
}

template <class V>
void describe(V& v, LrScheduleConfig& c) {
  v.key("name", c.name, Rule(),
        "`wsd`: warm up, stay, decay linearly; `cosine`: warm up, then a half cosine; `constant`: warm up, then stay.");
  v.key("warmup_steps", c.warmup_steps, Rule().at_least(0),
        "Steps of linear warm-up. Where warm-up and decay are longer than the run, both are shortened alike, and the "
        "log says so.");
  v.key("decay_steps", c.decay_steps, Rule().at_least(0),
        "Length of the linear decay that ends at the last step. Only with `name: wsd`.");
  v.key("min_lr_ratio", c.min_lr_ratio, Rule().at_least(0).at_most(1),
        "Where the decay ends, as a share of `lr`. Not with `name: constant`.");
}

template <class V>
void describe(V& v, BatchRampConfig& c) {
  v.key("from", c.from, Rule().at_least(1), "Sequences of the first batch; absent: no ramp.");
  v.key("steps", c.steps, Rule().at_least(1).derived("required with `from`"),
        "Length of the ramp: the step after it is the first with `global_batch_size`.");
  v.key("increment", c.increment, Rule().at_least(1).derived("required with `from`"),
        "Sequences of each rise; the rises share `steps` evenly. `global_batch_size` - `from` is a multiple of it.");
}

template <class V>
void describe(V& v, StageConfig& c) {
  v.key("from_step", c.from_step, Rule().required().at_least(2).at_most(1e9),
        "First step of the stage, in rising order. Where batches were passed over before it, the stage begins so many "
        "steps earlier: it is a stretch of the order of batches.");
  v.key("global_batch_size", c.global_batch_size, Rule().at_least(1), "As `train.global_batch_size`.");
  v.key("micro_batch_size", c.micro_batch_size, Rule().at_least(1), "As `train.micro_batch_size`.");
  v.key("seq_len", c.seq_len, Rule().at_least(1),
        "As `data.seq_len`, of training; validation and tasks keep the run's. It divides `data.piece_len`.");
  v.key("weights", c.weights, Rule().at_least(0),
        "Shares of the sources, one for each of `data.train` in order, normalised; 0: not read.");
  v.key("lr_factor", c.lr_factor, Rule().at_least(0), "Factor of what `train.lr_schedule` says, in place of 1.");
}

template <class V>
void describe(V& v, EvalConfig& c) {
  v.key("tasks", c.tasks, Rule().path(),
        "Files of multiple-choice items (docs/formats.md), which must differ in name. Items longer than `data.seq_len` "
        "tokens lose their beginning, and the log says how many.");
  v.key("interval", c.interval, Rule().at_least(0),
        "Steps between evaluations; 0: only at the end. Only with `tasks`.");
}

template <class V>
void describe(V& v, TrainConfig& c) {
  const Rule size = Rule().required().at_least(1);
  v.key("num_steps", c.num_steps, size, "Optimizer steps.");
  v.key("global_batch_size", c.global_batch_size, size,
        "Sequences per optimizer step: micro_batch_size x data-parallel ranks x number of micro-batches.");
  v.key("micro_batch_size", c.micro_batch_size, size, "Sequences per forward pass of one rank.");
  v.key("precision", c.precision, Rule(),
        "Compute type of activations and matrices; `fp64` runs the reference implementations only, for checking.");
  v.key("bf16_products", c.bf16_products, Rule(),
        "How the CPU multiplies bf16 matrices. `native`: by its bf16 instructions, an error if it has none; `fp32`: "
        "widened, as fp32; `auto`: a short measurement at the start decides for each class of shapes; a run resumed on "
        "the same kind of processor keeps its checkpoint's choice. `lamina doctor` shows it. Only with "
        "`precision: bf16` on the CPU.");
  v.key("recompute", c.recompute, Rule(), "Which activations the backward pass recomputes instead of keeping them.");
  v.key("grad_clip", c.grad_clip, Rule().at_least(0), "Largest global norm of the gradient; 0: off.");
  v.key("router_bias_rate", c.router_bias_rate, Rule().at_least(0),
        "Change per step of the bias that selects experts, up for those with fewer tokens than the mean; none while "
        "`wsd` "
        "decays; 0: off. Only with `model.num_experts`.");
  v.key("max_minutes", c.max_minutes, Rule().at_least(0),
        "Wall-clock limit of one start of the program: at the limit a checkpoint is saved and the exit status is 75, "
        "as after SIGTERM; 0: none.");
  v.key(
      "on_spike", c.on_spike, Rule(),
      "What is done with a step whose loss or gradient norm is a spike (`spike_threshold`) or not finite, before it "
      "changes the model. `warn`: a line in the log; numbers that aren't finite end the run. `skip`: its batch is "
      "passed over and the step takes the next one. `rewind`: back to the newest checkpoint and past all batches since "
      "then; without one as `skip`. `spikes.jsonl` in the run folder records each.");
  v.key("spike_threshold", c.spike_threshold, Rule().at_least(0),
        "How far above the median of the last 16 steps the loss or the gradient norm may be, in standard deviations of "
        "the last 128 (from the median difference between successive steps); judged from the 33rd step on; 0: only "
        "numbers "
        "that aren't finite are spikes.");
  v.key("max_spikes", c.max_spikes, Rule().at_least(1),
        "With `on_spike: skip` or `rewind`: at one more within 128 steps the run ends as one that diverges.");
  v.key(
      "skip_steps", c.skip_steps, Rule(),
      "Batches to pass over, by the steps that take them in a run that passes none over: `1230-1240, 1300`. The steps "
      "take the batches that are left, in order. Those that a run has already trained on can't be named.");
  v.section("batch_ramp", c.batch_ramp,
            "A batch that grows at the beginning of the run. All three keys or none; `stages` may change the batch "
            "after it.");
  v.section("optimizer", c.optimizer, "Parameter updates.");
  v.section("lr_schedule", c.lr_schedule, "Learning rate over the steps.");
  v.section("eval", c.eval, "Multiple-choice items that the model answers while it trains.");
}

template <class V>
void describe(V& v, CheckpointConfig& c) {
  v.key("interval", c.interval, Rule().at_least(0), "Steps between checkpoints; 0: only by time, and one at the end.");
  v.key("minutes", c.minutes, Rule().at_least(0),
        "Also a checkpoint after the first step that ends this many minutes of wall-clock time after the last one; 0: "
        "none by time.");
  v.key("keep", c.keep, Rule().at_least(0),
        "Number of newest checkpoints kept; 0: all. One more is kept until the step after the newest has shown it to "
        "be good.");
  v.key("init_from", c.init_from, Rule().path(),
        "Checkpoint whose parameters a new run starts from (saved by `lamina train` or made by `lamina import`), with "
        "this model and tokenizer; a run that has a checkpoint of its own resumes from that.");
}

template <class V>
void describe(V& v, LoggingConfig& c) {
  v.key("interval", c.interval, Rule().at_least(1), "Steps between console lines; `metrics.jsonl` has every step.");
  v.key("layer_stats_interval", c.layer_stats_interval, Rule().at_least(0),
        "Steps between rows of `layers.jsonl`; 0: off.");
  v.key("peak_gflops", c.peak_gflops, Rule().at_least(0),
        "Largest rate of one rank, against which the model FLOPs utilisation (MFU) is logged; 0: that of a matrix "
        "product, "
        "measured at the start.");
  v.key("tensorboard", c.tensorboard, Rule(), "Write TensorBoard's event files beside `metrics.jsonl`.");
  v.key("trace_steps", c.trace_steps, Rule().at_least(1).or_word("none"),
        "Steps, counted from 1, of which `traces/step-<step>.json` is written: what each rank computed, sent and "
        "waited for, "
        "for Perfetto or chrome://tracing.");
}

template <class V>
void describe(V& v, DebugConfig& c) {
  v.key("dump_step", c.dump_step, Rule().at_least(0), "Write the step dump of this step, counted from 1; 0: off.");
  v.key("dump_path", c.dump_path, Rule().derived("<output_dir>/dump-step-<step>.h5").path(),
        "The step dump's file. Only with a `dump_step`.");
}

template <class V>
void describe(V& v, Config& c) {
  v.section("run", c.run, "The run and its process.");
  v.section("model", c.model, "The model, with the key names of Hugging Face where one exists.");
  v.section("data", c.data, "What is read.");
  v.section("parallel", c.parallel, "How the ranks share the work.");
  v.section("train", c.train, "Batches, precision, optimizer.");
  v.list("stages", c.stages, Rule(),
         "What is otherwise from a step on. A key that a stage leaves out stays as it was; the optimizer's state goes "
         "on. Each a section of:");
  v.section("checkpoint", c.checkpoint, "Saved state, for resuming and for use.");
  v.section("logging", c.logging, "Metrics.");
  v.section("debug", c.debug, "Audit trail of a single step.");
}

template <class V>
void describe(V& v, DeviceFigure& c) {
  v.key("value", c.value, Rule().required().above(0), "The figure.");
  v.key("basis", c.basis, Rule().required(), "What it rests on.");
  v.key("source", c.source, Rule().required(), "Where it is from.");
}

template <class V>
void describe(V& v, DeviceRates& c) {
  v.section("bf16_tflops", c.bf16_tflops, "Dense bf16 products, 10^12 FLOP per second.");
  v.section("memory_gbps", c.memory_gbps, "Of its memory, 10^9 bytes per second.");
  v.section("node_gbps", c.node_gbps, "Sent to another device of the node, one direction, 10^9 bytes per second.");
  v.section("network_gbps", c.network_gbps, "Sent to another node, 10^9 bytes per second.");
}

template <class V>
void describe(V& v, DeviceShares& c) {
  v.section("products", c.products, "Of bf16_tflops: matrix products.");
  v.section("experts", c.experts, "Of bf16_tflops: the experts' grouped products.");
  v.section("attention", c.attention, "Of bf16_tflops: attention.");
  v.section("kda", c.kda, "Of bf16_tflops: the recurrence of Kimi Delta Attention.");
  v.section("memory", c.memory, "Of memory_gbps.");
  v.section("node", c.node, "Of node_gbps.");
  v.section("network", c.network, "Of network_gbps.");
  v.section("capacity", c.capacity, "Of memory_gib.");
}

// Of a file of its own, for plans.
template <class V>
void describe(V& v, DeviceConfig& c) {
  v.key("name", c.name, Rule().required(), "What the plan calls it.");
  v.section("memory_gib", c.memory_gib, "Its memory, 2^30 bytes.");
  v.key("ranks_per_node", c.ranks_per_node, Rule().required().at_least(1), "Devices of one node.");
  v.section("launch_us", c.launch_us, "That a kernel takes beyond its work, microseconds.");
  v.section("rates", c.rates, "What the device can do.");
  v.section("attainable", c.attainable, "Shares of it that a run can count on.");
}

// Keys that have no effect in this configuration: an error when given with another value than the default, left out when written.
struct Unused {
  std::string key;     // "model.attn_res_block_size"
  std::string reason;  // "has no effect with residual: standard"
};
std::vector<Unused> unused_keys(const Config& config);

}  // namespace lamina::schema
