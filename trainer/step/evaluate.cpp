#include "trainer/step/evaluate.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "configs/schema/decode.h"
#include "core/base/log.h"
#include "trainer/record/identity.h"

namespace lamina {

void check_document_mask(const CheckpointInfo& info, const std::string& checkpoint, const DataConfig& asked) {
  if (!stored_data(info)) return;  // imported
  const bool masked = parse_config(info.config_yaml, checkpoint).data.document_mask;
  if (masked != asked.document_mask)
    throw Error("data.document_mask: found {}, expected {}, with which {} was trained", asked.document_mask, masked,
                checkpoint);
}

void check_evaluation_data(const Sampler& sampler, const DataConfig& asked, const CheckpointInfo& info,
                           const std::string& checkpoint, bool allow_trained) {
  check_tokenizer(info, checkpoint, sampler.tokenizer().hash(), asked.validation.path);
  const std::optional<DataIdentity> trained = stored_data(info);
  if (!trained) {
    log::info("{}: does not say on which text it was trained; that it was not on {} is taken on trust", checkpoint,
              asked.validation.path);
    return;
  }
  check_document_mask(info, checkpoint, asked);
  const int64_t seen = sampler.num_trained_validation_sequences(*trained), all = sampler.num_validation_sequences();
  if (seen == 0 || allow_trained) return;
  throw Error(
      "data.validation: found {} sequences of {}, expected at most {}: {} was trained on the first {} (--allow-trained "
      "evaluates them all the same)",
      all, asked.validation.path, all - seen, checkpoint, seen);
}

std::optional<Evaluation> evaluate(Engine& engine, const Sampler& sampler, const Config& config,
                                   comm::Communicator& comm, const std::function<bool()>& stop_agreed) {
  const int64_t total = sampler.num_validation_sequences(), seq_len = config.data.seq_len;
  LAMINA_CHECK(total > 0);
  const int64_t dp_rank = engine.place().dp_rank, dp_size = engine.mesh().data;
  const int64_t begin = total * dp_rank / dp_size, end = total * (dp_rank + 1) / dp_size;
  const int64_t micro = config.train.micro_batch_size;
  std::vector<int32_t> tokens(static_cast<size_t>(micro * seq_len)), targets(tokens.size());
  // Every pipeline rank works on the same sequences; the loss comes from the head's, the bytes from the first.
  const bool counts = engine.place().pp_rank == 0;
  double totals[2] = {0, counts ? static_cast<double>(sampler.num_validation_bytes(begin, end)) : 0.0};
  // Expert-parallel ranks pass rows to each other: all make as many passes as the rank with the most sequences. What a rank
  // runs in place of a missing one is not counted.
  const int64_t passes = ((total + dp_size - 1) / dp_size + micro - 1) / micro;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t at = begin + pass * micro;
    const bool is_own = at < end;
    const int64_t first = is_own ? at : 0, count = is_own ? std::min(micro, end - at) : 1;
    const auto size = static_cast<size_t>(count * seq_len);
    sampler.load_validation(first, first + count, std::span(tokens).first(size), std::span(targets).first(size));
    const double loss = engine.loss(std::span(tokens).first(size), std::span(targets).first(size));
    if (is_own) totals[0] += loss;
    if (pass + 1 < passes && stop_agreed()) return std::nullopt;
  }
  Stream stream;
  comm.all_reduce(TensorView(totals, DType::f64, {2}), comm::ReduceOp::sum, stream).wait();
  return evaluation::perplexity_of(totals[0], total * seq_len, std::llround(totals[1]));
}

evaluation::Model evaluation_model(Engine& engine, comm::Communicator& comm, int32_t padding, int64_t max_tokens,
                                   std::function<bool()> stop_agreed) {
  LAMINA_CHECK(max_tokens <= engine.max_tokens());
  evaluation::Model model;
  model.token_losses = [&engine](std::span<const int32_t> tokens, std::span<const int32_t> targets, int64_t seq_len,
                                 std::span<double> losses) { engine.token_losses(tokens, targets, seq_len, losses); };
  model.max_tokens = max_tokens;
  model.dp_rank = engine.place().dp_rank;
  model.dp_size = engine.mesh().data;
  model.world = &comm;
  model.padding = padding;
  model.stop_agreed = std::move(stop_agreed);
  return model;
}

}  // namespace lamina
