#include "configs/schema/validate.h"

#include <algorithm>
#include <array>

#include <filesystem>
#include <map>

#include "configs/schema/batch_plan.h"
#include "configs/schema/decode.h"
#include "configs/schema/keys.h"
#include "configs/schema/step_ranges.h"
#include "core/base/error.h"

namespace lamina {
namespace schema {
namespace {

constexpr std::array mla_keys = {"num_attention_heads", "q_lora_rank",      "kv_lora_rank", "kv_a_layernorm_eps",
                                 "qk_nope_head_dim",    "qk_rope_head_dim", "v_head_dim"};

bool has_mla(const ModelConfig& model) {
  return model.mixers.empty() || std::count(model.mixers.begin(), model.mixers.end(), Mixer::mla) > 0;
}

bool has_kda(const ModelConfig& model) {
  return std::count(model.mixers.begin(), model.mixers.end(), Mixer::kda) > 0;
}

bool has_dense_mlp(const ModelConfig& model) {
  return model.num_experts == 0 || model.first_k_dense_replace > 0;
}

void check_run(const RunConfig& run, const Given& given) {
  if (run.name.empty() || run.name.find('/') != std::string::npos || run.name == "." || run.name == "..")
    throw Error("{}: found '{}', expected a name that can be a folder's (not empty, no '/')", given.place("run.name"),
                run.name);
  // Whether there is a GPU is a question to the machine that runs, not to the one that reads the configuration.
  if (run.device != "cpu" && run.device != "cuda")
    throw Error("{}: found '{}', expected cpu or cuda", given.place("run.device"), run.device);
}

void check_sources(const DataConfig& data, const Given& given) {
  for (size_t i = 0; i < data.train.size(); ++i) {
    const std::string key = fmt::format("data.train[{}].path", i);
    if (data.train[i].path.empty()) throw Error("{}: found an empty text, expected a folder", given.place(key));
    for (size_t j = 0; j < i; ++j)
      if (data.train[i].path == data.train[j].path)
        throw Error("{}: found '{}' a second time, expected each source once; its weight is its share",
                    given.place(key), data.train[i].path);
  }
}

void check_tasks(const EvalConfig& eval, const Given& given) {
  std::map<std::string, std::string> named;
  for (size_t i = 0; i < eval.tasks.size(); ++i) {
    const std::string key = fmt::format("train.eval.tasks[{}]", i);
    const std::string name = std::filesystem::path(eval.tasks[i]).stem().string();
    if (name.empty()) throw Error("{}: found '{}', expected a file", given.place(key), eval.tasks[i]);
    if (const auto [other, is_new] = named.emplace(name, eval.tasks[i]); !is_new)
      throw Error("{}: found {}, expected another name than that of {}: metrics call both '{}'", given.place(key),
                  eval.tasks[i], other->second, name);
  }
}

void check_steps(const Config& config, const Given& given) {
  const TrainConfig& train = config.train;
  if (train.global_batch_size % train.micro_batch_size != 0)
    throw Error("{}: found {}, expected a multiple of train.micro_batch_size ({})",
                given.place("train.global_batch_size"), train.global_batch_size, train.micro_batch_size);
  if (config.debug.dump_step > train.num_steps)
    throw Error("{}: found {}, expected at most train.num_steps ({})", given.place("debug.dump_step"),
                config.debug.dump_step, train.num_steps);
  try {
    parse_step_ranges(train.skip_steps);
  } catch (const Error& error) {
    throw Error("{}: {}", given.place("train.skip_steps"), error.what());
  }
  for (const int64_t step : config.logging.trace_steps)
    if (step > train.num_steps)
      throw Error("{}: found {}, expected at most train.num_steps ({})", given.place("logging.trace_steps"), step,
                  train.num_steps);
}

void require_key(const std::string& key, const char* why, const Given& given) {
  if (!given.origin_of.contains(key))
    throw Error("{}: required key is missing{}, expected an integer at least 1", given.place(key), why);
}

void check_model(const Config& config, const Given& given) {
  const ModelConfig& model = config.model;
  if (static_cast<int64_t>(model.mixers.size()) > model.num_hidden_layers)
    throw Error("{}: found {} entries, expected at most model.num_hidden_layers ({})", given.place("model.mixers"),
                model.mixers.size(), model.num_hidden_layers);
  if (has_mla(model))
    for (const char* key :
         {"model.num_attention_heads", "model.kv_lora_rank", "model.qk_nope_head_dim", "model.v_head_dim"})
      require_key(key, model.mixers.empty() ? "" : " with mla in model.mixers", given);
  if (has_kda(model))
    for (const char* key : {"model.linear_num_heads", "model.linear_head_dim"})
      require_key(key, " with kda in model.mixers", given);
  if (model.mup_base_width && model.tie_word_embeddings)
    throw Error(
        "{}: found {}, expected no such key with model.tie_word_embeddings: true: embedding and head change with the "
        "width "
        "in different ways",
        given.place("model.mup_base_width"), *model.mup_base_width);
  if (model.residual == Residual::mhc && config.run.device == "cuda")
    throw Error(
        "{}: found mhc with run.device: cuda, expected standard, full_attnres or block_attnres; mhc runs on the CPU "
        "(run.device: cpu)",
        given.place("model.residual"));
  if (has_dense_mlp(model)) require_key("model.intermediate_size", " for the dense MLP", given);
  if (model.num_experts == 0) return;
  for (const char* key : {"model.num_experts_per_token", "model.moe_intermediate_size"})
    require_key(key, " with model.num_experts", given);
  if (model.first_k_dense_replace >= model.num_hidden_layers)
    throw Error(
        "{}: found {}, expected below model.num_hidden_layers ({}); model.num_experts: 0 makes every layer dense",
        given.place("model.first_k_dense_replace"), model.first_k_dense_replace, model.num_hidden_layers);
  if (model.num_experts_per_token > model.num_experts)
    throw Error("{}: found {}, expected at most model.num_experts ({})", given.place("model.num_experts_per_token"),
                model.num_experts_per_token, model.num_experts);
  if (model.num_experts % config.parallel.expert != 0)
    throw Error("{}: found {}, expected a divisor of model.num_experts ({})", given.place("parallel.expert"),
                config.parallel.expert, model.num_experts);
}

void check_split(const Config& config, int64_t num_chunks, const Given& given) {
  const std::vector<int64_t>& split = config.parallel.split;
  const int64_t num_layers = config.model.num_hidden_layers;
  if (static_cast<int64_t>(split.size()) != num_chunks)
    throw Error("{}: found {} entr{}, expected {} = parallel.pipeline ({}) x parallel.virtual_stages ({})",
                given.place("parallel.split"), split.size(), split.size() == 1 ? "y" : "ies", num_chunks,
                config.parallel.pipeline, config.parallel.virtual_stages);
  int64_t sum = 0;
  for (size_t chunk = 0; chunk < split.size(); ++chunk) {
    const std::string key = fmt::format("parallel.split[{}]", chunk);
    if (split[chunk] == 0 && chunk > 0 && chunk + 1 < split.size())
      throw Error("{}: found 0, expected at least 1: only the first and the last chunk may have no layers",
                  given.place(key));
    if (split[chunk] > num_layers - sum)
      throw Error("{}: found {}, expected at most {}: the chunks share model.num_hidden_layers ({})", given.place(key),
                  split[chunk], num_layers - sum, num_layers);
    sum += split[chunk];
  }
  if (sum != num_layers)
    throw Error("{}: found entries that add up to {}, expected model.num_hidden_layers ({})",
                given.place("parallel.split"), sum, num_layers);
}

void check_batch_ramp(const TrainConfig& train, const Given& given) {
  const BatchRampConfig& ramp = train.batch_ramp;
  if (!ramp.from) return;
  const std::string key = "train.batch_ramp.";
  for (const char* other : {"steps", "increment"})
    if (!given.origin_of.contains(key + other))
      throw Error("{}: required key is missing, expected an integer at least 1", given.place(key + other));
  if (*ramp.from >= train.global_batch_size)
    throw Error("{}: found {}, expected below train.global_batch_size ({})", given.place(key + "from"), *ramp.from,
                train.global_batch_size);
  const int64_t growth = train.global_batch_size - *ramp.from;
  if (growth % *ramp.increment != 0)
    throw Error("{}: found {}, expected a divisor of train.global_batch_size ({}) - from ({}) = {}",
                given.place(key + "increment"), *ramp.increment, train.global_batch_size, *ramp.from, growth);
  if (growth / *ramp.increment > *ramp.steps)
    throw Error("{}: found {} for {} rises of {}, expected at least one step for each", given.place(key + "steps"),
                *ramp.steps, growth / *ramp.increment, *ramp.increment);
}

// Where a stage stands, and what it says alone.
void check_stage(const Config& config, size_t i, const Given& given) {
  const StageConfig& stage = config.stages[i];
  const std::string key = fmt::format("stages[{}]", i);
  if (i > 0 && stage.from_step <= config.stages[i - 1].from_step)
    throw Error("{}: found {}, expected above {}, where the stage before begins", given.place(key + ".from_step"),
                stage.from_step, config.stages[i - 1].from_step);
  if (!stage.global_batch_size && !stage.micro_batch_size && !stage.seq_len && stage.weights.empty() &&
      !stage.lr_factor)
    throw Error(
        "{}: found a from_step only, expected a global_batch_size, micro_batch_size, seq_len, weights or lr_factor",
        given.place(key));
  const BatchRampConfig& ramp = config.train.batch_ramp;
  if (ramp.from && stage.global_batch_size && stage.from_step <= *ramp.steps)
    throw Error("{}: found one from step {} on, expected none before step {}: until then train.batch_ramp says it",
                given.place(key + ".global_batch_size"), stage.from_step, *ramp.steps + 1);
  const std::vector<double>& weights = stage.weights;
  if (!weights.empty() && weights.size() != config.data.train.size())
    throw Error("{}: found {}, expected {}: one for each of data.train", given.place(key + ".weights"), weights.size(),
                config.data.train.size());
  if (!weights.empty() && std::all_of(weights.begin(), weights.end(), [](double weight) { return weight == 0; }))
    throw Error("{}: found zeros only, expected one above 0", given.place(key + ".weights"));
}

void check_stages(const Config& config, const Given& given) {
  for (size_t i = 0; i < config.stages.size(); ++i) check_stage(config, i, given);
  const std::vector<SourceConfig>& sources = config.data.train;
  for (size_t s = 0; s < sources.size(); ++s)
    if (sources[s].weight == 0 &&
        std::none_of(config.stages.begin(), config.stages.end(),
                     [s](const StageConfig& stage) { return !stage.weights.empty() && stage.weights[s] > 0; }))
      throw Error("{}: found 0, expected above 0, here or in the weights of one of `stages`",
                  given.place(fmt::format("data.train[{}].weight", s)));
  if (std::all_of(sources.begin(), sources.end(), [](const SourceConfig& source) { return source.weight == 0; }))
    throw Error("{}: found weights of 0 only, expected one above 0: the run begins with them",
                given.place("data.train"));
  const BatchPlan plan(config);
  for (const BatchStage& stage : plan.stages()) {
    const bool is_stage = stage.key.starts_with("stages");
    if (stage.global_batch_size % stage.micro_batch_size != 0)
      throw Error("{}: found {}{}, expected a multiple of micro_batch_size ({})",
                  given.place(is_stage ? stage.key : "train.batch_ramp"), stage.global_batch_size,
                  fmt::format(" sequences from step {} on", stage.first), stage.micro_batch_size);
    if (stage.begins_epoch && stage.seq_len % config.data.seq_len != 0)
      throw Error("{}: found {}, expected a multiple of data.seq_len ({}): it is longer than data.piece_len",
                  given.place(stage.key + ".seq_len"), stage.seq_len, config.data.seq_len);
    if (stage.piece_len % stage.seq_len != 0)
      throw Error("{}: found {}, expected a divisor of {}, {}",
                  given.place(is_stage ? stage.key + ".seq_len" : "data.seq_len"), stage.seq_len, stage.piece_len,
                  config.data.piece_len == stage.piece_len
                      ? "data.piece_len"
                      : "the longest: sequences of every length are cut from the same pieces of text");
  }
}

bool has_muon(const OptimizerConfig& optimizer) {
  return optimizer.name == OptimizerName::muon ||
         std::any_of(optimizer.groups.begin(), optimizer.groups.end(),
                     [](const OptimizerGroupConfig& group) { return group.rule == OptimizerName::muon; });
}

// Whether the patterns match is for model/update_rules.h, which knows the tensors.
void check_groups(const OptimizerConfig& optimizer, const Given& given) {
  for (size_t i = 0; i < optimizer.groups.size(); ++i) {
    const OptimizerGroupConfig& group = optimizer.groups[i];
    const std::string key = fmt::format("train.optimizer.groups[{}]", i);
    if (group.pattern.empty())
      throw Error("{}: found an empty text, expected a pattern of tensor names", given.place(key + ".pattern"));
    if (!group.lr_factor && !group.weight_decay && !group.rule)
      throw Error("{}: found a pattern only, expected an lr_factor, a weight_decay or a rule", given.place(key));
  }
}

void check_precision(const Config& config, const Given& given) {
  if (config.run.device == "cuda" && config.train.precision == Precision::fp64)
    throw Error("{}: found fp64 with run.device: cuda, expected bf16 or fp32; fp64 runs on the CPU (run.device: cpu)",
                given.place("train.precision"));
  if (config.train.bf16_products == Bf16ProductsChoice::automatic) return;
  if (config.train.precision != Precision::bf16 || config.run.device != "cpu")
    throw Error("{}: found a choice, expected auto: only runs with train.precision: bf16 and run.device: cpu have one",
                given.place("train.bf16_products"));
}

void check_parallel(const Config& config, const Given& given) {
  const ParallelConfig& parallel = config.parallel;
  if (parallel.schedule == ScheduleName::one_f_one_b && parallel.virtual_stages > 1)
    throw Error(
        "{}: found 1f1b with parallel.virtual_stages: {}, expected interleaved_1f1b: 1f1b has one chunk per rank",
        given.place("parallel.schedule"), parallel.virtual_stages);
  const int64_t num_chunks = int64_t{parallel.pipeline} * parallel.virtual_stages;
  // The first chunk may hold the embedding alone and the last one the head alone.
  if (const int64_t most = config.model.num_hidden_layers + 2; num_chunks > most)
    throw Error(
        "{}: found {} x virtual_stages ({}) = {} chunks, expected at most {}: each of the {} layers one chunk, and one "
        "for the embedding and one for the head",
        given.place("parallel.pipeline"), parallel.pipeline, parallel.virtual_stages, num_chunks, most,
        config.model.num_hidden_layers);
  if (!parallel.split.empty()) check_split(config, num_chunks, given);
}

}  // namespace

std::string Given::place(const std::string& key) const {
  for (std::string part = key; !part.empty(); part = part.substr(0, part.rfind('.'))) {
    if (const auto at = origin_of.find(part); at != origin_of.end()) return at->second + ": " + key;
    if (part.find('.') == std::string::npos) break;
  }
  return name + ": " + key;
}

std::vector<Unused> unused_keys(const Config& config) {
  std::vector<Unused> unused;
  const std::string with_residual =
      fmt::format("has no effect with model.residual: {}", name_of(config.model.residual));
  if (config.model.residual != Residual::block_attnres) unused.push_back({"model.attn_res_block_size", with_residual});
  if (config.model.residual != Residual::mhc) unused.push_back({"model.num_residual_streams", with_residual});
  if (!config.model.has_depth_reads())
    for (const char* key : {"parallel.block_transport", "train.optimizer.attn_res_lr_factor"})
      unused.push_back({key, with_residual});
  if (!has_mla(config.model)) {
    for (const char* key : mla_keys)
      unused.push_back({std::string("model.") + key, "has no effect without mla in model.mixers"});
    if (config.train.optimizer.name == OptimizerName::muon)
      unused.push_back({"train.optimizer.qk_clip", "has no effect without mla in model.mixers"});
  }
  if (!has_kda(config.model))
    for (const char* key : {"linear_num_heads", "linear_head_dim", "short_conv_kernel_size", "gate_lower_bound"})
      unused.push_back({std::string("model.") + key, "has no effect without kda in model.mixers"});
  if (!has_dense_mlp(config.model))
    unused.push_back({"model.intermediate_size", "has no effect with model.first_k_dense_replace: 0"});
  if (config.model.num_experts == 0)
    for (const char* key : {"model.first_k_dense_replace", "model.num_experts_per_token", "model.num_shared_experts",
                            "model.moe_intermediate_size", "model.routed_scaling_factor", "model.moe_renormalize",
                            "model.aux_loss_alpha", "parallel.expert"})
      unused.push_back({key, "has no effect with model.num_experts: 0"});
  if (config.run.device == "cpu") unused.push_back({"parallel.gpu_transport", "has no effect with run.device: cpu"});
  const LrScheduleName schedule = config.train.lr_schedule.name;
  const char* schedule_name = schedule == LrScheduleName::constant ? "constant" : "cosine";
  if (schedule != LrScheduleName::wsd)
    unused.push_back(
        {"train.lr_schedule.decay_steps", fmt::format("has no effect with train.lr_schedule.name: {}", schedule_name)});
  if (schedule == LrScheduleName::constant)
    unused.push_back({"train.lr_schedule.min_lr_ratio", "has no effect with train.lr_schedule.name: constant"});
  if (config.train.optimizer.name != OptimizerName::muon)
    for (const char* key : {"momentum", "qk_clip"})
      if (key != std::string("momentum") || !has_muon(config.train.optimizer))
        unused.push_back({std::string("train.optimizer.") + key, "has no effect with train.optimizer.name: adamw"});
  if (config.model.num_experts == 0)
    unused.push_back({"train.router_bias_rate", "has no effect with model.num_experts: 0"});
  if (config.data.validation.path.empty())
    for (const char* key : {"data.validation.num_sequences", "data.validation.interval"})
      unused.push_back({key, "has no effect without data.validation.path"});
  if (config.train.on_spike == OnSpike::warn)
    unused.push_back({"train.max_spikes", "has no effect with train.on_spike: warn"});
  if (!config.train.batch_ramp.from)
    for (const char* key : {"steps", "increment"})
      unused.push_back({std::string("train.batch_ramp.") + key, "has no effect without train.batch_ramp.from"});
  if (config.train.eval.tasks.empty())
    unused.push_back({"train.eval.interval", "has no effect without train.eval.tasks"});
  // The empty dump path says "the default", so it may stand beside dump_step: 0.
  if (config.debug.dump_step == 0 && !config.debug.dump_path.empty())
    unused.push_back({"debug.dump_path", "has no effect with debug.dump_step: 0"});
  return unused;
}

void validate(const Config& config, const Given& given) {
  for (const Unused& unused : unused_keys(config))
    if (given.origin_of.contains(unused.key) && !given.at_default.contains(unused.key))
      throw Error("{} {}; remove it ({}=null on the command line)", given.place(unused.key), unused.reason, unused.key);
  check_run(config.run, given);
  check_precision(config, given);
  check_model(config, given);
  check_sources(config.data, given);
  check_tasks(config.train.eval, given);
  check_steps(config, given);
  check_batch_ramp(config.train, given);
  check_stages(config, given);
  check_groups(config.train.optimizer, given);
  check_parallel(config, given);
}

namespace {

void tell_late_stages(Config& config) {
  for (size_t i = 0; i < config.stages.size(); ++i)
    if (config.stages[i].from_step > config.train.num_steps)
      config.notes.push_back(fmt::format("stages[{}] begins with step {}, after the last one (train.num_steps: {})", i,
                                         config.stages[i].from_step, config.train.num_steps));
}

// A run that is made shorter than its schedule, often by an override, keeps the schedule's form.
void fit_schedule(Config& config) {
  LrScheduleConfig& schedule = config.train.lr_schedule;
  const bool decays = schedule.name == LrScheduleName::wsd;
  const double asked =
      static_cast<double>(schedule.warmup_steps) + (decays ? static_cast<double>(schedule.decay_steps) : 0);
  const auto num_steps = static_cast<double>(config.train.num_steps);
  if (asked <= num_steps) return;
  const LrScheduleConfig before = schedule;
  const auto shorten = [&](int64_t& steps) {
    steps = static_cast<int64_t>(static_cast<double>(steps) * num_steps / asked);
  };
  shorten(schedule.warmup_steps);
  if (decays) shorten(schedule.decay_steps);
  const std::string decay =
      decays ? fmt::format(" and decay_steps {} (for {})", schedule.decay_steps, before.decay_steps) : "";
  config.notes.push_back(
      fmt::format("train.lr_schedule does not fit into train.num_steps ({}): warmup_steps {} (for {}){}",
                  config.train.num_steps, schedule.warmup_steps, before.warmup_steps, decay));
}

}  // namespace

void derive_defaults(Config& config) {
  fit_schedule(config);
  tell_late_stages(config);
  OptimizerConfig& optimizer = config.train.optimizer;
  if (config.model.has_depth_reads() && !optimizer.attn_res_lr_factor)
    optimizer.attn_res_lr_factor = default_attn_res_lr_factor(config);
  if (config.run.output_dir.empty()) config.run.output_dir = "runs/" + config.run.name;
  if (config.debug.dump_step > 0 && config.debug.dump_path.empty())
    config.debug.dump_path = fmt::format("{}/dump-step-{}.h5", config.run.output_dir, config.debug.dump_step);
}

}  // namespace schema

double default_attn_res_lr_factor(const Config& config) {
  const double per_step = config.train.optimizer.lr * static_cast<double>(config.model.hidden_size);
  return std::min(1.0, 0.15 / per_step);
}

namespace {

// "the nearest are 6 and 9", or "the nearest is 9" where nothing is below.
std::string nearest_multiples(int64_t number, int64_t factor) {
  const int64_t below = number / factor * factor;
  return below > 0 ? fmt::format("the nearest are {} and {}", below, below + factor)
                   : fmt::format("the nearest is {}", below + factor);
}

}  // namespace

int resolve_data_parallel(const Config& config, int world_size) {
  const ParallelConfig& parallel = config.parallel;
  if (world_size % parallel.pipeline != 0)
    throw Error(
        "parallel.pipeline: found {} with {} rank{}, expected a divisor of the number of ranks: ranks = pipeline ({}) "
        "x "
        "data; of the numbers of ranks {}",
        parallel.pipeline, world_size, world_size == 1 ? "" : "s", parallel.pipeline,
        nearest_multiples(world_size, parallel.pipeline));
  const int data = parallel.data == 0 ? world_size / parallel.pipeline : parallel.data;
  if (int64_t{data} * parallel.pipeline != world_size)
    throw Error(
        "parallel.data: found {}, expected {}: the number of ranks ({}) = pipeline ({}) x data ({}); 0 means all "
        "ranks / pipeline",
        data, world_size / parallel.pipeline, world_size, parallel.pipeline, data);
  if (data % parallel.expert != 0)
    throw Error(
        "parallel.expert: found {}, expected a divisor of the data-parallel ranks ({} = {} ranks / pipeline ({}))",
        parallel.expert, data, world_size, parallel.pipeline);
  const BatchPlan plan(config);
  for (const BatchStage& stage : plan.stages()) {
    const int64_t per_microbatch = stage.micro_batch_size * data;
    if (stage.global_batch_size % per_microbatch == 0) continue;
    const std::string place = stage.key == "train"
                                  ? "train.global_batch_size"
                                  : fmt::format("{}: the batch from step {} on", stage.key, stage.first);
    throw Error(
        "{}: found {}, expected a multiple of {}: global_batch_size = micro_batch_size ({}) x data ({}) x "
        "num_microbatches; {}",
        place, stage.global_batch_size, per_microbatch, stage.micro_batch_size, data,
        nearest_multiples(stage.global_batch_size, per_microbatch));
  }
  return data;
}

}  // namespace lamina
