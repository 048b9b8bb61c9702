// A signal every millisecond, while products and whole training steps compute in float32: nothing dies, and the bits are those of a
// run that is left alone. With handlers on threads that compute most of this ends in a crash, or in luck.
#include "core/base/signals.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/base/rng.h"
#include "core/base/stop.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/matmul/matmul.h"
#include "core/ops/matmul/single_thread_product.h"
#include "parallel/comm/thread.h"
#include "tests/support/op_test.h"
#include "trainer/step/engine.h"

namespace lamina {
namespace {

std::atomic<int64_t> handled{0}, handled_by_main{0};
const pthread_t main_thread = ::pthread_self();

// Somebody else's handler, as a library may install one.
void count(int) {
  handled.fetch_add(1, std::memory_order_relaxed);
  if (::pthread_equal(::pthread_self(), main_thread) != 0) handled_by_main.fetch_add(1, std::memory_order_relaxed);
}

// Both signals to this process, again and again while it lives.
class Volley {
 public:
  Volley() {
    stop::catch_signals();
    struct sigaction action {};
    action.sa_handler = count;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGUSR2, &action, nullptr);
    handled = handled_by_main = 0;
    thread_ = std::thread([this] {
      sigset_t all;  // whoever else takes them, it is not this thread
      sigfillset(&all);
      pthread_sigmask(SIG_BLOCK, &all, nullptr);
      while (!ends_) {
        ::kill(::getpid(), SIGUSR1);
        ::kill(::getpid(), SIGUSR2);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  }
  ~Volley() {
    ends_ = true;
    thread_.join();
    EXPECT_TRUE(stop::requested());
    EXPECT_GT(handled, 0);
    EXPECT_EQ(handled_by_main, 0);
    stop::reset();
  }
  Volley(const Volley&) = delete;
  Volley& operator=(const Volley&) = delete;

 private:
  std::atomic<bool> ends_{false};
  std::thread thread_;
};

struct Product {
  Product(bool a_transposed, bool b_transposed, ops::GradMode mode_of_c)
      : a_memory(test::normal(DType::f32, a_transposed ? Shape{k, m} : Shape{m, k}, 1)),
        b_memory(test::normal(DType::f32, b_transposed ? Shape{n, k} : Shape{k, n}, 2)),
        a(a_transposed ? a_memory->transposed() : a_memory.view()),
        b(b_transposed ? b_memory->transposed() : b_memory.view()),
        mode(mode_of_c) {}
  std::vector<float> compute(ops::OpContext& context) const {
    std::vector<float> c(static_cast<size_t>(m * n), 0.25f);
    ops::matmul(context, {a, b, TensorView(c.data(), DType::f32, {m, n}), mode});
    return c;
  }
  // As experts and the heads of attention multiply: always by sgemm.
  std::vector<float> compute_on_this_thread() const {
    const bool a_transposed = a.stride(0) == 1, b_transposed = b.stride(0) == 1;
    const ops::cpu::SingleThreadProduct product({m, n, k, DType::f32, DType::f32, a_transposed, b_transposed,
                                                 a.stride(a_transposed ? 1 : 0), b.stride(b_transposed ? 1 : 0), n});
    std::vector<float> c(static_cast<size_t>(m * n), 0.25f);
    product.run(a.data, b.data, c.data(), nullptr, mode == ops::GradMode::accumulate);
    return c;
  }

  static constexpr int64_t m = 192, n = 260, k = 320;
  test::Tensor a_memory, b_memory;
  TensorView a, b;
  ops::GradMode mode;
};

// 1,000 products each way: both operands in both orders, into a new result and onto an old one.
void multiply_under_fire() {
  test::TestContext context;
  for (const bool a_transposed : {false, true}) {
    for (const bool b_transposed : {false, true}) {
      for (const ops::GradMode mode : {ops::GradMode::overwrite, ops::GradMode::accumulate}) {
        const Product product(a_transposed, b_transposed, mode);
        const std::vector<float> expected = product.compute(context.fastest);
        const std::vector<float> expected_on_one = product.compute_on_this_thread();
        const Volley volley;
        int wrong = 0;
        for (int i = 0; i < 125; ++i) {
          wrong += product.compute(context.fastest) != expected;
          wrong += product.compute_on_this_thread() != expected_on_one;
        }
        EXPECT_EQ(wrong, 0) << a_transposed << b_transposed << static_cast<int>(mode);
      }
    }
  }
}

class OneThread {
 public:
  OneThread() { cpu::set_num_threads(1); }
  ~OneThread() { cpu::set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const int before_ = cpu::num_threads();
};

TEST(SignalsUnderLoad, ProductsOnOneThread) {
  const OneThread one;
  multiply_under_fire();
}

TEST(SignalsUnderLoad, ProductsOnAllThreads) {
  multiply_under_fire();
}

Config model() {
  Config c;
  c.run.seed = 3;
  c.model.vocab_size = 256;
  c.model.hidden_size = 128;
  c.model.num_hidden_layers = 4;
  c.model.residual = Residual::block_attnres;
  c.model.attn_res_block_size = 2;
  c.model.mixers = {Mixer::kda, Mixer::mla};
  c.model.linear_num_heads = 2;
  c.model.linear_head_dim = 32;
  c.model.num_attention_heads = 4;
  c.model.kv_lora_rank = 32;
  c.model.qk_nope_head_dim = 32;
  c.model.qk_rope_head_dim = 16;
  c.model.v_head_dim = 32;
  c.model.intermediate_size = 384;
  c.model.num_experts = 4;
  c.model.num_experts_per_token = 2;
  c.model.moe_intermediate_size = 96;
  c.data.seq_len = 64;
  c.train.global_batch_size = 8;
  c.train.micro_batch_size = 4;
  c.train.precision = Precision::fp32;
  c.train.optimizer.name = OptimizerName::muon;
  c.train.optimizer.lr = 1e-2;
  return c;
}

// The loss of every step, and the parameters after the last.
std::vector<double> train(const Config& c, int steps) {
  std::vector<double> seen;
  std::vector<int32_t> tokens(static_cast<size_t>(c.train.global_batch_size * c.data.seq_len));
  const CounterRng rng(9, "tokens");
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(rng.below(i, 256));
  const std::unique_ptr<comm::Communicator> comm = comm::make_self_communicator();
  Engine engine(c, *comm, nullptr);
  engine.initialise();
  for (int step = 1; step <= steps; ++step) {
    seen.push_back(engine.accumulate_gradients(tokens, tokens, 1.0 / static_cast<double>(tokens.size())));
    engine.update(step, c.train.optimizer.lr, 0.5);
  }
  for (size_t p = 0; p < engine.parameters().specs().size(); ++p) {
    const TensorView value = engine.parameters().value(static_cast<int>(p));
    for (int64_t i = 0; i < value.num_elements(); ++i)
      seen.push_back(static_cast<double>(static_cast<float*>(value.data)[i]));
  }
  return seen;
}

TEST(SignalsUnderLoad, WholeSteps) {
  const OneThread one;
  const std::vector<double> expected = train(model(), 12);
  const Volley volley;
  const std::vector<double> disturbed = train(model(), 12);
  EXPECT_TRUE(expected == disturbed);
}

uint64_t mask_of(const std::filesystem::path& status) {
  std::ifstream file(status);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("SigBlk:")) return std::stoull(line.substr(7), nullptr, 16);
  return ~uint64_t{0};  // a thread that ended meanwhile
}

TEST(Signals, OneThreadTakesThemAndTheOthersBlockThem) {
  cpu::parallel_for(64, 1, [](int64_t, int64_t) {});  // those of OpenMP are there
  const auto has = [](uint64_t mask, int signal) { return ((mask >> (signal - 1)) & 1) != 0; };
  int taking = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    const uint64_t mask = mask_of(task.path() / "status");
    if (mask == ~uint64_t{0}) continue;
    int open = 0;
    for (const int signal : {SIGTERM, SIGUSR1, SIGUSR2, SIGINT, SIGHUP, SIGALRM, SIGPROF, SIGVTALRM, SIGCHLD, SIGIO})
      open += !has(mask, signal);
    EXPECT_TRUE(open == 0 || open == 10) << task.path();
    taking += open == 10;
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGPIPE, SIGXFSZ})
      EXPECT_FALSE(has(mask, fault)) << fault;
  }
  EXPECT_EQ(taking, 1);
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  lamina::signals::move_to_own_thread();
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
