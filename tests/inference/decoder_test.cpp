#include "tests/inference/decoder_support.h"

namespace lamina::inference {
namespace {

TEST(Decoder, TokenByTokenEqualsTheWhole) {
  for (const Case& c : cases()) {
    SmallModel model(c.config, DType::f64, Recompute::none, 1, 128);
    const Texts texts(c.config.vocab_size);
    EXPECT_LT(model::relative_error(incrementally(model, c.config, texts, 512), in_passes(model, c.config, texts)),
              1e-11)
        << c.name;
  }
}

TEST(Decoder, LowPrecisionIsAsNearToTheTruthAsTraining) {
  for (const DType dtype : {DType::f32, DType::bf16}) expect_as_near_to_the_truth_as_training(cases(), dtype, Device{});
}

TEST(Decoder, PiecesOfAnyLengthEqualTheWhole) {
  for (const Residual residual : {Residual::standard, Residual::block_attnres, Residual::full_attnres, Residual::mhc})
    for (const int64_t tokens_per_pass : {1, 7, 66})
      expect_pieces_equal_the_whole(residual, tokens_per_pass, DType::f64, Device{}, 1e-11);
}

TEST(Decoder, DocumentsStayApart) {
  expect_documents_stay_apart({1, 6, 7, 8, 21, 25}, DType::f64, Device{}, 1e-11);
}

// A copy goes on by itself, and the original does not notice.
TEST(Decoder, CopiesOfASequenceGoOnApart) {
  const ModelConfig config = hybrid_config(Residual::full_attnres, 4, 2, true);
  SmallModel model(config, DType::f64, Recompute::none, 1, 128);
  Decoder decoder(config, model.parameters, {});
  const auto prompt = some_tokens(11, 1, config.vocab_size), one = some_tokens(5, 2, config.vocab_size),
             other = some_tokens(5, 3, config.vocab_size);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 2; ++i) sequences.push_back(decoder.make_sequence());
  const Decoder::Feed first{&sequences[0], prompt};
  decoder.feed({&first, 1});
  sequences[1].assign(sequences[0]);
  const std::vector<Decoder::Feed> both = {{&sequences[0], one}, {&sequences[1], other}};
  const TensorView logits = decoder.feed(both);
  for (const auto& [index, rest] : {std::pair{0, &one}, {1, &other}}) {
    std::vector<int32_t> all = prompt;
    all.insert(all.end(), rest->begin(), rest->end());
    EXPECT_LT(model::relative_error(row(logits, index), whole(model, config, all).back()), 1e-11);
  }
}

// What a sequence keeps: a state of fixed size, and per token one latent per MLA layer.
TEST(Decoder, MemoryPerSequence) {
  const ModelConfig c = hybrid_config(Residual::block_attnres, 4, 2, false);
  EXPECT_EQ(model::SequenceCache::bytes_per_token(c, DType::bf16), 2 * (10 + 4) * 2);
  EXPECT_EQ(model::SequenceCache::fixed_bytes(c, DType::bf16), 2 * (2 * 16 * 16 * 4 + 3 * 3 * 32 * 2));
}

}  // namespace
}  // namespace lamina::inference
