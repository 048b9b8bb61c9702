// The cases of tests/parallel/comm/collective_cases.h for views of a GPU: poisoned outputs, odd sizes, everything in place that
// may be, several operations in flight, waited for in different orders. Inputs are written on the stream just before a call and
// results are read on it just after the wait, so an operation that is not in the stream's order shows.
#pragma once

#include <gtest/gtest.h>

#include "core/device/buffer.h"
#include "core/device/cuda_device.h"
#include "core/tensor/host_copy.h"
#include "tests/parallel/comm/collective_cases.h"

namespace lamina::comm::testing {

// How sums compare with loops in rank order: staged transports give the same bits, NCCL has an order of its own.
enum class Sums { exact, rounded };

template <class T>
class DeviceArray {
 public:
  DeviceArray(std::vector<T> values, Stream& stream)
      : values_(std::move(values)), memory_(count() * bytes_of_one, stream.device(), nullptr, "test") {
    set(std::move(values_), stream);
  }
  int64_t count() const { return static_cast<int64_t>(values_.size()); }
  TensorView view() const { return {memory_.data(), dtype_of<T>::value, {count()}, memory_.device()}; }
  TensorView part(int64_t index, int64_t size) const { return view().slice(0, index * size, (index + 1) * size); }

  void set(std::vector<T> values, Stream& stream) {
    values_ = std::move(values);
    upload(values_.data(), view(), stream);
  }
  std::vector<T> get(Stream& stream) const {
    const HostCopy values(view(), stream);
    return {values->as<T>(), values->as<T>() + count()};
  }

 private:
  static constexpr int64_t bytes_of_one = static_cast<int64_t>(sizeof(T));
  std::vector<T> values_;
  Buffer memory_;
};

// The reduction of elements [begin, begin + count), and whether `got` is it.
template <class T>
bool is_reduction(const std::vector<T>& got, int size, int64_t begin, ReduceOp op, uint64_t salt, Sums sums) {
  constexpr double eps = std::is_same_v<T, double> ? 0x1p-53 : std::is_same_v<T, float> ? 0x1p-24 : 0x1p-9;
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t index = begin + static_cast<int64_t>(i);
    const T expected = reduced<T>(size, index, op, salt);
    if (std::memcmp(&got[i], &expected, sizeof(T)) == 0) continue;
    if constexpr (!std::is_same_v<T, int32_t>) {
      // Each of the size - 1 additions rounds a partial sum, which is at most the sum of the magnitudes; then the last rounding.
      double magnitudes = 0;
      for (int r = 0; r < size; ++r) magnitudes += std::abs(static_cast<double>(element<T>(r, index, salt)));
      const double error = std::abs(static_cast<double>(got[i]) - static_cast<double>(expected));
      if (sums == Sums::rounded && op == ReduceOp::sum && error <= 2 * eps * (size + 1) * magnitudes) continue;
    }
    return false;
  }
  return true;
}

template <class T>
void check_device_reductions(Communicator& comm, int64_t count, ReduceOp op, Sums sums, Stream& stream) {
  const int size = comm.size(), rank = comm.rank();
  const uint64_t salt = 11 + static_cast<uint64_t>(count);
  DeviceArray<T> inout(input<T>(rank, count, salt), stream);
  comm.all_reduce(inout.view(), op, stream).wait();
  EXPECT_TRUE(is_reduction(inout.get(stream), size, 0, op, salt, sums)) << "all_reduce of " << count;

  const std::vector<T> given = input<T>(rank, count * size, salt);
  DeviceArray<T> in(given, stream), out(poison<T>(count), stream);
  comm.reduce_scatter(in.view(), out.view(), op, stream).wait();
  EXPECT_TRUE(is_reduction(out.get(stream), size, rank * count, op, salt, sums)) << "reduce_scatter of " << count;
  EXPECT_TRUE(same_bits(in.get(stream), given)) << "reduce_scatter writes its input";

  comm.reduce_scatter(in.view(), in.part(rank, count), op, stream).wait();
  const std::vector<T> all = in.get(stream);
  const std::vector<T> own(all.begin() + rank * count, all.begin() + (rank + 1) * count);
  EXPECT_TRUE(is_reduction(own, size, rank * count, op, salt, sums)) << "reduce_scatter in place of " << count;
}

