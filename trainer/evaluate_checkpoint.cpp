#include "trainer/evaluate_checkpoint.h"

#include <algorithm>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "data/sampler.h"
#include "parallel/comm/agreement.h"
#include "trainer/record/depth_read_watch.h"
#include "trainer/record/identity.h"
#include "trainer/step/evaluate.h"
#include "trainer/step/restore.h"

namespace lamina {
namespace {

// The text that the validation targets stand for, so that other compressors can be measured on the same bytes.
void write_text(const Sampler& sampler, const std::string& path) {
  std::vector<int32_t> tokens(static_cast<size_t>(sampler.seq_len()));
  std::vector<int32_t> targets(tokens.size());
  std::string text;
  for (int64_t i = 0; i < sampler.num_validation_sequences(); ++i) {
    sampler.load_validation(i, i + 1, tokens, targets);
    for (size_t k = 0; k < targets.size(); ++k) text += sampler.tokenizer().text_of(targets[k], tokens[k]);
  }
  io::write_file_atomically(path, text);
}

// Any layout gives the same loss: the configuration's pipeline when the ranks allow it, otherwise every rank holds the model.
void choose_layout(const ParallelConfig& asked, int world_size, Config& config) {
  config.parallel = asked;
  if (world_size % asked.pipeline != 0) {
    log::info("{} rank{}, not a multiple of parallel.pipeline ({}): every rank holds the whole model", world_size,
              world_size == 1 ? "" : "s", asked.pipeline);
    config.parallel = {};
  }
  config.parallel.data = world_size / config.parallel.pipeline;
  if (config.parallel.data % config.parallel.expert != 0) {
    log::info("{} data-parallel rank{}, not a multiple of parallel.expert ({}): every rank holds all experts",
              config.parallel.data, config.parallel.data == 1 ? "" : "s", config.parallel.expert);
    config.parallel.expert = 1;
  }
  config.train.global_batch_size = config.train.micro_batch_size * config.parallel.data;
}

class CheckpointEvaluator {
 public:
  CheckpointEvaluator(const Config& asked, const EvaluationOrder& order, comm::Communicator& comm)
      : asked_(asked), order_(order), comm_(comm), context_(order.context.value_or(asked.data.seq_len)) {}

  std::optional<CheckpointEvaluation> run(int device_index) {
    found_.checkpoint = resolve_checkpoint(order_.checkpoint, comm_);
    found_.context = context_;
    read_standard_input();
    run_and_agree(comm_, [&] {
      info_ = read_checkpoint_info(found_.checkpoint);
      found_.step = info_.step;
      tokenize();
    });
    restore(device_index);
    const bool done = evaluate_validation() && evaluate_texts() && evaluate_tasks() && evaluate_probes();
    return done ? std::optional(std::move(found_)) : std::nullopt;
  }

 private:
  std::string name() const { return found_.checkpoint.string(); }
  bool stop_agreed() const { return stop_requested_anywhere(comm_); }

  // Everything is read before the model is, which must have room for the longest.
  void tokenize() {
    if (order_.texts.empty() && order_.tasks.empty() && !order_.probes) return;
    tokenizer_ = find_tokenizer(info_, name());
    if (!tokenizer_)
      throw Error("{}: found no tokenizer, expected the checkpoint's own or that of its training data", name());
    for (const std::string& path : order_.texts) texts_.push_back(text_of(path));
    tasks_ = evaluation::load_tasks(order_.tasks, *tokenizer_, order_.context);
    for (const evaluation::Task& task : tasks_) log::info("{}", evaluation::describe(task, order_.context));
    if (order_.probes) {
      evaluation::ProbeOptions options = *order_.probes;
      const int64_t trained = asked_.data.seq_len;
      if (options.lengths.empty()) options.lengths = {trained, 2 * trained, 4 * trained};
      probes_ = evaluation::make_probes(options, *tokenizer_);
    }
    check_document_mask(info_, name(), asked_.data);
  }

