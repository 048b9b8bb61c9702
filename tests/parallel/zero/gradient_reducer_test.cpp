#include "parallel/zero/gradient_reducer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "core/base/rng.h"
#include "parallel/comm/thread.h"

namespace lamina::zero {
namespace {

using ::testing::HasSubstr;

const std::vector<FlatParameter>& parameters() {
  static const std::vector<FlatParameter> list{{"embedding", 999, false}, {"norm0", 33, false}, {"gate", 500, false},
                                               {"up", 500, true},         {"down", 700, false}, {"norm1", 33, false},
                                               {"head", 77, false}};
  return list;
}
constexpr int64_t bucket_elements = 800;

template <class T>
T gradient(int rank, int step, int parameter, int64_t element) {
  const CounterRng rng(static_cast<uint64_t>(100 * step + rank), static_cast<uint64_t>(parameter));
  return static_cast<T>(rng.normal(static_cast<uint64_t>(element)));
}

// The order in which a backward pass finishes gradients, not quite that of the buffer.
const std::vector<int> backward_order{6, 4, 5, 2, 3, 0, 1};

template <class T>
void check_sums(comm::Communicator& comm) {
  const ShardMap map = make_shard_map(parameters(), comm.size(), bucket_elements);
  std::vector<T> flat(static_cast<size_t>(map.num_padded));
  Stream stream;
  // The head is tied to something used twice.
  const std::vector<int> uses{1, 1, 1, 1, 1, 1, 2};
  GradientReducer reducer(comm, map, {flat.data(), dtype_of<T>::value, {map.num_padded}}, stream, uses);
  for (int step = 0; step < 3; ++step) {
    std::fill(flat.begin(), flat.end(), std::numeric_limits<T>::quiet_NaN());
    reducer.begin_step();
    reducer.parameter_ready(6);  // a first use, before the gradient is final
    for (int p : backward_order) {
      for (int64_t e = 0; e < parameters()[static_cast<size_t>(p)].num_elements; ++e)
        flat[static_cast<size_t>(map.offsets[static_cast<size_t>(p)] + e)] = gradient<T>(comm.rank(), step, p, e);
      reducer.parameter_ready(p);
      reducer.progress();
    }
    reducer.finish();
    for (const OwnedPart& part : map.owned_parts(parameters(), comm.rank())) {
      for (int64_t e = part.begin; e < part.end; ++e) {
        T sum = gradient<T>(0, step, part.parameter, e);
        for (int r = 1; r < comm.size(); ++r) sum += gradient<T>(r, step, part.parameter, e);
        ASSERT_EQ(flat[static_cast<size_t>(part.flat_offset + e - part.begin)], sum);
      }
    }
  }
}

TEST(GradientReducer, OwnedPartsHoldTheSumsToTheBit) {
  for (int size = 1; size <= 4; ++size) {
    comm::run_threads(size, check_sums<float>);
    comm::run_threads(size, check_sums<double>);
  }
}

// Records which bucket each reduce_scatter is for.
class RecordingCommunicator final : public comm::Communicator {
 public:
  explicit RecordingCommunicator(const void* base) : base_(base) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  comm::Request send(TensorView, int, int, Stream&) override { return {}; }
  comm::Request recv(TensorView, int, int, Stream&) override { return {}; }
  comm::Request all_reduce(TensorView, comm::ReduceOp, Stream&) override { return {}; }
  comm::Request reduce_scatter(TensorView in, TensorView, comm::ReduceOp op, Stream&) override {
    EXPECT_EQ(op, comm::ReduceOp::sum);
    begins.push_back(static_cast<const float*>(in.data) - static_cast<const float*>(base_));
    return {};
  }
  comm::Request all_gather(TensorView, TensorView, Stream&) override { return {}; }
  comm::Request broadcast(TensorView, int, Stream&) override { return {}; }
  comm::Request all_to_all(TensorView, TensorView, Stream&) override { return {}; }
  comm::Request all_to_all_v(TensorView, std::span<const int64_t>, TensorView, std::span<const int64_t>,
                             Stream&) override {
    return {};
  }
  void barrier() override {}
  std::unique_ptr<comm::Communicator> split(int, int) override { return nullptr; }
  [[noreturn]] void abort(const std::string& reason) override { throw Error(reason); }
  int64_t take_bytes_sent() override { return 0; }
  bool set_patient(bool) override { return false; }

  std::vector<int64_t> begins;

