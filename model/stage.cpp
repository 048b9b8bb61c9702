#include "model/stage.h"

#include <algorithm>
#include <utility>

#include "core/ops/elementwise/elementwise.h"

namespace lamina::model {

ChunkRange StagePlan::range(int chunk) const {
  const auto c = static_cast<size_t>(chunk);
  return {chunk, split.begin[c], split.begin[c + 1], chunk + 1 == num_chunks()};
}

StagePlan make_stage_plan(const ModelConfig& config, std::span<const int64_t> layers_per_chunk, int num_ranks,
                          BlockTransport transport) {
  StagePlan plan;
  plan.num_ranks = num_ranks;
  plan.split = pipeline::make_chunk_split(layers_per_chunk);
  LAMINA_CHECK(plan.split.begin.back() == 2 * config.num_hidden_layers && plan.num_chunks() % num_ranks == 0,
               "{} sublayers in {} chunks on {} ranks", plan.split.begin.back(), plan.num_chunks(), num_ranks);
  plan.blocks = pipeline::make_block_layout(config);
  plan.routes = pipeline::make_block_routes(plan.split, plan.blocks, num_ranks, transport);
  pipeline::validate(plan.routes, plan.split, plan.blocks);
  return plan;
}

LocalParameters local_parameters(const ModelConfig& config, const StagePlan& plan, int pp_rank, int ep_rank,
                                 int num_expert_ranks) {
  const int last_rank = (plan.num_chunks() - 1) % plan.num_ranks;
  const auto rank_of_site = [&](int site) {
    if (site < 0) return 0;
    if (site == plan.split.begin.back()) return last_rank;
    const auto after = std::upper_bound(plan.split.begin.begin(), plan.split.begin.end(), site);
    return static_cast<int>(after - plan.split.begin.begin() - 1) % plan.num_ranks;
  };
  LocalParameters local;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    const bool has_expert = spec.expert < 0 || spec.expert / (config.num_experts / num_expert_ranks) == ep_rank;
    const bool primary = rank_of_site(spec.site) == pp_rank && has_expert;
    const bool tied_head = config.tie_word_embeddings && spec.site < 0 && last_rank == pp_rank;
    local.primary.push_back(primary);
    local.held.push_back(primary || tied_head);
  }
  return local;
}

Stage::Stage(const ChunkOptions& options, const StagePlan& plan, int pp_rank, int64_t max_tokens,
             Parameters& parameters)
    : plan_(plan),
      pp_rank_(pp_rank),
      options_(options),
      hidden_size_(options.config.hidden_size),
      stream_size_(hidden_size_ * options.config.num_streams()),
      parameters_(parameters),
      workspace_(options.device, options.ledger),
      streams_(max_tokens * stream_size_ * size_of(options.dtype), options.device, options.ledger, "hidden streams") {
  for (int c = pp_rank; c < plan.num_chunks(); c += plan.num_ranks)
    chunks_.push_back(std::make_unique<Chunk>(options, plan.range(c), parameters));
  slots_.resize(chunks_.size());
  free_slots_.resize(chunks_.size());
  if (plan.blocks.num_blocks() > 0)
    cache_ = std::make_unique<pipeline::BlockCache>(plan.routes, pp_rank, max_tokens * hidden_size_, options.dtype,
                                                    options.device, options.ledger);
}

Stage::~Stage() = default;

void Stage::begin(ops::OpContext& ctx, const Pass& pass) {
  LAMINA_CHECK(!pass.train || parameters_.has_gradients(), "a training pass of parameters without gradients");
  ctx_ = &ctx;
  pass_ = pass;
  in_flight_.assign(chunks_.size() * static_cast<size_t>(pass.num_microbatches), {});
  if (cache_) cache_->begin(pass.num_microbatches, {pass.shape.num_tokens(), hidden_size_});
}

void Stage::end() {
  if (cache_) cache_->check_empty();
  LAMINA_CHECK(streams_.num_out() == 0, "{} hidden streams left behind on pipeline rank {}", streams_.num_out(),
               pp_rank_);
  for (size_t c = 0; c < slots_.size(); ++c)
    LAMINA_CHECK(free_slots_[c].size() == slots_[c].size(), "{} micro-batches left in flight in a chunk of rank {}",
                 slots_[c].size() - free_slots_[c].size(), pp_rank_);
  pass_ = {};
  ctx_ = nullptr;
}

