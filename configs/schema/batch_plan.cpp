#include "configs/schema/batch_plan.h"

#include <algorithm>

#include "core/base/error.h"

namespace lamina {
namespace {

std::vector<double> weights_of(const DataConfig& data) {
  std::vector<double> weights;
  for (const SourceConfig& source : data.train) weights.push_back(source.weight);
  return weights;
}

// Of what is read, relative: the mixture knows no other.
std::vector<double> shares_of(std::vector<double> weights) {
  while (!weights.empty() && weights.back() == 0) weights.pop_back();
  double sum = 0;
  for (const double weight : weights) sum += weight;
  for (double& weight : weights) weight /= sum;
  return weights;
}

// The first batch of each rise; the rises share the ramp's steps evenly.
std::vector<BatchStage> ramp_of(const Config& config, const BatchStage& begin) {
  const BatchRampConfig& ramp = config.train.batch_ramp;
  std::vector<BatchStage> stages{begin};
  if (!ramp.from) return stages;
  stages[0].key = "train.batch_ramp";
  stages[0].global_batch_size = *ramp.from;
  const int64_t num_rises = (config.train.global_batch_size - *ramp.from) / *ramp.increment;
  for (int64_t rise = 1; rise <= num_rises; ++rise) {
    BatchStage next = stages.back();
    next.first = (rise * *ramp.steps + num_rises - 1) / num_rises + 1;
    next.global_batch_size += *ramp.increment;
    stages.push_back(next);
  }
  return stages;
}

void apply(const StageConfig& from, BatchStage& stage) {
  if (from.global_batch_size) stage.global_batch_size = *from.global_batch_size;
  if (from.micro_batch_size) stage.micro_batch_size = *from.micro_batch_size;
  if (from.seq_len) stage.seq_len = *from.seq_len;
  if (!from.weights.empty()) stage.weights = from.weights;
  if (from.lr_factor) stage.lr_factor = *from.lr_factor;
}

int64_t longest_seq_len(const Config& config) {
  int64_t longest = config.data.seq_len;
  for (const StageConfig& stage : config.stages) longest = std::max(longest, stage.seq_len.value_or(0));
  return longest;
}

bool same_sequences(const BatchStage& a, const BatchStage& b) {
  return a.global_batch_size == b.global_batch_size && a.seq_len == b.seq_len && a.piece_len == b.piece_len &&
         has_same_mixture(a, b);
}

}  // namespace

bool has_same_mixture(const BatchStage& a, const BatchStage& b) {
  return shares_of(a.weights) == shares_of(b.weights);
}

BatchPlan::BatchPlan(const DataConfig& data, int64_t global_batch_size) {
  BatchStage all;
  all.key = "train";
  all.global_batch_size = all.micro_batch_size = global_batch_size;
  all.seq_len = data.seq_len;
  all.piece_len = data.piece_len.value_or(data.seq_len);
  all.weights = weights_of(data);
  stages_.push_back(std::move(all));
}

BatchPlan::BatchPlan(const Config& config) : BatchPlan(config.data, config.train.global_batch_size) {
  stages_[0].micro_batch_size = config.train.micro_batch_size;
  stages_ = ramp_of(config, stages_[0]);
  for (size_t i = 0; i < config.stages.size(); ++i) {
    const StageConfig& change = config.stages[i];
    auto at = std::lower_bound(stages_.begin(), stages_.end(), change.from_step,
                               [](const BatchStage& stage, int64_t step) { return stage.first < step; });
    if (at == stages_.end() || at->first != change.from_step) {  // otherwise a rise of the ramp begins there
      BatchStage begun = *(at - 1);
      begun.first = change.from_step;
      at = stages_.insert(at, std::move(begun));
    }
    at->key = fmt::format("stages[{}]", i);
    for (; at != stages_.end(); ++at) apply(change, *at);
  }
  int64_t piece_len = config.data.piece_len.value_or(longest_seq_len(config));
  for (BatchStage& stage : stages_) {
    stage.begins_epoch = stage.seq_len > piece_len;
    stage.piece_len = piece_len = std::max(piece_len, stage.seq_len);
  }
}

size_t BatchPlan::stage_of(int64_t batch) const {
  LAMINA_CHECK(batch >= 1, "batch {}", batch);
  const auto after = std::upper_bound(stages_.begin(), stages_.end(), batch,
                                      [](int64_t b, const BatchStage& stage) { return b < stage.first; });
  return static_cast<size_t>(after - stages_.begin() - 1);
}

namespace {

template <class Size>
int64_t sum_over(const std::vector<BatchStage>& stages, int64_t first, int64_t last, const Size& size) {
  int64_t sum = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    const int64_t begin = std::max(first, stages[i].first);
    const int64_t end = i + 1 < stages.size() ? std::min(last, stages[i + 1].first - 1) : last;
    if (begin <= end) sum += (end - begin + 1) * size(stages[i]);
  }
  return sum;
}

}  // namespace

