// What every transport must do, to the bit: the same cases run over threads and over MPI. Expected values come from plain
// loops over the ranks in order, from inputs that are a function of (rank, element).
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/rng.h"
#include "parallel/comm/communicator.h"

namespace lamina::comm::testing {

template <class T>
T element(int rank, int64_t index, uint64_t salt) {
  const uint64_t bits = CounterRng(salt, static_cast<uint64_t>(rank)).bits(static_cast<uint64_t>(index));
  const auto mantissa = static_cast<int32_t>(bits >> 34) - (1 << 29);
  if constexpr (std::is_same_v<T, int32_t>) {
    return mantissa;
  } else {
    // Magnitudes far apart, so that another order of summation gives other bits.
    const double value = std::ldexp(static_cast<double>(mantissa), static_cast<int>(bits % 16) - 29);
    if constexpr (std::is_same_v<T, double>) return value * (1 + 0x1p-40);
    return T(static_cast<float>(value));
  }
}

template <class T>
std::vector<T> input(int rank, int64_t count, uint64_t salt) {
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(element<T>(rank, i, salt));
  return values;
}

// Bytes 0xff: NaN in every floating dtype, -1 as an integer.
template <class T>
std::vector<T> poison(int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  if (count > 0) std::memset(static_cast<void*>(values.data()), 0xff, static_cast<size_t>(count) * sizeof(T));
  return values;
}

template <class T>
T reduced(int size, int64_t index, ReduceOp op, uint64_t salt) {
  using Partial = std::conditional_t<std::is_same_v<T, int32_t>, int64_t, acc_t<T>>;
  Partial partial = static_cast<Partial>(element<T>(0, index, salt));
  for (int r = 1; r < size; ++r) {
    const Partial x = static_cast<Partial>(element<T>(r, index, salt));
    if (op == ReduceOp::sum) partial = partial + x;
    if (op == ReduceOp::max) partial = std::max(partial, x);
    if (op == ReduceOp::min) partial = std::min(partial, x);
  }
  return static_cast<T>(partial);
}

template <class T>
TensorView view_of(std::vector<T>& values) {
  return {values.data(), dtype_of<T>::value, {static_cast<int64_t>(values.size())}};
}
template <class T>
TensorView part_of(std::vector<T>& values, int64_t part, int64_t count) {
  return {values.data() + part * count, dtype_of<T>::value, {count}};
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
void check_reductions(Communicator& comm, int64_t count, ReduceOp op) {
  Stream stream;
  const int size = comm.size(), rank = comm.rank();
  const uint64_t salt = 11 + static_cast<uint64_t>(count);

  std::vector<T> expected;
  for (int64_t i = 0; i < count; ++i) expected.push_back(reduced<T>(size, i, op, salt));
  std::vector<T> inout = input<T>(rank, count, salt);
  comm.all_reduce(view_of(inout), op, stream).wait();
  EXPECT_TRUE(same_bits(inout, expected)) << "all_reduce of " << count;

  expected.clear();
  for (int64_t i = 0; i < count; ++i) expected.push_back(reduced<T>(size, rank * count + i, op, salt));
  std::vector<T> in = input<T>(rank, count * size, salt);
  const std::vector<T> untouched = in;
  std::vector<T> out = poison<T>(count);
  comm.reduce_scatter(view_of(in), view_of(out), op, stream).wait();
  EXPECT_TRUE(same_bits(out, expected)) << "reduce_scatter of " << count;
  EXPECT_TRUE(same_bits(in, untouched)) << "reduce_scatter writes its input";

  comm.reduce_scatter(view_of(in), part_of(in, rank, count), op, stream).wait();
  out.assign(in.begin() + rank * count, in.begin() + (rank + 1) * count);
  EXPECT_TRUE(same_bits(out, expected)) << "reduce_scatter in place of " << count;
}

template <class T>
void check_movements(Communicator& comm, int64_t count) {
  Stream stream;
  const int size = comm.size(), rank = comm.rank();
  const uint64_t salt = 23 + static_cast<uint64_t>(count);
  std::vector<T> gathered;
  for (int r = 0; r < size; ++r)
    for (const T& x : input<T>(r, count, salt)) gathered.push_back(x);

  std::vector<T> in = input<T>(rank, count, salt);
  std::vector<T> out = poison<T>(count * size);
  comm.all_gather(view_of(in), view_of(out), stream).wait();
  EXPECT_TRUE(same_bits(out, gathered)) << "all_gather of " << count;

  out = poison<T>(count * size);
  std::copy(in.begin(), in.end(), out.begin() + rank * count);
  comm.all_gather(part_of(out, rank, count), view_of(out), stream).wait();
  EXPECT_TRUE(same_bits(out, gathered)) << "all_gather in place of " << count;

  in = input<T>(rank, count * size, salt);
  out = poison<T>(count * size);
  comm.all_to_all(view_of(in), view_of(out), stream).wait();
  std::vector<T> expected;
  for (int r = 0; r < size; ++r)
    for (int64_t i = 0; i < count; ++i) expected.push_back(element<T>(r, rank * count + i, salt));
  EXPECT_TRUE(same_bits(out, expected)) << "all_to_all of " << count;

  for (int root = 0; root < size; ++root) {
    std::vector<T> inout = rank == root ? input<T>(root, count, salt) : poison<T>(count);
    comm.broadcast(view_of(inout), root, stream).wait();
    EXPECT_TRUE(same_bits(inout, input<T>(root, count, salt))) << "broadcast of " << count << " from " << root;
  }
}

// counts[source][destination], the same on every rank: at random with many zeros, then everything from rank 0, then nothing
// to rank 0, then nothing at all.
inline std::vector<std::vector<int64_t>> uneven_counts(int size, int64_t largest, int kind) {
  std::vector<std::vector<int64_t>> counts(static_cast<size_t>(size),
                                           std::vector<int64_t>(static_cast<size_t>(size), 0));
  for (int s = 0; s < size; ++s) {
    for (int d = 0; d < size; ++d) {
      const CounterRng rng(static_cast<uint64_t>(largest), static_cast<uint64_t>(s * size + d));
      const bool none = rng.below(0, 3) == 0 || kind == 3 || (kind == 1 && s != 0) || (kind == 2 && d == 0);
      auto& count = counts[static_cast<size_t>(s)][static_cast<size_t>(d)];
      if (!none) count = static_cast<int64_t>(rng.below(1, static_cast<uint64_t>(largest) + 1));
    }
  }
  return counts;
}

// One all_to_all_v from start to check: element (source, begin of the part + i) arrives.
template <class T>
class UnevenExchange {
 public:
  UnevenExchange(Communicator& comm, std::vector<std::vector<int64_t>> counts, uint64_t salt)
      : comm_(comm), counts_(std::move(counts)), salt_(salt) {
    const auto own = static_cast<size_t>(comm.rank());
    send_ = counts_[own];
    for (const auto& row : counts_) receive_.push_back(row[own]);
    in_ = input<T>(comm.rank(), sum(send_), salt);
    out_ = poison<T>(sum(receive_));
  }
  Request start(Stream& stream) { return comm_.all_to_all_v(view_of(in_), send_, view_of(out_), receive_, stream); }
  bool arrived() const {
    std::vector<T> expected;
    for (size_t s = 0; s < counts_.size(); ++s) {
      int64_t begin = 0;
      for (int d = 0; d < comm_.rank(); ++d) begin += counts_[s][static_cast<size_t>(d)];
      for (int64_t i = 0; i < receive_[s]; ++i) expected.push_back(element<T>(static_cast<int>(s), begin + i, salt_));
    }
    return same_bits(out_, expected) && same_bits(in_, input<T>(comm_.rank(), sum(send_), salt_));
  }
  int64_t bytes_to_others() const {
    return (sum(send_) - send_[static_cast<size_t>(comm_.rank())]) * static_cast<int64_t>(sizeof(T));
  }

 private:
  static int64_t sum(const std::vector<int64_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  }

  Communicator& comm_;
  std::vector<std::vector<int64_t>> counts_;
  uint64_t salt_;
  std::vector<int64_t> send_, receive_;
  std::vector<T> in_, out_;
};

template <class T>
void check_uneven(Communicator& comm, int64_t largest) {
  Stream stream;
  comm.take_bytes_sent();
  const int num_kinds = largest < 1000 ? 4 : 1;  // the seldom ones don't depend on the size
  for (int kind = 0; kind < num_kinds; ++kind) {
    UnevenExchange<T> exchange(comm, uneven_counts(comm.size(), largest, kind), 31 + static_cast<uint64_t>(kind));
    exchange.start(stream).wait();
    EXPECT_TRUE(exchange.arrived()) << "all_to_all_v of up to " << largest << ", kind " << kind;
    EXPECT_EQ(comm.take_bytes_sent(), exchange.bytes_to_others());
  }
}

// Several at once, between other collectives, on two groups, waited for in different orders; one request moves.
inline void check_uneven_in_flight(Communicator& comm) {
  Stream stream;
  const int size = comm.size(), rank = comm.rank();
  const std::unique_ptr<Communicator> other = comm.split(0, -rank);
  std::vector<float> sum = input<float>(rank, 40001, 5);
  UnevenExchange<float> a(comm, uneven_counts(size, 9001, 0), 1);
  UnevenExchange<bf16> b(*other, uneven_counts(size, 17, 0), 2);
  UnevenExchange<double> c(comm, uneven_counts(size, 301, 1), 3);
  std::vector<Request> requests(4);
  Request first = a.start(stream);
  requests[1] = comm.all_reduce(view_of(sum), ReduceOp::sum, stream);
  requests[2] = b.start(stream);
  requests[3] = c.start(stream);
  requests[0] = std::move(first);
  EXPECT_TRUE(first.test());  // NOLINT: a moved-from request is done
  for (size_t k = 0; k < 4; ++k) requests[rank % 2 == 0 ? k : 3 - k].wait();
  EXPECT_TRUE(a.arrived());
  EXPECT_TRUE(b.arrived());
  EXPECT_TRUE(c.arrived());
  for (size_t i = 0; i < sum.size(); i += 101)
    ASSERT_EQ(sum[i], reduced<float>(size, static_cast<int64_t>(i), ReduceOp::sum, 5));
}

template <class T>
void check_dtype(Communicator& comm, const std::vector<int64_t>& counts) {
  for (int64_t count : counts) {
    SCOPED_TRACE(name_of(dtype_of<T>::value));
    for (ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) check_reductions<T>(comm, count, op);
    check_movements<T>(comm, count);
    check_uneven<T>(comm, count);
  }
}

inline void check_all_dtypes(Communicator& comm, const std::vector<int64_t>& counts) {
  check_dtype<float>(comm, counts);
  check_dtype<double>(comm, counts);
  check_dtype<bf16>(comm, counts);
  check_dtype<int32_t>(comm, counts);
}

// Each rank sends to its successor around the ring; tags are taken in another order than they were sent.
inline void check_point_to_point(Communicator& comm) {
  Stream stream;
  const int size = comm.size(), rank = comm.rank();
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  std::vector<std::vector<float>> sent, received;
  for (uint64_t m = 0; m < 4; ++m) {
    sent.push_back(input<float>(rank, 37, m));
    received.push_back(poison<float>(37));
  }
  // Tags 5, 6, 5, and an operation of the group in between, whose own tags must not meet these.
  std::vector<Request> requests;
  requests.push_back(comm.send(view_of(sent[0]), next, 5, stream));
  requests.push_back(comm.send(view_of(sent[1]), next, 6, stream));
  std::vector<float> sum = input<float>(rank, 37, 9);
  requests.push_back(comm.all_reduce(view_of(sum), ReduceOp::sum, stream));
  requests.push_back(comm.send(view_of(sent[2]), next, 5, stream));
  requests.push_back(comm.recv(view_of(received[1]), previous, 6, stream));
  requests.push_back(comm.recv(view_of(received[0]), previous, 5, stream));
  requests.push_back(comm.recv(view_of(received[2]), previous, 5, stream));
  std::vector<float> nothing;
  requests.push_back(comm.send(view_of(nothing), next, 0, stream));
  requests.push_back(comm.recv(view_of(nothing), previous, 0, stream));
  for (Request& request : requests) request.wait();
  for (uint64_t m = 0; m < 3; ++m)
    EXPECT_TRUE(same_bits(received[m], input<float>(previous, 37, m))) << "message " << m;
  for (int64_t i = 0; i < 37; ++i) EXPECT_EQ(sum[static_cast<size_t>(i)], reduced<float>(size, i, ReduceOp::sum, 9));
}

// Issued in one order everywhere, waited for in another on every second rank, across two groups. Large and small, so that
// operations of several phases need each other's progress.
inline void check_many_in_flight(Communicator& comm) {
  Stream stream;
  const int size = comm.size(), rank = comm.rank();
  const std::unique_ptr<Communicator> other = comm.split(0, -rank);  // the same ranks, in reverse
  ASSERT_EQ(other->rank(), size - 1 - rank);
  constexpr int num_operations = 12;
  std::vector<std::vector<float>> buffers;
  for (int k = 0; k < num_operations; ++k)
    buffers.push_back(input<float>(rank, k % 3 == 0 ? 40001 : 101 + k, static_cast<uint64_t>(k)));
  std::vector<Request> requests;
  for (int k = 0; k < num_operations; ++k) {
    auto& buffer = buffers[static_cast<size_t>(k)];
    // Maxima: they don't depend on the order, which differs between the groups.
    requests.push_back((k % 2 == 0 ? comm : *other).all_reduce(view_of(buffer), ReduceOp::max, stream));
  }
  for (int k = 0; k < num_operations; ++k)
    requests[static_cast<size_t>(rank % 2 == 0 ? k : num_operations - 1 - k)].wait();
  for (int k = 0; k < num_operations; ++k) {
    const auto& buffer = buffers[static_cast<size_t>(k)];
    for (size_t i = 0; i < buffer.size(); i += 97)
      ASSERT_EQ(buffer[i], reduced<float>(size, static_cast<int64_t>(i), ReduceOp::max, static_cast<uint64_t>(k)));
  }
}

// Requests that move, that are overwritten while pending, and that die without a wait.
inline void check_moved_requests(Communicator& comm) {
  Stream stream;
  const int size = comm.size(), rank = comm.rank();
  std::vector<std::vector<double>> buffers;
  for (uint64_t k = 0; k < 4; ++k) buffers.push_back(input<double>(rank, 40003, k));
  {
    Request first = comm.all_reduce(view_of(buffers[0]), ReduceOp::sum, stream);
    Request moved = std::move(first);
    EXPECT_TRUE(first.test());  // NOLINT: a moved-from request is done
    first.wait();
    first = comm.all_reduce(view_of(buffers[1]), ReduceOp::sum, stream);
    moved.wait();
    moved.wait();  // a second wait is nothing
    moved = comm.all_reduce(view_of(buffers[2]), ReduceOp::sum, stream);
    first = std::move(moved);  // waits for [1], takes over [2]
    Request dropped = comm.all_reduce(view_of(buffers[3]), ReduceOp::sum, stream);
    while (!dropped.test()) {
    }
    EXPECT_TRUE(dropped.test());
  }
  for (uint64_t k = 0; k < 4; ++k)
    for (size_t i = 0; i < 40003; i += 1013)
      ASSERT_EQ(buffers[k][i], reduced<double>(size, static_cast<int64_t>(i), ReduceOp::sum, k)) << k;
}

inline void check_split(Communicator& comm) {
  Stream stream;
  const int size = comm.size(), rank = comm.rank();
  const std::unique_ptr<Communicator> half = comm.split(-(rank % 2), -rank);  // colors may be negative; reversed order
  const int members = (size + 1 - rank % 2) / 2;
  ASSERT_EQ(half->size(), members);
  ASSERT_EQ(half->rank(), members - 1 - rank / 2);
  float sum = static_cast<float>(rank);
  half->all_reduce({&sum, DType::f32, {1}}, ReduceOp::sum, stream).wait();
  float expected = 0;
  for (int r = rank % 2; r < size; r += 2) expected += static_cast<float>(r);
  EXPECT_EQ(sum, expected);
  half->barrier();
  const std::unique_ptr<Communicator> alone = half->split(half->rank(), 0);  // a group of a group
  EXPECT_EQ(alone->size(), 1);
  alone->barrier();
  float own = 3;
  alone->all_reduce({&own, DType::f32, {1}}, ReduceOp::sum, stream).wait();
  EXPECT_EQ(own, 3.0f);
}

inline void check_bytes_sent(Communicator& comm) {
  Stream stream;
  const int64_t others = comm.size() - 1;
  comm.take_bytes_sent();
  comm.barrier();
  EXPECT_EQ(comm.take_bytes_sent(), 0);
  std::vector<float> small(7), parts(static_cast<size_t>(comm.size()) * 1000);
  comm.all_reduce(view_of(small), ReduceOp::sum, stream).wait();
  EXPECT_EQ(comm.take_bytes_sent(), others * 28);
  comm.reduce_scatter(view_of(parts), part_of(parts, comm.rank(), 1000), ReduceOp::sum, stream).wait();
  EXPECT_EQ(comm.take_bytes_sent(), others * 4000);
  comm.all_gather(part_of(parts, comm.rank(), 1000), view_of(parts), stream).wait();
  EXPECT_EQ(comm.take_bytes_sent(), others * 4000);
  Request send = comm.send(view_of(small), (comm.rank() + 1) % comm.size(), 1, stream);
  std::vector<float> received(7);
  comm.recv(view_of(received), (comm.rank() + comm.size() - 1) % comm.size(), 1, stream).wait();
  send.wait();
  EXPECT_EQ(comm.take_bytes_sent(), comm.size() > 1 ? 28 : 0);  // a message to oneself is not sent
}

// A rank that waits leaves its core to others: it sleeps, which the kernel counts. What a wait costs in seconds says more about the machine
// than about the wait. At least so many sleeps in a fifth of a second: one where the message wakes the waiter, more where it looks again.
inline void check_waits_asleep(Communicator& comm, int64_t sleeps) {
  Stream stream;
  std::vector<float> message(7);
  const auto times_asleep = [] {
    rusage usage{};
    EXPECT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
    return usage.ru_nvcsw;
  };
  comm.barrier();
  if (comm.rank() == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    for (int other = 1; other < comm.size(); ++other) comm.send(view_of(message), other, 1, stream).wait();
    return;
  }
  const int64_t before = times_asleep();
  comm.recv(view_of(message), 0, 1, stream).wait();
  EXPECT_GE(times_asleep() - before, sleeps);
}

// Both phases, all algorithms.
inline std::vector<int64_t> small_counts() {
  return {0, 1, 3, 17, 129};
}
inline std::vector<int64_t> large_counts() {
  return {16411, 40001};
}

}  // namespace lamina::comm::testing