 private:
  const void* base_;
};

class GradientReducerOrder : public ::testing::Test {
 protected:
  ShardMap map = make_shard_map(parameters(), 1, bucket_elements);
  std::vector<float> flat = std::vector<float>(static_cast<size_t>(map.num_padded));
  RecordingCommunicator comm{flat.data()};
  Stream stream;
  TensorView view{flat.data(), DType::f32, {map.num_padded}};
  int64_t begin_of(int bucket) const { return map.buckets[static_cast<size_t>(bucket)].elements.begin; }
};

TEST_F(GradientReducerOrder, LaunchesFromTheLastBucketToTheFirstAsSoonAsPossible) {
  ASSERT_EQ(map.buckets.size(), 5u);  // embedding | norm0 | gate, up | down, norm1 | head
  GradientReducer reducer(comm, map, view, stream);
  reducer.begin_step();
  reducer.parameter_ready(0);  // complete, but not its turn
  EXPECT_TRUE(comm.begins.empty());
  reducer.parameter_ready(6);
  EXPECT_EQ(comm.begins, (std::vector<int64_t>{begin_of(4)}));
  reducer.parameter_ready(5);
  EXPECT_EQ(comm.begins.size(), 1u);
  reducer.parameter_ready(4);
  EXPECT_EQ(comm.begins.size(), 2u);
  reducer.parameter_ready(3);
  reducer.parameter_ready(1);
  EXPECT_EQ(comm.begins.size(), 2u);
  reducer.parameter_ready(2);  // releases the three that are left
  EXPECT_EQ(comm.begins, (std::vector<int64_t>{begin_of(4), begin_of(3), begin_of(2), begin_of(1), begin_of(0)}));
  reducer.finish();
}

TEST_F(GradientReducerOrder, UnusedParametersDoNotHoldABucketBack) {
  GradientReducer reducer(comm, map, view, stream, {1, 1, 1, 1, 1, 1, 0});
  reducer.begin_step();
  EXPECT_EQ(comm.begins.size(), 1u);
  EXPECT_THROW(reducer.parameter_ready(6), InternalError);
  for (int p = 0; p < 6; ++p) reducer.parameter_ready(p);
  reducer.finish();
  EXPECT_EQ(comm.begins.size(), 5u);
}

TEST_F(GradientReducerOrder, WrongReportsAreBugs) {
  GradientReducer reducer(comm, map, view, stream);
  EXPECT_THROW(reducer.parameter_ready(0), InternalError);  // outside a step
  EXPECT_THROW(reducer.finish(), InternalError);
  reducer.begin_step();
  EXPECT_THROW(reducer.begin_step(), InternalError);
  EXPECT_THROW(reducer.parameter_ready(7), InternalError);
  EXPECT_THROW(reducer.parameter_ready(-1), InternalError);
  reducer.parameter_ready(6);
  EXPECT_THROW(reducer.parameter_ready(6), InternalError);  // twice
  reducer.parameter_ready(3);
  try {
    reducer.finish();
    FAIL() << "five parameters are missing";
  } catch (const InternalError& failure) {
    EXPECT_THAT(failure.what(),
                HasSubstr("5 of 7 parameters were not reported before finish(), the first is 0 (0 of 1"));
  }
  for (int p : {0, 1, 2, 4, 5}) reducer.parameter_ready(p);
  reducer.finish();
}

TEST_F(GradientReducerOrder, WrongBuffersAreBugs) {
  EXPECT_THROW(GradientReducer(comm, map, view.slice(0, 0, 16), stream), InternalError);
  EXPECT_THROW(GradientReducer(comm, map, view, stream, {1, 2}), InternalError);
  EXPECT_THROW(GradientReducer(comm, map, view, stream, {1, 1, 1, 1, 1, 1, -1}), InternalError);
  const ShardMap for_two = make_shard_map(parameters(), 2, bucket_elements);
  EXPECT_THROW(GradientReducer(comm, for_two, view, stream), InternalError);
  EXPECT_THROW(ParameterGatherer(comm, map, view.slice(0, 0, 16), stream), InternalError);
  ParameterGatherer gatherer(comm, map, view, stream);
  EXPECT_THROW(gatherer.finish(), InternalError);
  EXPECT_THROW(gatherer.wait_for_bucket(0), InternalError);
  gatherer.start();
  EXPECT_THROW(gatherer.start(), InternalError);
  gatherer.finish();
}

TEST(ParameterGatherer, EveryRankEndsWithEveryParameter) {
  for (int size = 1; size <= 4; ++size) {
    comm::run_threads(size, [](comm::Communicator& comm) {
      const ShardMap map = make_shard_map(parameters(), comm.size(), bucket_elements);
      std::vector<bf16> flat(static_cast<size_t>(map.num_padded));
      Stream stream;
      ParameterGatherer gatherer(comm, map, {flat.data(), DType::bf16, {map.num_padded}}, stream);
      for (int step = 0; step < 2; ++step) {
        const auto value = [&](int64_t e) { return bf16(static_cast<float>((e + step) % 251)); };
        std::fill(flat.begin(), flat.end(), bf16(std::numeric_limits<float>::quiet_NaN()));
        for (size_t b = 0; b < map.buckets.size(); ++b) {
          const Interval mine = map.owned(static_cast<int>(b), comm.rank());
          for (int64_t e = mine.begin; e < mine.end; ++e) flat[static_cast<size_t>(e)] = value(e);
        }
        gatherer.start();
        gatherer.progress();
        for (size_t b = 0; b < map.buckets.size(); ++b) {
          gatherer.wait_for_bucket(static_cast<int>(b));
          const Interval all = map.buckets[b].elements;
          for (int64_t e = all.begin; e < all.end; ++e) ASSERT_EQ(flat[static_cast<size_t>(e)].bits, value(e).bits);
        }
        gatherer.finish();
      }
    });
  }
}

}  // namespace
}  // namespace lamina::zero
