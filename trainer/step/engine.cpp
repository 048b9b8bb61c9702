#include "trainer/step/engine.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "configs/schema/decode.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/elementwise/elementwise.h"
#include "core/ops/matmul/matmul.h"
#include "core/tensor/elements.h"
#include "core/tensor/host_copy.h"
#include "model/cost_model.h"
#include "model/plan.h"

namespace lamina {
namespace {

constexpr int tied_tag = 7401;
constexpr int64_t tied_piece_elements = int64_t{4} << 20;

// Ranks with the same experts (same = true), or ranks that together have every expert once. Collective over the data group;
// null without expert ranks.
std::unique_ptr<comm::Communicator> split_experts(comm::Communicator& data, const mesh::MeshShape& mesh, bool same) {
  if (mesh.expert == 1) return nullptr;
  const int slot = data.rank() % mesh.expert, block = data.rank() / mesh.expert;
  return same ? data.split(slot, block) : data.split(block, slot);
}

// Uses per parameter of one group, in the group's order.
std::vector<int> group_uses(const model::ParameterGroup& group, const std::vector<int>& uses) {
  std::vector<int> out;
  for (int spec : group.spec_of) out.push_back(uses[static_cast<size_t>(spec)]);
  return out;
}

// An operation can't look at what is on a GPU, so what goes there is looked at before.
void check_tokens(std::span<const int32_t> tokens, int64_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i)
    LAMINA_CHECK(tokens[i] >= 0 && tokens[i] < vocab_size, "token {} at position {}, vocabulary {}", tokens[i], i,
                 vocab_size);
}

}  // namespace

Device device_of(const RunConfig& run, int index) {
  return run.device == "cuda" ? Device{DeviceKind::cuda, index} : Device{};
}

DType compute_dtype(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return DType::f32;
    case Precision::bf16:
      return DType::bf16;
    case Precision::fp64:
      return DType::f64;
  }
  return DType::f32;
}

mesh::MeshShape mesh_of(const Config& config, int world_size) {
  return {config.parallel.pipeline, resolve_data_parallel(config, world_size), config.parallel.expert};
}

Engine::Engine(const Config& config, comm::Communicator& comm, MemoryLedger* ledger, int device_index, EngineUse use)
    : config_(config),
      world_(comm),
      mesh_(mesh_of(config, comm.size())),
      place_(mesh::coordinates(mesh_, comm.rank())),
      data_(comm.split(place_.pp_rank, place_.dp_rank)),
      pipeline_(comm.split(place_.dp_rank, place_.pp_rank)),
      expert_(split_experts(*data_, mesh_, false)),
      expert_data_(split_experts(*data_, mesh_, true)),
      device_(device_of(config.run, device_index)),
      dtype_(compute_dtype(config.train.precision)),
      stream_(device_),
      scratch_(device_, ledger, "scratch"),
      ctx_{stream_, scratch_, refusals_, ops::Backend::fastest},
      plan_(model::make_stage_plan(config_.model, model::resolve_split(config_), mesh_.pipeline,
                                   config.parallel.block_transport)),
      parameters_(config_.model,
                  model::local_parameters(config_.model, plan_, place_.pp_rank, place_.ep_rank, mesh_.expert), dtype_,
                  {mesh_.data, mesh_.data / mesh_.expert}, device_, ledger,
                  use == EngineUse::training ? model::Gradients::kept : model::Gradients::none),
      stage_({config_.model, dtype_, config.train.recompute, device_, ledger,
              expert_ ? &exchange_.emplace(*expert_, config_.model.num_experts) : nullptr},
             plan_, place_.pp_rank,
             std::max(BatchPlan(config).max_microbatch_tokens(), config.train.micro_batch_size * config.data.seq_len),
             parameters_),
      observer_(config_.model, accumulation_dtype(dtype_), device_, ledger),
      executor_(*pipeline_, stage_, plan_.num_chunks()),
      owners_{data_.get(), expert_data_ ? expert_data_.get() : data_.get(), data_.get()},
      ledger_(ledger) {
  LAMINA_CHECK(config.model.vocab_size > 0);
  if (use == EngineUse::training) optimizer_.emplace(config_, parameters_, owners_, ledger);
  reducers_.reserve(model::num_groups);  // requests under way refer to them
  gatherers_.reserve(model::num_groups);
  for (size_t g = 0; g < model::num_groups; ++g) {
    const model::ParameterGroup& group = parameters_.groups()[g];
    if (use == EngineUse::training)
      reducers_.emplace_back(*owners_[g], group.shards, group.all_gradients(), stream_,
                             group_uses(group, stage_.uses_per_parameter()));
    gatherers_.emplace_back(*owners_[g], group.shards, group.all_values(), stream_);
  }
  executor_.before_step = [this](const pipeline::Step& step) {
    if (before_step) before_step(step);
  };
  set_stage(BatchPlan(config).stages().front());
  connect();
}

