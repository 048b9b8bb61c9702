#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/here.h"
#include "core/device/buffer.h"
#include "core/device/cuda_device.h"
#include "launch/doctor.h"

namespace lamina::doctor {
namespace {

double wall_clock() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// How far this rank's clock is ahead of rank 0's: of several questions the one that was answered soonest, whose error is half of
// the time it took. On rank 0 the answers are given.
double clock_skew(comm::Communicator& comm, int rank) {
  constexpr int questions = 8;
  Stream stream;
  double question = 0, answer = 0, skew = 0, shortest = 1e9;
  const TensorView asked(&question, DType::f64, {1}), told(&answer, DType::f64, {1});
  for (int i = 0; i < questions; ++i) {
    if (comm.rank() == 0) {
      comm.recv(asked, rank, 0, stream).wait();
      answer = wall_clock();
      comm.send(told, rank, 0, stream).wait();
    } else {
      const double before = wall_clock();
      comm.send(asked, 0, 0, stream).wait();
      comm.recv(told, 0, 0, stream).wait();
      const double took = wall_clock() - before;
      if (took < shortest) {
        shortest = took;
        skew = before + took / 2 - answer;
      }
    }
  }
  return skew;
}

// There and back between this rank and `peer`, which calls the same: seconds for one way.
double one_way_seconds(comm::Communicator& comm, int peer, const TensorView& view, int rounds, Stream& stream) {
  const bool begins = comm.rank() < peer;
  const auto play = [&] {
    if (begins) {
      comm.send(view, peer, 1, stream).wait();
      comm.recv(view, peer, 2, stream).wait();
    } else {
      comm.recv(view, peer, 1, stream).wait();
      comm.send(view, peer, 2, stream).wait();
    }
    stream.synchronize();
  };
  play();  // connects
  const auto start = Clock::now();
  for (int i = 0; i < rounds; ++i) play();
  return seconds_since(start) / (2.0 * rounds);
}

// Neighbours in pairs: first (0, 1), (2, 3), ..., then (1, 2), (3, 4), ...
void measure_pairs(Report& report, World& world, comm::Communicator& comm, Device device, const char* what) {
  constexpr int64_t large = int64_t{4} << 20, small = 8;
  Stream stream(device);
  const Buffer memory(large, device, nullptr, "measurement");
  std::string own;
  for (int first : {0, 1}) {
    const int offset = world.rank - first;
    const int peer = offset < 0 ? -1 : offset % 2 == 0 ? world.rank + 1 : world.rank - 1;
    if (peer >= 0 && peer < world.size) {
      const auto view = [&](int64_t bytes) { return TensorView(memory.data(), DType::i32, {bytes / 4}, device); };
      const double latency = one_way_seconds(comm, peer, view(small), 100, stream);
      const double seconds = one_way_seconds(comm, peer, view(large), 10, stream);
      if (world.rank < peer)
        own = fmt::format("ranks {} and {}: {:.1f} us, {:.2f} GB/s", world.rank, peer, latency * 1e6,
                          1e-9 * static_cast<double>(large) / seconds);
    }
    world.comm.barrier();
  }
  for (const std::string& line : gather_texts(world.comm, own))
    if (!line.empty()) report.ok(fmt::format("{} messages", what), line);
}

void measure_all_reduce(Report& report, World& world, comm::Communicator& comm, Device device, const char* what) {
  constexpr int64_t bytes = int64_t{16} << 20;
  constexpr int rounds = 5;
  Stream stream(device);
  const Buffer memory(bytes, device, nullptr, "measurement");
  const TensorView view(memory.data(), DType::f32, {bytes / 4}, device);
  const auto reduce = [&] {
    comm.all_reduce(view, comm::ReduceOp::sum, stream).wait();
    stream.synchronize();
  };
  reduce();
  world.comm.barrier();
  const auto start = Clock::now();
  for (int i = 0; i < rounds; ++i) reduce();
  const double seconds = seconds_since(start) / rounds;
  report.ok(fmt::format("{} all_reduce", what),
            fmt::format("16 MiB over {} ranks: {:.2f} GB/s", world.size, 1e-9 * static_cast<double>(bytes) / seconds));
}

}  // namespace

// "0-3,8": the cores this process may use.
std::string cores_text() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return "any";
  std::string text;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &set)) continue;
    int last = core;
    while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, &set)) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", core);
    if (last > core) text += fmt::format("-{}", last);
    core = last;
  }
  return text;
}

std::vector<std::string> gather_texts(comm::Communicator& comm, const std::string& text) {
  Stream stream;
  auto longest = static_cast<int32_t>(text.size());
  comm.all_reduce(TensorView(&longest, DType::i32, {1}), comm::ReduceOp::max, stream).wait();
  const int64_t words = longest / 4 + 1;  // at least one byte of padding, which ends the text
  std::vector<int32_t> own(static_cast<size_t>(words)), all(static_cast<size_t>(words * comm.size()));
  std::memcpy(own.data(), text.data(), text.size());
  comm.all_gather(TensorView(own.data(), DType::i32, {words}),
                  TensorView(all.data(), DType::i32, {words * comm.size()}), stream)
      .wait();
  std::vector<std::string> texts;
  for (int r = 0; r < comm.size(); ++r)
    texts.emplace_back(reinterpret_cast<const char*>(all.data() + static_cast<int64_t>(r) * words));
  return texts;
}

void report_ranks(Report& report, World& world, comm::Communicator* gpus, Device device) {
  std::string own = fmt::format("on {}, cores {}, {} thread{}", host_name(), cores_text(), world.num_threads,
                                world.num_threads == 1 ? "" : "s");
  if (gpus != nullptr) own += fmt::format(", GPU {} at {}", device.index, cuda::device_info(device.index).bus_id);
  const std::vector<std::string> all = gather_texts(world.comm, own);
  for (int r = 0; r < world.size; ++r) report.ok(fmt::format("rank {}", r), all[static_cast<size_t>(r)]);
  double largest = 0;
  for (int r = 1; r < world.size; ++r)
    if (world.rank == 0 || world.rank == r) largest = std::max(largest, std::abs(clock_skew(world.comm, r)));
  Stream stream;
  world.comm.all_reduce(TensorView(&largest, DType::f64, {1}), comm::ReduceOp::max, stream).wait();
  if (world.size == 1) return;
  const std::string text = fmt::format("at most {:.3f} ms apart", largest * 1e3);
  if (largest > 1) {
    report.note("clocks", text, "synchronise the machines' clocks (chrony, ntp): logs are hard to compare");
  } else {
    report.ok("clocks", text);
  }
}

void measure_ranks(Report& report, World& world, comm::Communicator& comm, Device device) {
  const char* what = device.kind == DeviceKind::cuda ? "GPU" : "host";
  measure_pairs(report, world, comm, device, what);
  measure_all_reduce(report, world, comm, device, what);
}

}  // namespace lamina::doctor
