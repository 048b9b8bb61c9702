#include "inference/batcher.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/inference/writer.h"

namespace lamina::inference {
namespace {

using namespace std::chrono_literals;

std::vector<Request> one(Request request) {
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  return requests;
}
std::vector<int32_t> alone(Writer& writer, const Request& request) {
  Generator generator = writer.generator();
  generator.add(request);
  std::vector<int32_t> tokens;
  while (!generator.idle())
    for (const TokenEvent& event : generator.step()) tokens.push_back(event.token);
  return tokens;
}
// Of each request of the ticket, its first sample.
std::map<int64_t, std::vector<int32_t>> wait_for(Batcher::Ticket& ticket) {
  std::map<int64_t, std::vector<int32_t>> tokens;
  while (!ticket.has_ended())
    for (const TokenEvent& event : ticket.take(1s))
      if (event.sample == 0) tokens[event.request].push_back(event.token);
  return tokens;
}
void run(Batcher& batcher) {
  while (batcher.step(0ms)) {
  }
}

// Computes until it is destroyed.
class Computing {
 public:
  explicit Computing(Batcher& batcher)
      : thread_([this, &batcher] {
          while (!ends_) batcher.step(1ms);
        }) {}
  ~Computing() {
    ends_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> ends_ = false;
  std::thread thread_;
};

// Clients come, and go before or at the end of their text, at any time: what each gets is what it gets alone.
TEST(Batcher, ClientsDoNotSeeEachOther) {
  Writer writer;
  std::vector<std::vector<int32_t>> expected;
  for (uint64_t i = 0; i < 7; ++i) expected.push_back(alone(writer, writer.request(std::string(i, 'x'), i)));
  Batcher batcher(writer.decoder(), writer.tokenizer(), {5, 100});
  std::vector<std::map<int64_t, std::vector<int32_t>>> found(7);
  {
    const Computing computing(batcher);
    std::vector<std::thread> clients;
    for (uint64_t i = 0; i < 7; ++i)
      clients.emplace_back([&, i] {
        std::vector<Request> requests;
        for (const uint64_t k : {i, (i + 5) % 7}) requests.push_back(writer.request(std::string(k, 'x'), k));
        requests[1].num_samples = 2;
        const auto ticket = batcher.submit(requests);
        const auto abandoned = batcher.submit(requests);
        abandoned->take(i % 2 == 0 ? 0ms : 20ms);
        found[i] = wait_for(*ticket);
      });
    for (std::thread& client : clients) client.join();
  }
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_EQ(found[i].at(0), expected[i]) << i;
    EXPECT_EQ(found[i].at(1), expected[(i + 5) % 7]) << i;
  }
  run(batcher);
  EXPECT_EQ(batcher.load().sequences, 0);
  EXPECT_EQ(batcher.load().waiting, 0);
}

TEST(Batcher, HasPlacesAndAQueue) {
  Writer writer;
  Batcher batcher(writer.decoder(), writer.tokenizer(), {3, 1});
  Request pair = writer.request("pair");
  pair.num_samples = 2;
  const auto first = batcher.submit(one(pair));
  auto second = batcher.submit(one(pair));  // finds one place
  EXPECT_EQ(batcher.load().sequences, 2);
  EXPECT_EQ(batcher.load().waiting, 1);
  EXPECT_EQ(batcher.submit(one(writer.request("third"))), nullptr);  // would fit, but others were first
  second.reset();
  auto third = batcher.submit(one(writer.request("third")));
  EXPECT_EQ(batcher.load().sequences, 3);
  batcher.step(0ms);
  const auto waits = batcher.submit(one(writer.request("waits")));
  third.reset();  // while it is decoded
  EXPECT_EQ(batcher.load().waiting, 1);
  batcher.step(0ms);
  EXPECT_EQ(batcher.load().waiting, 0);
  batcher.close();
  EXPECT_EQ(batcher.submit(one(writer.request("late"))), nullptr);
  run(batcher);
  EXPECT_EQ(wait_for(*waits).at(0), alone(writer, writer.request("waits")));
  EXPECT_EQ(batcher.load().sequences, 0);
}

// One that asks for much does not hold up one that asks for little.
TEST(Batcher, ClientsTakeTurns) {
  Writer writer;
  Batcher batcher(writer.decoder(), writer.tokenizer(), {1, 10});
  Request request = writer.request("turns");
  request.sampling.temperature = 0;
  request.max_tokens = 3;
  const auto many = batcher.submit(std::vector<Request>(4, request)), few = batcher.submit(one(request));
  while (!few->has_ended()) {
    ASSERT_TRUE(batcher.step(0ms));
    few->take(0ms);
  }
  EXPECT_EQ(many->take(0ms).size(), 2 * 3u);  // its first one, and the one that was before the other's
  run(batcher);
  EXPECT_EQ(many->take(0ms).size(), 2 * 3u);
}

TEST(Batcher, AFailureReachesEverybodyAndItGoesOn) {
  Writer writer;
  Batcher batcher(writer.decoder(), writer.tokenizer(), {1, 10});
  const auto running = batcher.submit(one(writer.request("runs")));
  batcher.step(0ms);
  const auto waiting = batcher.submit(one(writer.request("waits")));
  batcher.fail_all("no memory");
  for (const auto* ticket : {&running, &waiting}) {
    try {
      (*ticket)->take(0ms);
      ADD_FAILURE() << "expected an Error";
    } catch (const Error& failure) {
      EXPECT_STREQ(failure.what(), "no memory");
    }
  }
  EXPECT_EQ(batcher.load().sequences, 0);
  const auto after = batcher.submit(one(writer.request("after")));
  run(batcher);
  EXPECT_EQ(wait_for(*after).at(0), alone(writer, writer.request("after")));
}

}  // namespace
}  // namespace lamina::inference