// The hops are the same for any number of micro-batches, so connections are made once.
void Engine::set_stage(const BatchStage& stage) {
  batch_ = stage;
  const auto num_microbatches = static_cast<int>(stage.global_batch_size / (stage.micro_batch_size * mesh_.data));
  const pipeline::ChunkCosts costs =
      model::schedule_costs(config_of(config_, stage), world_.size(), model::resolve_split(config_));
  schedule_ =
      pipeline::make_schedule(config_.parallel.schedule, mesh_.pipeline, plan_.num_chunks(), num_microbatches, &costs);
  steps_ = pipeline::lower(schedule_, plan_.num_chunks())[static_cast<size_t>(place_.pp_rank)];
  const int64_t num_tokens = stage.micro_batch_size * stage.seq_len * num_microbatches;
  if (num_tokens > reserved_tokens_) stream_.synchronize();  // a GPU may still read those that were
  reserve_tokens(num_tokens);
}

void Engine::connect() {
  std::vector<comm::Channel> channels = executor_.channels_of(steps_);
  if (shares_tied_embedding()) {
    const int other = stage_.has_last_chunk() ? 0 : mesh_.pipeline - 1;
    channels.insert(channels.end(), {{true, other, tied_tag}, {false, other, tied_tag}});
  }
  pipeline_->connect(channels, false, stream_);
  for (comm::Communicator* group : {data_.get(), expert_.get(), expert_data_.get()})
    if (group != nullptr) group->connect({}, true, stream_);
}

// A tied embedding on two ranks is complete only when they have added their parts.
bool Engine::shares_tied_embedding() const {
  return config_.model.tie_word_embeddings && mesh_.pipeline > 1 &&
         (stage_.has_first_chunk() || stage_.has_last_chunk());
}

void Engine::reserve_tokens(int64_t count) {
  if (count <= reserved_tokens_) return;
  tokens_ = Buffer(count * size_of(DType::i32), device_, ledger_, "batch");
  targets_ = Buffer(count * size_of(DType::i32), device_, ledger_, "batch");
  token_loss_ = Buffer(count * size_of(accumulation_dtype(dtype_)), device_, ledger_, "batch");
  if (config_.data.document_mask) document_starts_ = Buffer(count * size_of(DType::i32), device_, ledger_, "batch");
  reserved_tokens_ = count;
}

void Engine::initialise() {
  parameters_.initialise(config_.run.seed, config_.model.initializer_range);
  if (optimizer_) optimizer_->initialise_masters(config_.run.seed, config_.model.initializer_range);
}

void Engine::set_trace(trace::Recorder* trace) {
  trace_ = trace;
  executor_.set_trace(trace);
  for (zero::GradientReducer& reducer : reducers_) reducer.set_trace(trace);
  for (zero::ParameterGatherer& gatherer : gatherers_) gatherer.set_trace(trace);
  if (exchange_) exchange_->set_trace(trace);
}

void Engine::gather_parameters() {
  const trace::Scope scope(trace_, trace::Track::phases, "gather parameters");
  for (zero::ParameterGatherer& gatherer : gatherers_) gatherer.start();
  for (zero::ParameterGatherer& gatherer : gatherers_) gatherer.finish();
}

void Engine::publish() {
  if (optimizer_) optimizer_->publish_masters(ctx_);
  gather_parameters();
}