template <class T>
void check_device_movements(Communicator& comm, int64_t count, Stream& stream) {
  const int size = comm.size(), rank = comm.rank();
  const uint64_t salt = 23 + static_cast<uint64_t>(count);
  std::vector<T> gathered;
  for (int r = 0; r < size; ++r)
    for (const T& x : input<T>(r, count, salt)) gathered.push_back(x);

  DeviceArray<T> in(input<T>(rank, count, salt), stream), out(poison<T>(count * size), stream);
  comm.all_gather(in.view(), out.view(), stream).wait();
  EXPECT_TRUE(same_bits(out.get(stream), gathered)) << "all_gather of " << count;

  std::vector<T> with_own = poison<T>(count * size);
  const std::vector<T> own = input<T>(rank, count, salt);
  std::copy(own.begin(), own.end(), with_own.begin() + rank * count);
  out.set(with_own, stream);
  comm.all_gather(out.part(rank, count), out.view(), stream).wait();
  EXPECT_TRUE(same_bits(out.get(stream), gathered)) << "all_gather in place of " << count;

  DeviceArray<T> parts(input<T>(rank, count * size, salt), stream);
  out.set(poison<T>(count * size), stream);
  comm.all_to_all(parts.view(), out.view(), stream).wait();
  std::vector<T> expected;
  for (int r = 0; r < size; ++r)
    for (int64_t i = 0; i < count; ++i) expected.push_back(element<T>(r, rank * count + i, salt));
  EXPECT_TRUE(same_bits(out.get(stream), expected)) << "all_to_all of " << count;

  for (int root = 0; root < size; ++root) {
    DeviceArray<T> inout(rank == root ? input<T>(root, count, salt) : poison<T>(count), stream);
    comm.broadcast(inout.view(), root, stream).wait();
    EXPECT_TRUE(same_bits(inout.get(stream), input<T>(root, count, salt))) << "broadcast from " << root;
  }
}

// One all_to_all_v from start to check, as UnevenExchange.
template <class T>
class DeviceUnevenExchange {
 public:
  DeviceUnevenExchange(Communicator& comm, const std::vector<std::vector<int64_t>>& counts, uint64_t salt,
                       Stream& stream)
      : comm_(comm),
        send_(counts[static_cast<size_t>(comm.rank())]),
        receive_(received(counts, comm.rank())),
        in_(input<T>(comm.rank(), sum(send_), salt), stream),
        out_(poison<T>(sum(receive_)), stream) {
    for (size_t s = 0; s < counts.size(); ++s) {
      int64_t begin = 0;
      for (int d = 0; d < comm.rank(); ++d) begin += counts[s][static_cast<size_t>(d)];
      for (int64_t i = 0; i < receive_[s]; ++i) expected_.push_back(element<T>(static_cast<int>(s), begin + i, salt));
    }
  }
  Request start(Stream& stream) { return comm_.all_to_all_v(in_.view(), send_, out_.view(), receive_, stream); }
  bool arrived(Stream& stream) const { return same_bits(out_.get(stream), expected_); }
  int64_t bytes_to_others() const {
    return (sum(send_) - send_[static_cast<size_t>(comm_.rank())]) * static_cast<int64_t>(sizeof(T));
  }

 private:
  static int64_t sum(const std::vector<int64_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  }
  static std::vector<int64_t> received(const std::vector<std::vector<int64_t>>& counts, int rank) {
    std::vector<int64_t> column;
    for (const auto& row : counts) column.push_back(row[static_cast<size_t>(rank)]);
    return column;
  }

  Communicator& comm_;
  std::vector<int64_t> send_, receive_;
  DeviceArray<T> in_, out_;
  std::vector<T> expected_;
};

template <class T>
void check_device_dtype(Communicator& comm, const std::vector<int64_t>& counts, Sums sums, Stream& stream) {
  for (int64_t count : counts) {
    SCOPED_TRACE(name_of(dtype_of<T>::value));
    for (ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min})
      check_device_reductions<T>(comm, count, op, sums, stream);
    check_device_movements<T>(comm, count, stream);
    comm.take_bytes_sent();
    for (int kind = 0; kind < (count < 1000 ? 4 : 1); ++kind) {
      DeviceUnevenExchange<T> exchange(comm, uneven_counts(comm.size(), count, kind), 31 + static_cast<uint64_t>(kind),
                                       stream);
      exchange.start(stream).wait();
      EXPECT_TRUE(exchange.arrived(stream)) << "all_to_all_v of up to " << count << ", kind " << kind;
      EXPECT_EQ(comm.take_bytes_sent(), exchange.bytes_to_others());
    }
  }
}

