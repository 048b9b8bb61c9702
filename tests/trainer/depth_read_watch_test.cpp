// Warnings about reads that are saturated and blocks that nobody reads.
#include "trainer/record/depth_read_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lamina {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

ModelConfig model(Residual residual, int64_t layers = 4) {
  ModelConfig c;
  c.hidden_size = 8;
  c.num_hidden_layers = layers;
  c.residual = residual;
  c.attn_res_block_size = 2;
  return c;
}

// Four layers in two blocks: sites 0 to 3 see the embedding, 4 to 7 and the output block 0 too; all but 0 and 4 an open sum.
std::vector<DepthRead> even_reads() {
  std::vector<DepthRead> reads;
  for (int site = 0; site <= 8; ++site) {
    const size_t n = site == 0 ? 1 : site < 4 ? 2 : site == 4 ? 2 : 3;
    reads.push_back({site, std::vector<double>(n, 1.0 / static_cast<double>(n)), 0.5, 0.6});
  }
  return reads;
}

TEST(DepthReadWatch, IsSilentAboutReadsThatMix) {
  DepthReadWatch watch(model(Residual::block_attnres));
  for (int64_t step = 1; step <= 400; step += 10) EXPECT_THAT(watch.observe(step, even_reads()), IsEmpty()) << step;
}

TEST(DepthReadWatch, TellsOfASaturatedReadOnceAfterManySteps) {
  DepthReadWatch watch(model(Residual::block_attnres));
  std::vector<DepthRead> reads = even_reads();
  const std::vector<DepthRead> good = reads;
  reads[5].largest_weight = 0.995;
  reads[5].entropy = 0.02;
  for (int64_t step = 20; step < 70; step += 10) EXPECT_THAT(watch.observe(step, reads), IsEmpty()) << step;
  EXPECT_THAT(
      watch.observe(70, reads),
      ElementsAre(
          "the read of layer 2 mlp has been saturated since step 20: its largest weight is 0.995 on average, its "
          "entropy 0.020 of 1.099 nats; a lower train.optimizer.attn_res_lr_factor usually helps"));
  EXPECT_THAT(watch.observe(80, reads), IsEmpty());
  watch.observe(90, good);  // it ends, and may begin anew
  for (int64_t step = 100; step < 150; step += 10) EXPECT_THAT(watch.observe(step, reads), IsEmpty()) << step;
  EXPECT_THAT(watch.observe(150, reads), ElementsAre(HasSubstr("since step 100")));
  // A read of one source is always of one weight.
  reads = good;
  reads[0].largest_weight = 1;
  DepthReadWatch other(model(Residual::block_attnres));
  for (int64_t step = 0; step < 300; step += 50) EXPECT_THAT(other.observe(step, reads), IsEmpty());
}

TEST(DepthReadWatch, TellsOfABlockThatNoLaterReadLooksAt) {
  DepthReadWatch watch(model(Residual::block_attnres));
  std::vector<DepthRead> reads = even_reads();
  reads[8].weights = {0.7, 0.29, 0.01};  // the output read alone sees the last block finished
  EXPECT_THAT(watch.observe(1, reads), IsEmpty());
  EXPECT_THAT(
      watch.observe(51, reads),
      ElementsAre(
          "block 1 (layers 2-3) has been read by nobody since step 1: later reads give it a weight of 0.0100 at "
          "most, 0.03 of the uniform one, so its layers learn next to nothing; a lower "
          "train.optimizer.attn_res_lr_factor usually helps"));
  // Of block 0 one reader is enough; the reads inside a block see its open sum, which is another thing.
  for (size_t site : {4, 6, 7, 8}) reads[site].weights[1] = 0.001;
  for (size_t site : {1, 2, 3}) reads[site].weights[1] = 0.001;
  EXPECT_THAT(watch.observe(61, reads), IsEmpty());
  reads[5].weights[1] = 0.001;
  watch.observe(71, reads);
  EXPECT_THAT(watch.observe(121, reads),
              ElementsAre(StartsWith("block 0 (layers 0-1) has been read by nobody since step 71")));
}

TEST(DepthReadWatch, NamesReadsAndSources) {
  const DepthReadWatch block(model(Residual::block_attnres, 5)), full(model(Residual::full_attnres));
  EXPECT_EQ(block.name_of_source(0), "embedding");
  EXPECT_EQ(block.name_of_source(3), "block 2 (layer 4)");
  EXPECT_EQ(full.name_of_source(6), "layer 2 mlp");
  EXPECT_EQ(full.name_of_read(8), "the output read");
  EXPECT_EQ(full.name_of_read(2), "the read of layer 1 mixer");
}

TEST(DepthReadWatch, TheStandardResidualHasNoReads) {
  DepthReadWatch watch(model(Residual::standard));
  for (int64_t step = 0; step < 300; step += 50) EXPECT_THAT(watch.observe(step, {}), IsEmpty());
}

}  // namespace
}  // namespace lamina