std::vector<zero::OwnedPart> Engine::owned_parts(model::Group group) {
  const model::ParameterGroup& all = parameters_.group(group);
  return all.shards.owned_parts(all.flat, owners_[static_cast<size_t>(group)]->rank());
}

int64_t Engine::take_data_bytes() {
  return data_->take_bytes_sent() + (expert_data_ ? expert_data_->take_bytes_sent() : 0) +
         std::exchange(tied_bytes_, 0);
}

// Of every token, where in its sequence its document starts: after the token that ended the one before.
void Engine::find_documents(std::span<const int32_t> tokens, int64_t seq_len) {
  LAMINA_CHECK(end_of_document_ >= 0, "data.document_mask without the token that ends a document");
  std::vector<int32_t> starts(tokens.size());
  int32_t start = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const size_t at = i % static_cast<size_t>(seq_len);
    if (at == 0) start = 0;
    starts[i] = start;
    if (tokens[i] == end_of_document_) start = static_cast<int32_t>(at + 1);
  }
  upload(starts.data(), elements_of(document_starts_, DType::i32, 0, static_cast<int64_t>(starts.size())), stream_);
}

// Of `into`, the first values.
void Engine::bring(std::span<const int32_t> tokens, const Buffer& into) {
  check_tokens(tokens, config_.model.vocab_size);
  upload(tokens.data(), elements_of(into, DType::i32, 0, static_cast<int64_t>(tokens.size())), stream_);
}

model::Stage::Pass Engine::make_pass(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                                     int64_t num_sequences_per_microbatch, int64_t seq_len) {
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t per_microbatch = num_sequences_per_microbatch * seq_len;
  LAMINA_CHECK(count > 0 && count % per_microbatch == 0 && tokens.size() == targets.size(),
               "{} tokens, {} targets in micro-batches of {}", count, targets.size(), per_microbatch);
  reserve_tokens(count);
  bring(tokens, tokens_);
  bring(targets, targets_);
  model::Stage::Pass pass;
  pass.shape.num_sequences = num_sequences_per_microbatch;
  pass.shape.seq_len = seq_len;
  if (config_.data.document_mask) {
    find_documents(tokens, seq_len);
    pass.document_starts = TensorView(document_starts_.data(), DType::i32, {count}, device_);
  }
  pass.num_microbatches = static_cast<int>(count / per_microbatch);
  pass.tokens = TensorView(tokens_.data(), DType::i32, {count}, device_);
  pass.targets = TensorView(targets_.data(), DType::i32, {count}, device_);
  pass.token_loss = TensorView(token_loss_.data(), accumulation_dtype(dtype_), {count}, device_);
  pass.progress = [this] { executor_.progress(); };
  return pass;
}

void Engine::run_pass(const model::Stage::Pass& pass, const std::vector<pipeline::Step>& steps) {
  stage_.begin(ctx_, pass);
  execution_ = executor_.run(steps, stream_);
  stage_.end();
  scratch_.reset();
}

// After the first steps, once. All requests have been waited for, so the stream's end is the end of this rank's messages too.
void Engine::settle_memory() {
  if (scratch_.is_settled() && stage_.is_settled()) return;
  stream_.synchronize();
  scratch_.settle();
  stage_.settle();
}

double Engine::sum_token_loss(const TensorView& token_loss, std::span<double> out) {
  if (!stage_.has_last_chunk()) return 0;
  const HostCopy losses(token_loss, stream_);
  double sum = 0;
  for (int64_t i = 0; i < token_loss.num_elements(); ++i) {
    const double loss = element_of(losses.view(), i);
    sum += loss;
    if (!out.empty()) out[static_cast<size_t>(i)] = loss;
  }
  return sum;
}

void Engine::report_ready(int parameter) {
  const model::Group group = parameters_.specs()[static_cast<size_t>(parameter)].group;
  reducers_[static_cast<size_t>(group)].parameter_ready(parameters_.index_in_group(parameter));
  for (zero::GradientReducer& reducer : reducers_) reducer.progress();
}

