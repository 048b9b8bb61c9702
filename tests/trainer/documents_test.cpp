// Documents packed into one sequence with data.document_mask train as if each were a sequence of its own.
#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

constexpr int32_t end_of_document = 0;

struct Document {
  std::vector<int32_t> tokens, targets;
};

// Ends with the token that ends it; none before.
Document make_document(const Config& c, int64_t length, uint64_t stream) {
  const CounterRng rng(31, fmt::format("document {}", stream));
  Document document;
  for (uint64_t i = 0; i < static_cast<uint64_t>(length); ++i) {
    document.tokens.push_back(1 +
                              static_cast<int32_t>(rng.below(2 * i, static_cast<uint64_t>(c.model.vocab_size - 1))));
    document.targets.push_back(static_cast<int32_t>(rng.below(2 * i + 1, static_cast<uint64_t>(c.model.vocab_size))));
  }
  document.tokens.back() = end_of_document;
  return document;
}

void append(Document& to, const Document& from) {
  to.tokens.insert(to.tokens.end(), from.tokens.begin(), from.tokens.end());
  to.targets.insert(to.targets.end(), from.targets.begin(), from.targets.end());
}

struct Outcome {
  std::vector<double> losses, forward;  // per token; of all tokens, the sum of a pass without gradients
  Tensors gradients;
};

// `sequences` of one length, in one micro-batch.
Outcome run(Config c, const Document& sequences, int64_t count) {
  c.data.seq_len = static_cast<int64_t>(sequences.tokens.size()) / count;
  c.train.global_batch_size = c.train.micro_batch_size = count;
  const auto comm = comm::make_self_communicator();
  Engine engine(c, *comm, nullptr);
  engine.set_end_of_document(end_of_document);
  engine.initialise();
  move_depth_queries(engine);
  Outcome outcome;
  outcome.losses.resize(sequences.tokens.size(), std::nan(""));
  engine.accumulate_gradients(sequences.tokens, sequences.targets, 0.1, nullptr, outcome.losses);
  outcome.forward = {engine.loss(sequences.tokens, sequences.targets)};
  for (size_t p = 0; p < engine.parameters().specs().size(); ++p) {
    const model::ParameterSpec& spec = engine.parameters().specs()[p];
    if (!spec.is_trained) continue;
    const TensorView gradient = engine.parameters().gradient(static_cast<int>(p));
    for (int64_t i = 0; i < gradient.num_elements(); ++i)
      outcome.gradients[spec.name].push_back(element_of(gradient, i));
  }
  return outcome;
}

void add(Outcome& sum, const Outcome& other) {
  sum.losses.insert(sum.losses.end(), other.losses.begin(), other.losses.end());
  sum.forward.resize(1);
  sum.forward[0] += other.forward[0];
  for (const auto& [name, values] : other.gradients) {
    sum.gradients[name].resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) sum.gradients[name][i] += values[i];
  }
}

// The balance loss belongs to the sequence, not to its documents: without it here.
Config documents_config(Residual residual, Precision precision) {
  Config c = tiny_kimi_config(residual, 4, residual == Residual::block_attnres ? 2 : 1);
  c.model.aux_loss_alpha = 0;
  c.model.mixers = {Mixer::kda, Mixer::mla, Mixer::kda, Mixer::kda};
  c.train.precision = precision;
  c.data.document_mask = true;
  return c;
}

struct Packing {
  std::vector<int64_t> lengths;  // of the documents, in order
  int64_t num_sequences;         // that they fill, one after another, without one crossing an end
};

double largest_difference(const std::vector<double>& a, const std::vector<double>& b, size_t begin, size_t end) {
  double worst = 0;
  for (size_t i = begin; i < end; ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

void expect_documents_apart(const Config& c, const Packing& packing, double tolerance) {
  Document packed;
  Outcome separate;
  for (size_t d = 0; d < packing.lengths.size(); ++d) {
    const Document document = make_document(c, packing.lengths[d], d);
    append(packed, document);
    add(separate, run(c, document, 1));
  }
  const Outcome together = run(c, packed, packing.num_sequences);
  const size_t n = packed.tokens.size();
  EXPECT_LE(largest_difference(together.losses, separate.losses, 0, n), tolerance * 10);
  EXPECT_NEAR(together.forward[0], separate.forward[0], tolerance * separate.forward[0]);
  const auto [difference, name] = worst_difference(together.gradients, separate.gradients);
  EXPECT_LE(difference, tolerance) << name;

  // Without the mask only the first document of a sequence is as before.
  Config joined = c;
  joined.data.document_mask = false;
  const Outcome leaking = run(joined, packed, packing.num_sequences);
  const auto first = static_cast<size_t>(packing.lengths[0]);
  const size_t end = n / static_cast<size_t>(packing.num_sequences);
  EXPECT_LE(largest_difference(leaking.losses, separate.losses, 0, first), tolerance * 10);
  EXPECT_GT(largest_difference(leaking.losses, separate.losses, first, end), 1e-4);
  EXPECT_GT(worst_difference(leaking.gradients, separate.gradients).first, 1e-3);
}

// In float64, where a rounding is 1e-16: documents of a single token, and one that fills its sequence, among them.
TEST(PackedDocuments, EqualSeparateRuns) {
  for (const Residual residual : {Residual::standard, Residual::full_attnres, Residual::block_attnres, Residual::mhc})
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      Config c = documents_config(residual, Precision::fp64);
      c.train.recompute = recompute;
      expect_documents_apart(c, {{5, 4}, 1}, 1e-12);
      expect_documents_apart(c, {{3, 1, 5, 9, 1, 8}, 3}, 1e-12);
    }
}

// Longer than the chunks that the recurrence is computed in, with a boundary inside one. In single precision sums of a hundred
// tokens are taken in other orders.
TEST(PackedDocuments, EqualSeparateRunsInSinglePrecision) {
  Config c = documents_config(Residual::block_attnres, Precision::fp32);
  expect_documents_apart(c, {{67, 40, 90, 17}, 2}, 2e-4);
  c.model.gate_lower_bound = -5;
  expect_documents_apart(c, {{67, 40, 90, 17}, 2}, 2e-4);
}

TEST(PackedDocuments, TheMaskNeedsTheTokenThatEndsThem) {
  const Config c = documents_config(Residual::block_attnres, Precision::fp64);
  const auto comm = comm::make_self_communicator();
  Engine engine(c, *comm, nullptr);
  engine.initialise();
  const std::vector<int32_t> tokens(static_cast<size_t>(c.data.seq_len), 1);
  EXPECT_THROW(engine.accumulate_gradients(tokens, tokens, 1), InternalError);
}

}  // namespace
}  // namespace lamina
