#include "configs/schema/validate.h"

#include "configs/schema/decode.h"
#include "configs/schema/keys.h"
#include "core/base/error.h"

namespace lamina {
namespace schema {
namespace {

void check_run(const RunConfig& run, const Given& given) {
  if (run.name.empty() || run.name.find('/') != std::string::npos || run.name == "." || run.name == "..")
    throw Error("{}: found '{}', expected a name that can be a folder's (not empty, no '/')", given.place("run.name"),
                run.name);
  if (run.device == "cuda")
    throw Error("{}: found 'cuda', but this build has no CUDA; expected cpu", given.place("run.device"));
  if (run.device != "cpu") throw Error("{}: found '{}', expected cpu", given.place("run.device"), run.device);
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

void check_steps(const Config& config, const Given& given) {
  const TrainConfig& train = config.train;
  const LrScheduleConfig& schedule = train.lr_schedule;
  if (train.global_batch_size % train.micro_batch_size != 0)
    throw Error("{}: found {}, expected a multiple of train.micro_batch_size ({})",
                given.place("train.global_batch_size"), train.global_batch_size, train.micro_batch_size);
  if (schedule.warmup_steps > train.num_steps)
    throw Error("{}: found {}, expected at most train.num_steps ({})", given.place("train.lr_schedule.warmup_steps"),
                schedule.warmup_steps, train.num_steps);
  // Compared without a sum, which could overflow.
  if (schedule.decay_steps > train.num_steps - schedule.warmup_steps)
    throw Error("{}: found {}, expected at most {} (train.num_steps {} - warmup_steps {})",
                given.place("train.lr_schedule.decay_steps"), schedule.decay_steps,
                train.num_steps - schedule.warmup_steps, train.num_steps, schedule.warmup_steps);
  if (config.debug.dump_step > train.num_steps)
    throw Error("{}: found {}, expected at most train.num_steps ({})", given.place("debug.dump_step"),
                config.debug.dump_step, train.num_steps);
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
  if (config.model.residual != Residual::block_attnres)
    unused.push_back({"model.attn_res_block_size",
                      fmt::format("has no effect with model.residual: {}",
                                  config.model.residual == Residual::standard ? "standard" : "full_attnres")});
  const LrScheduleName schedule = config.train.lr_schedule.name;
  const char* schedule_name = schedule == LrScheduleName::constant ? "constant" : "cosine";
  if (schedule != LrScheduleName::wsd)
    unused.push_back(
        {"train.lr_schedule.decay_steps", fmt::format("has no effect with train.lr_schedule.name: {}", schedule_name)});
  if (schedule == LrScheduleName::constant)
    unused.push_back({"train.lr_schedule.min_lr_ratio", "has no effect with train.lr_schedule.name: constant"});
  if (config.data.validation.path.empty())
    for (const char* key : {"data.validation.num_sequences", "data.validation.interval"})
      unused.push_back({key, "has no effect without data.validation.path"});
  // The empty dump path says "the default", so it may stand beside dump_step: 0.
  if (config.debug.dump_step == 0 && !config.debug.dump_path.empty())
    unused.push_back({"debug.dump_path", "has no effect with debug.dump_step: 0"});
  return unused;
}

void validate(const Config& config, const Given& given) {
  for (const Unused& unused : unused_keys(config))
    if (given.origin_of.contains(unused.key))
      throw Error("{} {}; remove it ({}=null on the command line)", given.place(unused.key), unused.reason, unused.key);
  check_run(config.run, given);
  check_sources(config.data, given);
  check_steps(config, given);
}

void derive_defaults(Config& config) {
  if (config.run.output_dir.empty()) config.run.output_dir = "runs/" + config.run.name;
  if (config.debug.dump_step > 0 && config.debug.dump_path.empty())
    config.debug.dump_path = fmt::format("{}/dump-step-{}.h5", config.run.output_dir, config.debug.dump_step);
}

}  // namespace schema

int resolve_data_parallel(const Config& config, int world_size) {
  const int data = config.parallel.data == 0 ? world_size : config.parallel.data;
  if (data != world_size)
    throw Error("parallel.data: found {}, expected {}: the number of ranks ({}) = data ({}); 0 means all ranks", data,
                world_size, world_size, data);
  const TrainConfig& train = config.train;
  const int64_t per_microbatch = train.micro_batch_size * data;
  if (train.global_batch_size % per_microbatch != 0) {
    const int64_t below = train.global_batch_size / per_microbatch * per_microbatch;
    throw Error(
        "train.global_batch_size: found {}, expected a multiple of {}: global_batch_size = micro_batch_size ({}) x "
        "data ({}) x "
        "num_microbatches; the nearest {} {}{}",
        train.global_batch_size, per_microbatch, train.micro_batch_size, data, below > 0 ? "are" : "is",
        below > 0 ? fmt::format("{} and ", below) : "", below + per_microbatch);
  }
  return data;
}

}  // namespace lamina