inline void check_device_all_dtypes(Communicator& comm, const std::vector<int64_t>& counts, Sums sums, Stream& stream) {
  check_device_dtype<float>(comm, counts, sums, stream);
  check_device_dtype<double>(comm, counts, sums, stream);
  check_device_dtype<bf16>(comm, counts, sums, stream);
  check_device_dtype<int32_t>(comm, counts, sums, stream);
}

// Around the ring; receives are posted long before their sends, in another order, with a collective and the host's own message
// between them. On one queue this would be a deadlock.
inline void check_device_point_to_point(Communicator& comm, Sums sums, Stream& stream) {
  const int size = comm.size(), rank = comm.rank();
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  std::vector<DeviceArray<float>> sent, received;
  for (uint64_t m = 0; m < 4; ++m) {
    sent.emplace_back(input<float>(rank, 37 + static_cast<int64_t>(1000 * m), m), stream);
    received.emplace_back(poison<float>(37 + static_cast<int64_t>(1000 * m)), stream);
  }
  DeviceArray<float> total(input<float>(rank, 37, 9), stream), nothing({}, stream);
  std::vector<float> host_sent = input<float>(rank, 5, 77), host_received = poison<float>(5);
  for (int round = 0; round < 2; ++round) {  // the second on channels that exist
    std::vector<Request> requests;
    for (const int m : {3, 1, 0}) {
      const auto index = static_cast<size_t>(m);
      received[index].set(poison<float>(received[index].count()), stream);
      requests.push_back(comm.recv(received[index].view(), previous, m == 3 ? 4 : 5 + m, stream));
    }
    requests.push_back(comm.recv(view_of(host_received), previous, 8, stream));
    requests.push_back(comm.recv(nothing.view(), previous, 0, stream));
    total.set(input<float>(rank, 37, 9), stream);
    requests.push_back(comm.all_reduce(total.view(), ReduceOp::sum, stream));
    requests.push_back(comm.send(view_of(host_sent), next, 8, stream));
    requests.push_back(comm.send(sent[0].view(), next, 5, stream));
    requests.push_back(comm.send(sent[1].view(), next, 6, stream));
    requests.push_back(comm.send(sent[2].view(), next, 5, stream));  // the second message of tag 5
    received[2].set(poison<float>(received[2].count()), stream);
    requests.push_back(comm.recv(received[2].view(), previous, 5, stream));
    requests.push_back(comm.send(nothing.view(), next, 0, stream));
    requests.push_back(comm.send(sent[3].view(), next, 4, stream));
    const bool forwards = rank % 2 == round;
    for (size_t k = 0; k < requests.size(); ++k) requests[forwards ? k : requests.size() - 1 - k].wait();
    for (uint64_t m = 0; m < 4; ++m)
      EXPECT_TRUE(same_bits(received[m].get(stream), input<float>(previous, 37 + static_cast<int64_t>(1000 * m), m)))
          << "message " << m << ", round " << round;
    EXPECT_TRUE(same_bits(host_received, input<float>(previous, 5, 77)));
    EXPECT_TRUE(is_reduction(total.get(stream), size, 0, ReduceOp::sum, 9, sums));
  }
}

// Issued in one order everywhere, waited for in another on every second rank, across two groups and two streams; the host's
// views between them.
inline void check_device_many_in_flight(Communicator& comm, Stream& stream) {
  const int size = comm.size(), rank = comm.rank();
  const std::unique_ptr<Communicator> other = comm.split(0, -rank);
  ASSERT_EQ(other->rank(), size - 1 - rank);
  Stream second(stream.device());
  constexpr int num_operations = 12;
  std::vector<DeviceArray<float>> buffers;
  std::vector<float> on_host = input<float>(rank, 201, 500);
  std::vector<Request> requests;
  for (int k = 0; k < num_operations; ++k) {
    Stream& own = k % 4 < 2 ? stream : second;
    buffers.emplace_back(input<float>(rank, k % 3 == 0 ? 4001 : 101 + k, static_cast<uint64_t>(k)), own);
    if (k == 5) requests.push_back(comm.all_reduce(view_of(on_host), ReduceOp::max, own));
    requests.push_back((k % 2 == 0 ? comm : *other).all_reduce(buffers.back().view(), ReduceOp::max, own));
  }
  for (size_t k = 0; k < requests.size(); ++k) requests[rank % 2 == 0 ? k : requests.size() - 1 - k].wait();
  for (int k = 0; k < num_operations; ++k)
    EXPECT_TRUE(is_reduction(buffers[static_cast<size_t>(k)].get(k % 4 < 2 ? stream : second), size, 0, ReduceOp::max,
                             static_cast<uint64_t>(k), Sums::exact))
        << "operation " << k;
  EXPECT_TRUE(is_reduction(on_host, size, 0, ReduceOp::max, 500, Sums::exact));
}