std::vector<Arena*> Stage::arenas() {
  std::vector<Arena*> all = {&workspace_.transient, &workspace_.block};
  for (const auto& slots_of_chunk : slots_)
    for (const auto& slot : slots_of_chunk)
      for (Arena* arena : slot->arenas()) all.push_back(arena);
  return all;
}

bool Stage::is_settled() {
  const std::vector<Arena*> all = arenas();
  return std::all_of(all.begin(), all.end(), [](const Arena* arena) { return arena->is_settled(); });
}

void Stage::settle() {
  for (Arena* arena : arenas()) arena->settle();
}

Stage::InFlight& Stage::in_flight(int chunk, int microbatch) {
  LAMINA_CHECK(chunk % plan_.num_ranks == pp_rank_ && microbatch >= 0 && microbatch < pass_.num_microbatches,
               "chunk {}, micro-batch {} on pipeline rank {}", chunk, microbatch, pp_rank_);
  const auto local = static_cast<size_t>(chunk / plan_.num_ranks);
  return in_flight_[local * static_cast<size_t>(pass_.num_microbatches) + static_cast<size_t>(microbatch)];
}

TensorView Stage::take_stream() {
  return {streams_.take(), options_.dtype, {pass_.shape.num_tokens(), stream_size_}, options_.device};
}

void Stage::give_stream(TensorView& view) {
  streams_.give(view.data);
  view = {};
}

Chunk::Slot* Stage::take_slot(int index) {
  const auto local = static_cast<size_t>(index / plan_.num_ranks);
  if (free_slots_[local].empty()) {
    slots_[local].push_back(std::make_unique<Chunk::Slot>(chunk(index), options_, workspace_));
    return slots_[local].back().get();
  }
  Chunk::Slot* slot = free_slots_[local].back();
  free_slots_[local].pop_back();
  return slot;
}

void Stage::release_slot(int index, InFlight& state) {
  free_slots_[static_cast<size_t>(index / plan_.num_ranks)].push_back(std::exchange(state.slot, nullptr));
}

Chunk::Input Stage::input(int microbatch) const {
  const int64_t count = pass_.shape.num_tokens(), begin = microbatch * count;
  const auto part = [&](const TensorView& all) { return all ? all.slice(0, begin, begin + count) : all; };
  Chunk::Input input;
  input.batch = pass_.shape;
  input.batch.grad_scale = pass_.grad_scale;
  if (pass_.document_starts)
    input.batch.document_starts =
        part(pass_.document_starts).reshaped({pass_.shape.num_sequences, pass_.shape.seq_len});
  input.tokens = part(pass_.tokens);
  input.targets = part(pass_.targets);
  input.token_loss = part(pass_.token_loss);
  input.train = pass_.train;
  input.sums = pass_.sums;
  input.observer = pass_.observer;
  input.first_sequence = microbatch * pass_.shape.num_sequences;
  input.progress = pass_.progress;
  return input;
}

void Stage::run(const pipeline::Action& action) {
  LAMINA_CHECK(ctx_ != nullptr, "an action outside a pass");
  switch (action.kind) {
    case pipeline::ActionKind::forward:
      forward(action.chunk, action.microbatch);
      break;
    case pipeline::ActionKind::backward:
      backward(action.chunk, action.microbatch, false);
      break;
    case pipeline::ActionKind::backward_input:
      backward(action.chunk, action.microbatch, true);
      break;
    case pipeline::ActionKind::backward_weight: {
      InFlight& state = in_flight(action.chunk, action.microbatch);
      LAMINA_CHECK(state.slot != nullptr, "{} before its input gradient", to_string(action));
      state.slot->weights().run(*ctx_);
      release_slot(action.chunk, state);
      if (action.microbatch + 1 == pass_.num_microbatches) report(state.unreported);
      break;
    }
  }
}

void Stage::make_room_for_output(int index, int microbatch) {
  if (is_last(index)) return;
  InFlight& state = in_flight(index, microbatch);
  if (hops_are_local()) {
    make_room_for_input(index + 1, microbatch);
    state.out = in_flight(index + 1, microbatch).in;
    return;
  }
  state.owns_out = !routes(index).keeps_leaving;
  state.out = state.owns_out ? take_stream() : cache_->put(index, microbatch, routes(index).leaves_as_stream);
}

void Stage::make_room_for_input(int index, int microbatch) {
  InFlight& state = in_flight(index, microbatch);
  const int summary = routes(index).arrives_as_stream;
  state.owns_in = summary < 0;
  state.in = summary < 0 ? take_stream() : cache_->reserve(index, microbatch, summary);
}