int64_t BatchPlan::num_sequences(int64_t first, int64_t last) const {
  return sum_over(stages_, first, last, [](const BatchStage& stage) { return stage.global_batch_size; });
}

int64_t BatchPlan::num_tokens(int64_t first, int64_t last) const {
  return sum_over(stages_, first, last, [](const BatchStage& stage) { return stage.tokens_per_batch(); });
}

int64_t BatchPlan::max_microbatch_tokens() const {
  int64_t most = 0;
  for (const BatchStage& stage : stages_) most = std::max(most, stage.micro_batch_size * stage.seq_len);
  return most;
}

bool BatchPlan::has_same_batches(const BatchPlan& other, int64_t last) const {
  std::vector<int64_t> begins;
  for (const BatchPlan* plan : {this, &other})
    for (const BatchStage& stage : plan->stages_)
      if (stage.first <= std::max<int64_t>(last, 1)) begins.push_back(stage.first);
  return std::all_of(begins.begin(), begins.end(),
                     [&](int64_t batch) { return same_sequences(at(batch), other.at(batch)); });
}

Config config_of(const Config& config, const BatchStage& stage) {
  Config out = config;
  out.train.global_batch_size = stage.global_batch_size;
  out.train.micro_batch_size = stage.micro_batch_size;
  out.data.seq_len = stage.seq_len;
  out.data.piece_len.reset();
  if (stage.piece_len != stage.seq_len) out.data.piece_len = stage.piece_len;
  for (size_t i = 0; i < out.data.train.size(); ++i) out.data.train[i].weight = stage.weights[i];
  out.train.batch_ramp = {};
  out.stages.clear();
  return out;
}

Config trained_config(const Config& config, int64_t batch) {
  const BatchPlan plan(config);
  Config out = config_of(config, plan.stages().front());
  for (const BatchStage& stage : plan.stages())
    if (stage.first <= batch) out.data.seq_len = std::max(out.data.seq_len, stage.seq_len);
  out.data.piece_len.reset();
  return out;
}

std::string to_text(const BatchStage& stage) {
  std::string text = fmt::format("{} x {} tokens per step, {} per micro-batch", stage.global_batch_size, stage.seq_len,
                                 stage.micro_batch_size);
  for (size_t s = 0; stage.weights.size() > 1 && s < stage.weights.size(); ++s)
    text += fmt::format("{} {}", s == 0 ? ", weights" : ",", stage.weights[s]);
  if (stage.lr_factor != 1) text += fmt::format(", learning rate x {}", stage.lr_factor);
  if (stage.begins_epoch) text += "; longer than the pieces before, so every source begins an epoch";
  return text;
}

std::string steps_text(const BatchPlan& plan, size_t stage, int64_t num_steps) {
  const int64_t first = plan.stages()[stage].first;
  const int64_t last = stage + 1 < plan.stages().size() ? plan.stages()[stage + 1].first - 1 : num_steps;
  if (last < first) return fmt::format("from {}", first);
  return first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
}

}  // namespace lamina