double Engine::accumulate_gradients(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                                    double grad_scale, std::vector<model::LayerSums>* sums,
                                    std::span<double> token_losses) {
  const trace::Scope scope(trace_, trace::Track::phases, "forward and backward");
  parameters_.zero_gradients(stream_);
  for (zero::GradientReducer& reducer : reducers_) reducer.begin_step();
  model::Stage::Pass pass = make_pass(tokens, targets, batch_.micro_batch_size, batch_.seq_len);
  LAMINA_CHECK(pass.num_microbatches * batch_.micro_batch_size * mesh_.data == batch_.global_batch_size,
               "{} micro-batches of {} on {} data-parallel ranks for a global batch of {}", pass.num_microbatches,
               batch_.micro_batch_size, mesh_.data, batch_.global_batch_size);
  pass.grad_scale = grad_scale;
  pass.train = true;
  pass.sums = sums;
  const bool detailed = sums != nullptr;
  observer_.begin({config_.model.num_experts > 0, detailed, keep_choices, detailed || clips_query_keys()},
                  pass.num_microbatches * batch_.micro_batch_size, stream_);
  pass.observer = &observer_;
  const bool shares = shares_tied_embedding();
  pass.ready = [this, shares](int parameter) {
    if (!shares || parameters_.specs()[static_cast<size_t>(parameter)].site >= 0) report_ready(parameter);
  };
  run_pass(pass, steps_);
  if (shares) share_tied_embedding();
  for (zero::GradientReducer& reducer : reducers_) reducer.finish();
  observations_ = {};
  observations_.sublayers = observer_.collect(stream_);
  share_observations(detailed);
  const double loss = sum_token_loss(pass.token_loss, token_losses);
  settle_memory();
  return loss;
}

// The head's rank sends its part to the embedding's rank and gets the sum back, so both apply the same bits.
void Engine::share_tied_embedding() {
  const int index = parameters_.index_of("model.embed_tokens.weight");
  const TensorView all = parameters_.gradient(index);
  const TensorView flat = all.reshaped({all.num_elements()});
  const int first = 0, last = mesh_.pipeline - 1;
  const int64_t piece_elements = std::min(tied_piece_elements, flat.num_elements());
  trace::Span span;
  span.track = trace::Track::data_parallel;
  span.name = "tied embedding";
  span.peer = stage_.has_last_chunk() ? first : last;
  span.bytes = flat.num_bytes();
  const int64_t traced = trace_ == nullptr ? 0 : trace_->open(span);
  if (tied_.num_bytes() == 0) tied_ = Buffer(piece_elements * size_of(flat.dtype), device_, ledger_, "scratch");
  for (int64_t at = 0; at < flat.num_elements(); at += piece_elements) {
    const int64_t count = std::min(piece_elements, flat.num_elements() - at);
    const TensorView mine = flat.slice(0, at, at + count);
    if (stage_.has_last_chunk()) {
      pipeline_->send(mine, first, tied_tag, stream_).wait();
      pipeline_->recv(mine, first, tied_tag, stream_).wait();
    } else {
      const TensorView theirs(tied_.data(), flat.dtype, {count}, device_);
      pipeline_->recv(theirs, last, tied_tag, stream_).wait();
      ops::add(ctx_, {mine, theirs, mine});
      pipeline_->send(mine, last, tied_tag, stream_).wait();
    }
  }
  if (trace_ != nullptr) trace_->close(traced);
  tied_bytes_ += flat.num_bytes();
  report_ready(index);
}

double Engine::owned_gradient_square() {
  const trace::Scope scope(trace_, trace::Track::phases, "gradient norm");
  std::vector<TensorView> gradients;
  for (const OwnedSlice& slice : optimizer().owned())
    if (parameters_.is_primary(slice.parameter)) gradients.push_back(slice.gradient);
  std::vector<double> squares(gradients.size());
  ops::sum_squares(ctx_, {gradients, squares});
  return std::accumulate(squares.begin(), squares.end(), 0.0);
}

