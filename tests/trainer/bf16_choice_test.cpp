// Under DNNL_MAX_CPU_ISA these run as on an older processor, too (tests/CMakeLists.txt).
#include "trainer/step/bf16_choice.h"

#include <gmock/gmock.h>

#include <atomic>

#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

using testing::HasSubstr;

Config config_of(Precision precision, Bf16ProductsChoice choice = Bf16ProductsChoice::automatic) {
  Config c = tiny_config(Residual::standard, 2, 2);
  c.train.precision = precision;
  c.train.bf16_products = choice;
  return c;
}

Config config_of_two_ranks() {
  Config c = config_of(Precision::bf16);
  c.parallel.data = 2;
  c.train.global_batch_size = 2 * c.train.micro_batch_size;
  return c;
}

struct Chosen {
  std::string line;
  ops::Bf16Products products;
};

Chosen choose(const Config& config, const CheckpointInfo* saved = nullptr) {
  const auto comm = comm::make_self_communicator();
  Engine engine(config, *comm, nullptr);
  const std::string line = choose_bf16_products(engine, saved);
  return {line, engine.context().bf16_products};
}

CheckpointInfo saved_with(const std::string& products, const std::string& processor) {
  CheckpointInfo info;
  info.extra = {{"bf16_products", products}, {"processor", processor}};
  return info;
}

TEST(Bf16Choice, IsMeasured) {
  const Chosen chosen = choose(config_of(Precision::bf16));
  EXPECT_EQ(chosen.products, ops::quicker_products(ops::bf16_timings()));
  EXPECT_THAT(chosen.line, HasSubstr(ops::has_native_bf16_products() ? "of the time through fp32"
                                                                     : "through fp32 (no avx512_core_bf16: rank 0"));
}

TEST(Bf16Choice, IsTheConfigurationsWhereThatSays) {
  EXPECT_EQ(choose(config_of(Precision::bf16, Bf16ProductsChoice::fp32)).products, ops::Bf16Products::through_fp32());
  const Config native = config_of(Precision::bf16, Bf16ProductsChoice::native);
  if (ops::has_native_bf16_products()) {
    const CheckpointInfo other = saved_with("none", ops::product_processor());
    const Chosen chosen = choose(native, &other);
    EXPECT_EQ(chosen.products, ops::Bf16Products());
    EXPECT_THAT(chosen.line, HasSubstr("not the same bits"));
    return;
  }
  try {
    choose(native);
    ADD_FAILURE() << "native products on " << ops::product_processor();
  } catch (const Error& refusal) {
    EXPECT_THAT(refusal.what(), HasSubstr("train.bf16_products: found native, expected auto or fp32: rank 0 has none"));
  }
}

TEST(Bf16Choice, OfACheckpointIsKeptOnItsProcessor) {
  for (const char* products : {"dense,tile", "none", "single_row"}) {
    const CheckpointInfo same = saved_with(products, ops::product_processor());
    const Chosen kept = choose(config_of(Precision::bf16), &same);
    if (!ops::has_native_bf16_products()) {
      EXPECT_EQ(kept.products, ops::Bf16Products::through_fp32());
      continue;
    }
    EXPECT_EQ(ops::to_text(kept.products), products);
    EXPECT_THAT(kept.line, HasSubstr("as in the checkpoint"));
    const CheckpointInfo elsewhere = saved_with(products, "GenuineIntel family 6 model 207, avx512_core_amx");
    const Chosen anew = choose(config_of(Precision::bf16), &elsewhere);
    EXPECT_EQ(anew.products, ops::quicker_products(ops::bf16_timings()));
    EXPECT_THAT(anew.line, HasSubstr("GenuineIntel"));
    EXPECT_EQ(anew.line.find("not the same bits") == std::string::npos, ops::to_text(anew.products) == products);
  }
}

