// Writing text on a GPU: token by token as in one pass, and the CPU's text.
#include <map>
#include <string>

#include "core/device/cuda_device.h"
#include "tests/inference/decoder_support.h"
#include "tests/inference/writer.h"

namespace lamina::inference {
namespace {

constexpr Device gpu{DeviceKind::cuda, 0};

TEST(GpuDecoder, IsAsNearToTheTruthAsTraining) {
  ASSERT_EQ(cuda::why_none(), "");
  std::vector<Case> some[3];  // of each scheme others, with and without experts
  for (size_t i = 0; const Case& each : cases(gpu.kind)) some[i++ % 3].push_back(each);
  expect_as_near_to_the_truth_as_training(some[0], DType::f32, gpu);
  expect_as_near_to_the_truth_as_training(some[1], DType::bf16, gpu);
}

TEST(GpuDecoder, PiecesOfAnyLengthEqualTheWhole) {
  for (const Residual residual : {Residual::standard, Residual::block_attnres, Residual::full_attnres})
    expect_pieces_equal_the_whole(residual, 7, DType::f32, gpu, 1e-5);
  expect_pieces_equal_the_whole(Residual::block_attnres, 66, DType::f32, gpu, 1e-5);
}

TEST(GpuDecoder, DocumentsStayApart) {
  expect_documents_stay_apart({1, 8, 21}, DType::f32, gpu, 1e-5);
}

// Several requests, whose prompts are of different lengths and wait for each other, each continued twice: the likeliest tokens. Their
// memory grows on the way.
TEST(GpuDecoder, WritesTheTextOfTheCpu) {
  const auto text_of = [](Writer& writer) {
    Generator generator = writer.generator(50);
    for (const size_t length : {3, 58, 140}) {
      Request request = writer.request(std::string(length, 'a') + "bc");
      request.sampling = {0.0, 0, 1.0};
      request.num_samples = 2;
      request.num_likeliest = 0;
      generator.add(request);
    }
    std::map<std::pair<int64_t, int>, std::vector<int32_t>> tokens;
    std::map<std::pair<int64_t, int>, double> log_probability;
    while (!generator.idle())
      for (const TokenEvent& event : generator.step()) {
        tokens[{event.request, event.sample}].push_back(event.token);
        log_probability[{event.request, event.sample}] += event.log_probability;
      }
    return std::pair(tokens, log_probability);
  };
  Writer on_cpu, on_gpu(gpu);
  const auto [expected, expected_probability] = text_of(on_cpu);
  const auto [found, probability] = text_of(on_gpu);
  EXPECT_EQ(found, expected);
  ASSERT_EQ(expected.size(), 6u);
  for (const auto& [place, value] : expected_probability) EXPECT_NEAR(probability.at(place), value, 1e-3);
}

// Between passes the host waits for the logits only: once for a token of each sequence.
TEST(GpuDecoder, OnePassWaitsOnce) {
  const ModelConfig config = hybrid_config(Residual::block_attnres, 4, 2, false);
  ASSERT_GT(config.num_experts, 0);
  SmallModel model(config, DType::bf16, Recompute::none, 1, 8, {}, gpu);
  Decoder decoder(config, model.parameters, {});
  std::vector<Sequence> sequences;
  for (int i = 0; i < 3; ++i) sequences.push_back(decoder.make_sequence());
  const std::vector<int32_t> token = {5};
  std::vector<Decoder::Feed> feeds;
  for (Sequence& sequence : sequences) feeds.push_back({&sequence, token});
  decoder.feed(feeds);
  const int64_t before = decoder.num_waits();
  for (int i = 0; i < 3; ++i) decoder.feed(feeds);
  EXPECT_EQ(decoder.num_waits() - before, 3);
}

}  // namespace
}  // namespace lamina::inference