std::string Engine::first_non_finite_gradient() {
  constexpr int64_t piece = int64_t{16} << 20;  // elements that a GPU's gradients take of the host's memory at a time
  const auto all_finite = [&](const TensorView& gradient) {
    const int64_t count = gradient.num_elements();
    for (int64_t at = 0; at < count; at += piece)
      if (first_non_finite(HostCopy(gradient.slice(0, at, std::min(at + piece, count)), stream_).view())) return false;
    return true;
  };
  const OwnedSlice* first = nullptr;
  for (const OwnedSlice& slice : optimizer().owned())
    if ((first == nullptr || slice.parameter < first->parameter) && !all_finite(slice.gradient)) first = &slice;
  return first == nullptr ? "" : parameters_.specs()[static_cast<size_t>(first->parameter)].name;
}

void Engine::update(int64_t step, double lr, double grad_scale, double bias_rate) {
  const trace::Scope scope(trace_, trace::Track::phases, "update");
  optimizer().step(ctx_, step, lr, grad_scale);
  if (bias_rate > 0) update_selection_biases(bias_rate);
  clip_query_keys();
  gather_parameters();
  settle_memory();
}

double Engine::forward_only(std::span<const int32_t> tokens, std::span<const int32_t> targets, int64_t num_sequences,
                            int64_t seq_len, std::span<double> losses) {
  model::Stage::Pass pass = make_pass(tokens, targets, num_sequences, seq_len);
  pass.ablated_source = ablated_source_;
  std::vector<pipeline::Step>& steps = forward_steps_[pass.num_microbatches];
  if (steps.empty()) {
    const auto schedule = pipeline::forward_schedule(mesh_.pipeline, plan_.num_chunks(), pass.num_microbatches);
    steps = pipeline::lower(schedule, plan_.num_chunks())[static_cast<size_t>(place_.pp_rank)];
  }
  run_pass(pass, steps);
  const double loss = sum_token_loss(pass.token_loss, losses);
  settle_memory();
  return loss;
}

void Engine::token_losses(std::span<const int32_t> tokens, std::span<const int32_t> targets, int64_t seq_len,
                          std::span<double> losses) {
  const auto count = static_cast<int64_t>(tokens.size());
  LAMINA_CHECK(seq_len > 0 && count % seq_len == 0 && count <= max_tokens() && losses.size() == tokens.size(),
               "{} tokens in sequences of {}, at most {}", count, seq_len, max_tokens());
  std::fill(losses.begin(), losses.end(), 0.0);
  forward_only(tokens, targets, count / seq_len, seq_len, losses);
}

double Engine::loss(std::span<const int32_t> tokens, std::span<const int32_t> targets) {
  const int64_t seq_len = config_.data.seq_len, micro = config_.train.micro_batch_size;
  const int64_t num_sequences = static_cast<int64_t>(tokens.size()) / seq_len;
  const int64_t whole = num_sequences / micro * micro;
  const auto split = static_cast<size_t>(whole * seq_len);
  double sum = 0;
  if (whole > 0) sum += forward_only(tokens.first(split), targets.first(split), micro, seq_len);
  if (whole < num_sequences)
    sum += forward_only(tokens.subspan(split), targets.subspan(split), num_sequences - whole, seq_len);
  return sum;
}

std::vector<float> Engine::next_token_logits(std::span<const int32_t> tokens) {
  const auto length = static_cast<int64_t>(tokens.size());
  LAMINA_CHECK(length > 0 && length <= config_.data.seq_len, "{} tokens", length);
  reserve_tokens(length);
  bring(tokens, tokens_);
  model::Batch batch;
  batch.num_sequences = 1;
  batch.seq_len = length;
  if (config_.data.document_mask) {
    find_documents(tokens, config_.data.seq_len);
    batch.document_starts = TensorView(document_starts_.data(), DType::i32, {1, length}, device_);
  }
  const TensorView hidden = stage_.forward_hidden(ctx_, batch, {tokens_.data(), DType::i32, {length}, device_});
  const TensorView last = hidden.slice(0, length - 1, length);
  const TensorView logits = scratch_.take(accumulation_dtype(dtype_), {1, config_.model.vocab_size});
  ops::linear(ctx_, last, stage_.head_weight(), logits);
  const HostCopy found(logits, stream_);
  std::vector<float> out;
  for (int64_t i = 0; i < config_.model.vocab_size; ++i) out.push_back(static_cast<float>(element_of(found.view(), i)));
  scratch_.reset();
  settle_memory();
  return out;
}

}  // namespace lamina