TEST(Bf16Choice, OfADamagedCheckpointIsRefusedByAllRanks) {
  if (!ops::has_native_bf16_products()) GTEST_SKIP() << "nothing is read where there is nothing to choose";
  const CheckpointInfo damaged = saved_with("dense,dens", ops::product_processor());
  const Config c = config_of_two_ranks();
  std::atomic<int> refused = 0;
  comm::run_threads(2, [&](comm::Communicator& comm) {
    Engine engine(c, comm, nullptr);
    try {
      choose_bf16_products(engine, &damaged);
    } catch (const Error& refusal) {
      EXPECT_THAT(refusal.what(), HasSubstr("found 'dense,dens'"));
      ++refused;
    }
  });
  EXPECT_EQ(refused, 2);
}

TEST(Bf16Choice, IsTheSameOnAllRanksAndComesBack) {
  // Another's record: rank 0's counts.
  const Config c = config_of_two_ranks();
  std::vector<std::string> texts(2);
  comm::run_threads(2, [&](comm::Communicator& comm) {
    const auto rank = static_cast<size_t>(comm.rank());
    const CheckpointInfo saved = saved_with(rank == 0 ? "dense,weight_gradient" : "tile", ops::product_processor());
    Engine engine(c, comm, nullptr);
    choose_bf16_products(engine, &saved);
    CheckpointInfo info;
    store_bf16_products(info, engine);
    EXPECT_EQ(info.extra.at("processor"), ops::product_processor());
    texts[rank] = info.extra.at("bf16_products");
  });
  EXPECT_EQ(texts[0], ops::has_native_bf16_products() ? "dense,weight_gradient" : "none");
  EXPECT_EQ(texts[1], texts[0]);
}

TEST(Bf16Choice, IsOfBf16Only) {
  for (const Precision precision : {Precision::fp32, Precision::fp64}) {
    const auto comm = comm::make_self_communicator();
    Engine engine(config_of(precision), *comm, nullptr);
    EXPECT_EQ(choose_bf16_products(engine, nullptr), "");
    CheckpointInfo info;
    store_bf16_products(info, engine);
    EXPECT_TRUE(info.extra.empty());
  }
}

TEST(Bf16Choice, TellsTheQuickerPrecision) {
  EXPECT_EQ(quicker_precision() == Precision::bf16, ops::bf16_timings()[1].native > 0 &&
                                                        ops::quicker_products(ops::bf16_timings()).native[1] &&
                                                        ops::quicker_products(ops::bf16_timings()).native[2]);
}

// Two steps of training: their bits follow the choice, and the same choice gives the same.
std::vector<double> losses_of(Bf16ProductsChoice choice) {
  const Config c = config_of(Precision::bf16, choice);
  const auto comm = comm::make_self_communicator();
  Engine engine(c, *comm, nullptr);
  engine.initialise();
  choose_bf16_products(engine, nullptr);
  const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
  std::vector<double> losses;
  for (int64_t step = 1; step <= 2; ++step) {
    losses.push_back(engine.accumulate_gradients(tokens, targets, 1.0 / static_cast<double>(tokens.size())));
    losses.push_back(engine.owned_gradient_square());
    engine.update(step, 1e-2, 1.0);
  }
  return losses;
}

TEST(Bf16Choice, ReachesEveryProductOfAStep) {
  const auto widened = losses_of(Bf16ProductsChoice::fp32);
  EXPECT_EQ(widened, losses_of(Bf16ProductsChoice::fp32));
  if (!ops::has_native_bf16_products()) {
    EXPECT_EQ(widened, losses_of(Bf16ProductsChoice::automatic));
    return;
  }
  const auto native = losses_of(Bf16ProductsChoice::native);
  EXPECT_EQ(native, losses_of(Bf16ProductsChoice::native));
  EXPECT_NE(widened, native);
  for (size_t i = 0; i < native.size(); ++i) EXPECT_NEAR(native[i], widened[i], 2e-2 * std::abs(widened[i]));
}

}  // namespace
}  // namespace lamina