void Stage::forward(int index, int microbatch) {
  InFlight& state = in_flight(index, microbatch);
  make_room_for_output(index, microbatch);
  const ChunkRange range = plan_.range(index);
  if (index == 0 && range.begin == range.end && !range.is_last)
    state.in = state.out;  // the embedding alone
  else if (index == 0)
    make_room_for_input(index, microbatch);
  LAMINA_CHECK(state.in && state.slot == nullptr, "{}F{} without its input, or twice", index, microbatch);
  state.slot = take_slot(index);
  if (routes(index).arrives_as_stream >= 0) cache_->arrived(index, microbatch, routes(index).arrives_as_stream);
  for (int summary : routes(index).received) cache_->arrived(index, microbatch, summary);
  chunk(index).forward(*ctx_, *state.slot, input(microbatch), {state.in, state.out}, summaries(index, microbatch));
  if (!pass_.train) release_after_forward(index, microbatch);
}

void Stage::release_after_forward(int index, int microbatch) {
  InFlight& state = in_flight(index, microbatch);
  release_slot(index, state);
  if (state.owns_in) give_stream(state.in);
  // A rank's last chunk is the last reader; what a message still takes from the cache is pinned first, in send_forward().
  if (cache_ && is_last(index)) cache_->release_all(microbatch);
}

void Stage::fill_outgoing(int index, int microbatch, TensorView gradient) {
  InFlight& state = in_flight(index, microbatch);
  const pipeline::ChunkRoutes& r = routes(index);
  TensorView& stream = state.gradients_in.stream;
  ops::cast(*ctx_, {stream, gradient});
  give_stream(stream);
  if (!r.keeps_leaving) return;
  // Later chunks of this rank read the block that this one finished: what they deposited belongs to it too.
  const TensorView own = cache_->complete_gradient(index, microbatch, r.leaves_as_stream);
  ops::add(*ctx_, {gradient, own, gradient});
  cache_->drop_gradient(index, microbatch, r.leaves_as_stream);
}

void Stage::collect_hop_gradients(int index, int microbatch) {
  InFlight& state = in_flight(index, microbatch);
  std::vector<TensorView>& received = state.gradients_in.summaries;
  const std::vector<int>& sent = routes(index).sent;
  LAMINA_CHECK(is_last(index) || received.size() == sent.size(), "{}B{}: {} summary gradients, {} were sent", index,
               microbatch, received.size(), sent.size());
  for (size_t i = 0; i < received.size(); ++i) {
    const auto [gradient, mode] = cache_->deposit_of_hop(index, microbatch, sent[i]);
    if (*mode == ops::GradMode::overwrite)
      ops::cast(*ctx_, {received[i], gradient});
    else
      ops::add(*ctx_, {gradient, received[i], gradient});
    *mode = ops::GradMode::accumulate;
    give_stream(received[i]);
  }
  received.clear();
}

void Stage::backward(int index, int microbatch, bool defer_weights) {
  InFlight& state = in_flight(index, microbatch);
  LAMINA_CHECK(state.slot != nullptr && pass_.train, "{}B{} before its forward", index, microbatch);
  LAMINA_CHECK(is_last(index) || state.gradients_in.stream, "{}B{} before the gradient of its output, or twice", index,
               microbatch);
  if (!hops_are_local()) collect_hop_gradients(index, microbatch);
  const bool last_microbatch = microbatch + 1 == pass_.num_microbatches;
  chunk(index).backward(
      *ctx_, *state.slot, input(microbatch), defer_weights,
      [&](const TensorView& gradient) { fill_outgoing(index, microbatch, gradient); },
      [&](const std::vector<int>& parameters) {
        if (!last_microbatch) return;
        if (defer_weights)
          state.unreported.insert(state.unreported.end(), parameters.begin(), parameters.end());
        else
          report(parameters);
      });
  make_incoming(index, microbatch);
  release_after_backward(index, microbatch);
  if (!defer_weights) release_slot(index, state);
}

void Stage::report(const std::vector<int>& parameters) const {
  if (!pass_.ready) return;
  for (int parameter : parameters) pass_.ready(parameter);
}