// Requests that move, that are overwritten while pending, that are polled, and that die without a wait.
inline void check_device_moved_requests(Communicator& comm, Stream& stream) {
  const int size = comm.size(), rank = comm.rank();
  std::vector<DeviceArray<double>> buffers;
  for (uint64_t k = 0; k < 5; ++k) buffers.emplace_back(input<double>(rank, 4003, k), stream);
  {
    Request first = comm.all_reduce(buffers[0].view(), ReduceOp::max, stream);
    Request moved = std::move(first);
    EXPECT_TRUE(first.test());  // NOLINT: a moved-from request is done
    first = comm.all_reduce(buffers[1].view(), ReduceOp::max, stream);
    moved.wait();
    moved.wait();
    moved = comm.all_reduce(buffers[2].view(), ReduceOp::max, stream);
    first = std::move(moved);  // waits for [1], takes over [2]
    Request polled = comm.all_reduce(buffers[3].view(), ReduceOp::max, stream);
    while (!polled.test()) {
    }
    EXPECT_TRUE(polled.test());
    const Request dropped = comm.all_reduce(buffers[4].view(), ReduceOp::max, stream);
  }
  for (uint64_t k = 0; k < 5; ++k)
    EXPECT_TRUE(is_reduction(buffers[k].get(stream), size, 0, ReduceOp::max, k, Sums::exact)) << k;
}

inline void check_device_split(Communicator& comm, Stream& stream) {
  const int size = comm.size(), rank = comm.rank();
  const std::unique_ptr<Communicator> half = comm.split(-(rank % 2), -rank);
  const int members = (size + 1 - rank % 2) / 2;
  ASSERT_EQ(half->size(), members);
  ASSERT_EQ(half->rank(), members - 1 - rank / 2);
  DeviceArray<int32_t> sum({rank}, stream);
  half->all_reduce(sum.view(), ReduceOp::sum, stream).wait();
  int32_t expected = 0;
  for (int r = rank % 2; r < size; r += 2) expected += r;
  EXPECT_EQ(sum.get(stream)[0], expected);
  half->barrier();
  const std::unique_ptr<Communicator> alone = half->split(half->rank(), 0);
  DeviceArray<int32_t> own({3}, stream);
  alone->all_reduce(own.view(), ReduceOp::sum, stream).wait();
  EXPECT_EQ(own.get(stream)[0], 3);
}

inline void check_device_bytes_sent(Communicator& comm, Stream& stream) {
  const int64_t others = comm.size() - 1;
  DeviceArray<float> small(input<float>(comm.rank(), 7, 1), stream);
  DeviceArray<float> parts(input<float>(comm.rank(), comm.size() * 1000, 2), stream);
  comm.take_bytes_sent();
  comm.all_reduce(small.view(), ReduceOp::sum, stream).wait();
  EXPECT_EQ(comm.take_bytes_sent(), others * 28);
  comm.reduce_scatter(parts.view(), parts.part(comm.rank(), 1000), ReduceOp::sum, stream).wait();
  EXPECT_EQ(comm.take_bytes_sent(), others * 4000);
  comm.all_gather(parts.part(comm.rank(), 1000), parts.view(), stream).wait();
  EXPECT_EQ(comm.take_bytes_sent(), others * 4000);
  DeviceArray<float> received(poison<float>(7), stream);
  Request send = comm.send(small.view(), (comm.rank() + 1) % comm.size(), 1, stream);
  comm.recv(received.view(), (comm.rank() + comm.size() - 1) % comm.size(), 1, stream).wait();
  send.wait();
  EXPECT_EQ(comm.take_bytes_sent(), comm.size() > 1 ? 28 : 0);
}

}  // namespace lamina::comm::testing