  // It is rank 0's alone.
  void read_standard_input() {
    if (std::find(order_.texts.begin(), order_.texts.end(), "-") == order_.texts.end()) return;
    constexpr char between = '\0';  // in no text
    std::string all;
    run_and_agree(comm_, [&] {
      if (comm_.rank() != 0) return;
      for (const std::string& document : evaluation::read_text("-", order_.format)) all += document + between;
    });
    all = broadcast_text(comm_, all);
    for (size_t begin = 0, end; begin < all.size(); begin = end + 1) {
      end = all.find(between, begin);
      standard_input_.push_back(all.substr(begin, end - begin));
    }
  }

  evaluation::Text text_of(const std::string& path) const {
    return evaluation::make_text(path, path == "-" ? standard_input_ : evaluation::read_text(path, order_.format),
                                 *tokenizer_, context_);
  }

  // Of all requests, in inputs.
  int64_t longest() const {
    int64_t longest = 1;
    const auto see = [&](const std::vector<evaluation::Request>& requests) {
      for (const evaluation::Request& request : requests) longest = std::max(longest, request.num_inputs());
    };
    for (const evaluation::Text& text : texts_) see(text.requests);
    for (const evaluation::Task& task : tasks_) see(task.requests);
    for (const evaluation::Probe& probe : probes_) see(probe.task.requests);
    if (!order_.validation.empty())
      longest = std::max(longest, std::min(context_, asked_.data.validation.num_sequences * asked_.data.seq_len));
    return longest;
  }

  // As many tokens as the configuration's micro-batch has, or the longest request.
  int64_t tokens_per_pass() const { return std::max(longest(), asked_.train.micro_batch_size * asked_.data.seq_len); }

  void restore(int device_index) {
    const int64_t seq_len = asked_.data.seq_len;
    const auto adjust = [&](Config& config) {
      const int64_t vocab_size = config.model.vocab_size;
      config.model = asked_.model;
      if (config.model.vocab_size == 0) config.model.vocab_size = vocab_size;
      config.data = asked_.data;
      config.run.device = asked_.run.device;
      config.train.micro_batch_size = (tokens_per_pass() + seq_len - 1) / seq_len;
      config.train.precision = asked_.train.precision;
      config.train.bf16_products = asked_.train.bf16_products;
      choose_layout(asked_.parallel, comm_.size(), config);
    };
    restored_ = restore_parameters(found_.checkpoint, comm_, EngineUse::inference, adjust, device_index);
    const int64_t vocab_size = restored_.config.model.vocab_size;
    if (tokenizer_ && tokenizer_->vocab_size() > vocab_size)
      throw Error("{}: found a tokenizer of {} tokens, expected at most the model's {}", name(),
                  tokenizer_->vocab_size(), vocab_size);
    if (tokenizer_) restored_.engine->set_end_of_document(tokenizer_->end_of_document());
  }

  DataConfig data_of(const std::string& validation) const {
    DataConfig data = asked_.data;
    data.train.clear();  // what was trained on, the checkpoint knows
    data.validation.path = validation;
    return data;
  }

  bool evaluate_validation() {
    for (const std::string& path : order_.validation) {
      const DataConfig data = data_of(path);
      std::optional<Sampler> sampler;
      run_and_agree(comm_, [&] {
        sampler.emplace(data, asked_.run.seed, 1, restored_.config.model.vocab_size);
        check_evaluation_data(*sampler, data, info_, name(), order_.allow_trained);
        if (!order_.write_text.empty() && comm_.rank() == 0) write_text(*sampler, order_.write_text);
      });
      restored_.engine->set_end_of_document(sampler->end_of_document());
      if (!evaluate_set(*sampler, found_.validation.emplace_back(ValidationResult{path, {}, {}}))) return false;
    }
    return true;
  }

  // The same targets in pieces of another length.
  evaluation::Text pieces_of(const Sampler& sampler, const std::string& path) const {
    const int64_t count = sampler.num_validation_sequences(), seq_len = sampler.seq_len();
    std::vector<int32_t> tokens(static_cast<size_t>(count * seq_len)), targets(tokens.size());
    sampler.load_validation(0, count, tokens, targets);
    tokens.push_back(targets.back());
    return {path, evaluation::pieces(tokens, context_), count * seq_len, sampler.num_validation_bytes(0, count)};
  }