void Stage::make_incoming(int index, int microbatch) {
  if (index == 0) return;
  InFlight& state = in_flight(index, microbatch);
  const pipeline::ChunkRoutes& r = routes(index);
  const TensorView stream = take_stream();
  ops::cast(*ctx_, {chunk(index).incoming_gradient(*state.slot), stream});
  if (hops_are_local()) {
    in_flight(index - 1, microbatch).gradients_in.stream = stream;
    return;
  }
  state.gradients_out.stream = stream;
  for (int summary : r.received) {
    const TensorView gradient = cache_->complete_gradient(index, microbatch, summary);
    LAMINA_CHECK(gradient, "summary {} was received by chunk {} and read by nobody", summary, index);
    state.gradients_out.summaries.push_back(take_stream());
    ops::cast(*ctx_, {gradient, state.gradients_out.summaries.back()});
    cache_->drop_gradient(index, microbatch, summary);
  }
}

void Stage::release_after_backward(int index, int microbatch) {
  InFlight& state = in_flight(index, microbatch);
  if (state.owns_in) give_stream(state.in);
  if (!cache_) return;
  const pipeline::ChunkRoutes& r = routes(index);
  for (int summary : r.released) cache_->release(index, microbatch, summary);
  for (int summary : r.finished) cache_->drop_gradient(index, microbatch, summary);
  if (r.arrives_as_stream >= 0) cache_->drop_gradient(index, microbatch, r.arrives_as_stream);
}

void Stage::receive_forward(int index, int microbatch, pipeline::HopViews& views) {
  make_room_for_input(index, microbatch);
  views.stream = in_flight(index, microbatch).in;
  views.summaries.clear();
  for (int summary : routes(index).received) views.summaries.push_back(cache_->reserve(index, microbatch, summary));
}

void Stage::send_forward(int index, int microbatch, pipeline::HopViews& views) {
  const pipeline::ChunkRoutes& r = routes(index);
  views.stream = in_flight(index, microbatch).out;
  views.summaries.clear();
  if (r.keeps_leaving) cache_->pin(index, microbatch, r.leaves_as_stream);
  for (int summary : r.sent) {
    cache_->pin(index, microbatch, summary);
    views.summaries.push_back(cache_->value(index, microbatch, summary));
  }
  const bool last_of_rank = index + plan_.num_ranks >= plan_.num_chunks();
  if (cache_ && !pass_.train && last_of_rank) cache_->release_all(microbatch);
}

void Stage::sent_forward(int index, int microbatch) {
  const pipeline::ChunkRoutes& r = routes(index);
  InFlight& state = in_flight(index, microbatch);
  if (r.keeps_leaving) cache_->unpin(index, microbatch, r.leaves_as_stream);
  for (int summary : r.sent) cache_->unpin(index, microbatch, summary);
  if (std::exchange(state.owns_out, false)) give_stream(state.out);
}

void Stage::receive_backward(int index, int microbatch, pipeline::HopViews& views) {
  pipeline::HopViews& gradients = in_flight(index, microbatch).gradients_in;
  gradients.stream = take_stream();
  for (size_t i = 0; i < routes(index).sent.size(); ++i) gradients.summaries.push_back(take_stream());
  views = gradients;
}

void Stage::send_backward(int index, int microbatch, pipeline::HopViews& views) {
  views = in_flight(index, microbatch).gradients_out;
}

void Stage::sent_backward(int index, int microbatch) {
  pipeline::HopViews& gradients = in_flight(index, microbatch).gradients_out;
  give_stream(gradients.stream);
  for (TensorView& view : gradients.summaries) give_stream(view);
  gradients.summaries.clear();
}

TensorView Stage::forward_hidden(ops::OpContext& ctx, const Batch& shape, TensorView tokens) {
  LAMINA_CHECK(plan_.num_chunks() == 1, "{} chunks", plan_.num_chunks());
  Pass pass;
  pass.shape = shape;
  pass.tokens = tokens;
  begin(ctx, pass);
  InFlight& state = in_flight(0, 0);
  make_room_for_input(0, 0);
  state.slot = take_slot(0);
  if (cache_) cache_->arrived(0, 0, 0);
  const TensorView hidden = chunk(0).forward_hidden(ctx, *state.slot, input(0), {state.in, {}}, summaries(0, 0));
  release_after_forward(0, 0);
  end();
  return hidden;
}

TensorView Stage::head_weight() const {
  LAMINA_CHECK(has_last_chunk());
  return chunks_.back()->head_weight();
}

std::vector<int> Stage::uses_per_parameter() const {
  std::vector<int> uses;
  for (size_t i = 0; i < parameters_.specs().size(); ++i)
    uses.push_back(parameters_.is_held(static_cast<int>(i)) && parameters_.specs()[i].is_trained ? 1 : 0);
  if (options_.config.tie_word_embeddings && has_first_chunk() && has_last_chunk()) uses[0] = 2;
  return uses;
}

}  // namespace lamina::model