  bool evaluate_set(const Sampler& sampler, ValidationResult& result) {
    Config config = restored_.config;
    config.train.micro_batch_size = asked_.train.micro_batch_size;
    std::optional<evaluation::Text> text;
    if (context_ != asked_.data.seq_len) text = pieces_of(sampler, result.path);
    const auto run = [&] {
      return text ? evaluation::evaluate_text(*text, model(sampler.end_of_document()))
                  : evaluate(*restored_.engine, sampler, config, comm_, [&] { return stop_agreed(); });
    };
    const std::optional<Evaluation> all = run();
    if (!all) return false;
    result.all = *all;
    if (!order_.ablate_sources) return true;
    const DepthReadWatch names(config.model);
    const int num_sources = restored_.engine->plan().blocks.num_blocks() + 1;
    for (int source = 0; source < num_sources; ++source) {
      restored_.engine->ablate_source(source);
      const std::optional<Evaluation> without = run();
      if (!without) return false;
      result.ablated.push_back({names.name_of_source(source), without->loss});
    }
    restored_.engine->ablate_source(-1);
    return true;
  }

  evaluation::Model model(int32_t padding) {
    return evaluation_model(*restored_.engine, comm_, padding, tokens_per_pass(), [&] { return stop_agreed(); });
  }

  bool evaluate_texts() {
    for (const evaluation::Text& text : texts_) {
      const auto result = evaluation::evaluate_text(text, model(tokenizer_->end_of_document()));
      if (!result) return false;
      found_.texts.emplace_back(text.path, *result);
    }
    return true;
  }

  bool evaluate_tasks() {
    for (evaluation::Task& task : tasks_) {
      auto result = evaluation::evaluate_task(task, model(tokenizer_->end_of_document()));
      if (!result) return false;
      found_.tasks.emplace_back(std::move(task), std::move(*result));
    }
    return true;
  }

  bool evaluate_probes() {
    for (evaluation::Probe& probe : probes_) {
      auto result = evaluation::evaluate_task(probe.task, model(tokenizer_->end_of_document()));
      if (!result) return false;
      found_.probes.emplace_back(std::move(probe), std::move(*result));
    }
    return true;
  }

  const Config& asked_;
  const EvaluationOrder& order_;
  comm::Communicator& comm_;
  int64_t context_;
  CheckpointInfo info_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<std::string> standard_input_;  // its documents
  std::vector<evaluation::Text> texts_;
  std::vector<evaluation::Task> tasks_;
  std::vector<evaluation::Probe> probes_;
  Restored restored_;
  CheckpointEvaluation found_;
};

}  // namespace

Config stored_config(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  if (!std::filesystem::exists(path))
    throw Error("{}: no such folder, expected a checkpoint or a run folder", path.string());
  std::vector<std::filesystem::path> checkpoints = {path};
  if (std::filesystem::is_directory(path / "checkpoints")) {
    checkpoints = list_committed_checkpoints(path / "checkpoints");
    if (checkpoints.empty()) throw Error("{}: holds no checkpoint yet", (path / "checkpoints").string());
  }
  const auto yaml_of = [](const std::filesystem::path& checkpoint) {
    return read_checkpoint_info(checkpoint).config_yaml;
  };
  std::string yaml;
  for (; checkpoints.size() > 1; checkpoints.pop_back()) {
    try {
      yaml = yaml_of(checkpoints.back());
      break;
    } catch (const Error&) {  // resolve_checkpoint() says it
    }
  }
  if (yaml.empty()) yaml = yaml_of(checkpoints.back());
  return parse_config(yaml, checkpoints.back().string(), overrides);
}

std::optional<CheckpointEvaluation> evaluate_checkpoint(const Config& asked, const EvaluationOrder& order,
                                                        comm::Communicator& comm, int device_index) {
  return CheckpointEvaluator(asked, order, comm).run(device_index);
}

}  // namespace lamina
