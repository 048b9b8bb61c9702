#include "block.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <utility>

#include "device.h"
#include "errors.h"
#include "memory.h"
#include "settings.h"
#include "stream.h"

__thread uint3 threadIdx;
__thread uint3 blockIdx;
__thread dim3 blockDim;
__thread dim3 gridDim;

namespace lamina_emulator {
namespace {

constexpr size_t shared_guard = 1024;
constexpr unsigned char shared_poison = 0xff, shared_guard_pattern = 0xa5;

thread_local BlockRunner* runner_of_thread = nullptr;

std::string text_of(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

bool same(Where a, Where b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

}  // namespace

Chance::Chance(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u) {
  for (int i = 0; i < 4; ++i) below(2);
}

uint32_t Chance::below(uint32_t limit) {  // splitmix64
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>(((z >> 32) * limit) >> 32);
}

std::string text_of(Where where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

BlockRunner* current_runner() {
  return runner_of_thread;
}

BlockRunner::BlockRunner() : shared_(std::aligned_alloc(1024, max_shared_per_block + shared_guard)) {}

void BlockRunner::prepare(const Launch& launch) {
  launch_ = &launch;
  failure_.clear();
  shared_variables_ = shared_variables(launch.kernel);
  num_threads_ = launch.block.x * launch.block.y * launch.block.z;
  if (threads_.size() < num_threads_) {
    threads_.resize(num_threads_);
    copies_.resize(num_threads_);
  }
  warps_.resize(std::max<size_t>(warps_.size(), (num_threads_ + 31) / 32));
  unsigned i = 0;
  for (unsigned z = 0; z < launch.block.z; ++z)
    for (unsigned y = 0; y < launch.block.y; ++y)
      for (unsigned x = 0; x < launch.block.x; ++x) threads_[i++].index = {x, y, z};
}

std::string BlockRunner::run(const Launch& launch, uint64_t seed) {
  BlockRunner* const outer = std::exchange(runner_of_thread, this);
  chance_ = Chance(seed);
  prepare(launch);
  blockDim = launch.block;
  gridDim = launch.grid;
  // Blocks in an order without meaning: a stride that meets each once.
  const uint64_t num_blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  uint64_t stride = 1 + chance_.below(static_cast<uint32_t>(std::min<uint64_t>(num_blocks, 0xffffffffu)));
  while (std::gcd(stride, num_blocks) != 1) ++stride;
  uint64_t at = chance_.below(static_cast<uint32_t>(std::min<uint64_t>(num_blocks, 0xffffffffu)));
  for (uint64_t i = 0; i < num_blocks && failure_.empty(); ++i, at = (at + stride) % num_blocks) {
    block_index_ = {static_cast<unsigned>(at % launch.grid.x),
                    static_cast<unsigned>(at / launch.grid.x % launch.grid.y),
                    static_cast<unsigned>(at / launch.grid.x / launch.grid.y)};
    run_block(launch);
  }
  runner_of_thread = outer;
  return failure_;
}

void BlockRunner::run_block(const Launch& launch) {
  auto* const shared = static_cast<unsigned char*>(shared_.get());
  std::memset(shared, shared_poison, launch.shared_bytes);
  std::memset(shared + launch.shared_bytes, shared_guard_pattern, shared_guard);
  for (const SharedVariable& variable : shared_variables_)
    std::memset(variable.data, shared_poison, variable.num_bytes);
  for (unsigned i = 0; i < num_threads_; ++i) {
    threads_[i].done = false;
    threads_[i].waits_in = nullptr;
    ready_[i] = static_cast<uint16_t>(i);
    copies_[i].pending.clear();
    copies_[i].num_groups = 0;
  }
  num_ready_ = num_live_ = num_threads_;
  num_barriers_ = 0;
  for (unsigned w = 0; w * 32 < num_threads_; ++w) {
    const unsigned lanes = std::min(32u, num_threads_ - w * 32);
    warps_[w].live = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
    warps_[w].num_meetings = 0;
  }
  barrier_.arrived = 0;
  barrier_.waiting.clear();
  blockIdx = block_index_;
  while (num_ready_ > 0) {
    const unsigned pick = chance_.below(num_ready_);
    running_ = ready_[pick];
    ready_[pick] = ready_[--num_ready_];
    Thread& thread = threads_[running_];
    if (thread.fiber == nullptr) start(running_);
    thread.waits_in = nullptr;
    threadIdx = thread.index;
    thread.fiber->resume();
    if (thread.done) {
      idle_.push_back(thread.fiber);
      thread.fiber = nullptr;
    }
    if (!failure_.empty()) break;
  }
  if (failure_.empty() && num_live_ > 0) failure_ = stuck();
  if (failure_.empty()) {
    check_shared_guard(launch.shared_bytes);
  } else {
    abandon_block();
  }
}

void BlockRunner::abandon_block() {
  for (unsigned i = 0; i < num_threads_; ++i) {
    Thread& thread = threads_[i];
    if (thread.fiber == nullptr) continue;
    idle_.push_back(thread.fiber);
    thread.fiber = nullptr;
  }
}

void BlockRunner::check_shared_guard(size_t shared_bytes) {
  const auto* const end = static_cast<const unsigned char*>(shared_.get()) + shared_bytes;
  const auto* const written =
      std::find_if(end, end + shared_guard, [](unsigned char byte) { return byte != shared_guard_pattern; });
  if (written != end + shared_guard)
    failure_ = place() + ": something wrote behind the " + std::to_string(shared_bytes) +
               " bytes of dynamic shared memory, at offset " +
               std::to_string(written - static_cast<const unsigned char*>(shared_.get()));
}

void BlockRunner::start(unsigned thread) {
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>());
    idle_.push_back(fibers_.back().get());
  }
  threads_[thread].fiber = idle_.back();
  idle_.pop_back();
  threads_[thread].fiber->start(&BlockRunner::enter, this, thread * size_t{192});
}

void BlockRunner::enter(void* runner) {
  auto* const self = static_cast<BlockRunner*>(runner);
  self->launch_->body();
  self->finish();
}

void BlockRunner::finish() {
  Thread& thread = threads_[running_];
  thread.done = true;
  --num_live_;
  Warp& warp = warps_[running_ / 32];
  warp.live &= ~(1u << lane());
  for (unsigned m = warp.num_meetings; m-- > 0;) {
    const Meeting& meeting = warp.meetings[m];
    if (meeting.whole) {
      failure_ = who() + ": returned, but others of its warp are in " + meeting.name + ", which needs all 32 (" +
                 lamina_emulator::text_of(meeting.where) + ")";
    } else if ((meeting.mask & warp.live) == meeting.arrived) {
      complete(running_ / 32, m);
    }
  }
  if (num_live_ > 0 && barrier_.arrived == num_live_) release_barrier();
  thread.fiber->leave(true);
}

void BlockRunner::suspend(const char* name, unsigned mask, Where where) {
  Thread& thread = threads_[running_];
  thread.waits_in = name;
  thread.mask = mask;
  thread.where = where;
  thread.fiber->leave(false);
}

void BlockRunner::complete(unsigned warp_index, unsigned meeting_index) {
  Warp& warp = warps_[warp_index];
  Meeting& meeting = warp.meetings[meeting_index];
  meeting.combine(meeting.operands.data(), meeting.arrived);
  for (unsigned lanes = meeting.arrived; lanes != 0; lanes &= lanes - 1) {
    const unsigned thread = warp_index * 32 + static_cast<unsigned>(std::countr_zero(lanes));
    if (thread != running_) make_ready(thread);
  }
  if (--warp.num_meetings != meeting_index) meeting = warp.meetings[warp.num_meetings];
}

void BlockRunner::meet_in_warp(const char* name, unsigned mask, void* operand, Combine combine, Where where,
                               bool whole) {
  const unsigned self = lane(), index = running_ / 32;
  Warp& warp = warps_[index];
  if (((mask >> self) & 1) == 0) fail(std::string(name) + " by a thread that its mask does not name", where);
  if (whole && warp.live != 0xffffffffu)
    fail(std::string(name) + " needs all 32 threads of the warp, but some do not exist or have returned", where);
  unsigned m = 0;
  while (m < warp.num_meetings && warp.meetings[m].mask != mask) ++m;
  Meeting& meeting = warp.meetings[m];
  if (m == warp.num_meetings) {
    ++warp.num_meetings;
    meeting.name = name;
    meeting.mask = mask;
    meeting.arrived = 0;
    meeting.combine = combine;
    meeting.whole = whole;
    meeting.where = where;
  } else if (meeting.combine != combine || meeting.name != name || !same(meeting.where, where)) {
    fail(std::string(name) + ", but others of the warp that its mask names are in " + meeting.name + " at " +
             lamina_emulator::text_of(meeting.where),
         where);
  }
  meeting.operands[self] = operand;
  meeting.arrived |= 1u << self;
  if (meeting.arrived == (mask & warp.live)) {
    complete(index, m);
  } else {
    suspend(name, mask, where);
  }
}

void BlockRunner::release_barrier() {
  ++num_barriers_;
  barrier_.result = {barrier_.count == static_cast<int>(barrier_.arrived), barrier_.count > 0, barrier_.count};
  for (const uint16_t thread : barrier_.waiting) make_ready(thread);
  barrier_.waiting.clear();
  barrier_.arrived = 0;
}

Votes BlockRunner::meet_in_block(const char* name, int predicate, Where where) {
  if (barrier_.arrived == 0) {
    barrier_.name = name;
    barrier_.where = where;
    barrier_.count = 0;
  } else if (barrier_.name != name || !same(barrier_.where, where)) {
    fail(std::string(name) + ", but other threads of the block are in " + barrier_.name + " at " +
             lamina_emulator::text_of(barrier_.where),
         where);
  }
  ++barrier_.arrived;
  barrier_.count += predicate != 0;
  if (barrier_.arrived == num_live_) {
    release_barrier();
  } else {
    barrier_.waiting.push_back(static_cast<uint16_t>(running_));
    suspend(name, 0, where);
  }
  return barrier_.result;
}

void BlockRunner::fail(const std::string& what, Where where) {
  failure_ = who() + ": " + what + " (" + lamina_emulator::text_of(where) + ")";
  threads_[running_].fiber->leave(false);
  std::abort();
}

std::string BlockRunner::place() const {
  return "block " + text_of(block_index_) + " of " + kernel_name(launch_->kernel);
}

std::string BlockRunner::who() const {
  return "thread " + text_of(threads_[running_].index) + " of " + place();
}

bool BlockRunner::overflowed_at(const void* address) const {
  const Fiber* const fiber = threads_[running_].fiber;
  return fiber != nullptr && fiber->overflowed_at(address);
}

std::string BlockRunner::stuck() const {
  struct Group {
    unsigned count = 0;
    uint3 first{};
  };
  std::map<std::string, Group> groups;
  unsigned done = 0;
  for (unsigned i = 0; i < num_threads_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.done) {
      ++done;
      continue;
    }
    std::string in = thread.waits_in;
    if (thread.mask != 0) {
      char mask[32];
      std::snprintf(mask, sizeof(mask), " with mask 0x%08x", thread.mask);
      in += mask;
    }
    Group& group = groups[in + " at " + lamina_emulator::text_of(thread.where)];
    if (group.count++ == 0) group.first = thread.index;
  }
  std::string text = place() + " is stuck: ";
  for (const auto& [in, group] : groups)
    text += std::to_string(group.count) + " threads, the first " + text_of(group.first) + ", wait in " + in + "; ";
  return text + std::to_string(done) + " have returned";
}

bool BlockRunner::is_in_shared(const void* address) const {
  const auto* const begin = static_cast<const std::byte*>(shared_.get());
  const auto* const at = static_cast<const std::byte*>(address);
  return at >= begin && at + 16 <= begin + launch_->shared_bytes;
}

// The source is read as late as the hardware may, and the destination is lost as early.
void BlockRunner::copy_later(void* to, const void* from, int valid_bytes, Where where) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail("cp_async_16 with an address that is not a multiple of 16", where);
  if (valid_bytes < 0 || valid_bytes > 16) fail("cp_async_16 of " + std::to_string(valid_bytes) + " bytes", where);
  if (memory().device_of(to) >= 0) fail("cp_async_16 to memory that is not shared", where);
  if (is_in_shared(from)) fail("cp_async_16 from shared memory", where);
  std::memset(to, shared_poison, 16);
  Copies& copies = copies_[running_];
  copies.pending.push_back(
      {static_cast<std::byte*>(to), static_cast<const std::byte*>(from), valid_bytes, copies.num_groups});
}

void BlockRunner::commit_copies() {
  ++copies_[running_].num_groups;
}

void BlockRunner::wait_for_copies(int allowed_groups) {
  Copies& copies = copies_[running_];
  size_t kept = 0;
  for (const Copies::One& one : copies.pending) {
    // Copies that were not committed belong to the next group, which is not waited for.
    if (one.group >= copies.num_groups - allowed_groups) {
      copies.pending[kept++] = one;
      continue;
    }
    std::memset(one.to, 0, 16);
    std::memcpy(one.to, one.from, static_cast<size_t>(one.valid_bytes));
  }
  copies.pending.resize(kept);
}

namespace {

BlockRunner& running(const char* name) {
  if (runner_of_thread == nullptr) {
    std::fprintf(stderr, "CUDA emulator: %s was called outside a kernel\n", name);
    std::abort();
  }
  return *runner_of_thread;
}

// Runners keep their stacks for the next launch.
struct Runners {
  std::mutex mutex;
  std::vector<std::unique_ptr<BlockRunner>> idle;
};
Runners& runners() {
  static Runners& all = *new Runners;
  return all;
}

// Of each kernel's last launch.
struct LateBlocks {
  struct Seen {
    uint64_t launch = 0, barriers = 0;
  };
  std::mutex mutex;
  std::map<const void*, Seen> seen;
  uint64_t num_launches = 0;
};
LateBlocks& late_blocks() {
  static LateBlocks& all = *new LateBlocks;
  return all;
}

void run_launch(const Launch& launch, int device, uint64_t seed) {
  std::unique_ptr<BlockRunner> runner;
  {
    const std::lock_guard lock(runners().mutex);
    if (!runners().idle.empty()) {
      runner = std::move(runners().idle.back());
      runners().idle.pop_back();
    }
  }
  if (!runner) runner = std::make_unique<BlockRunner>();
  const std::string failure = runner->run(launch, seed);
  {
    const std::lock_guard lock(late_blocks().mutex);
    late_blocks().seen[launch.kernel] = {++late_blocks().num_launches, runner->num_barriers()};
  }
  if (!failure.empty()) set_device_error(device, cudaErrorLaunchFailure, failure);
  const std::lock_guard lock(runners().mutex);
  runners().idle.push_back(std::move(runner));
}

}  // namespace

void meet_in_warp(const char* name, unsigned mask, void* operand, Combine combine, Where where) {
  running(name).meet_in_warp(name, mask, operand, combine, where, false);
}
void meet_whole_warp(const char* name, void* operand, Combine combine, Where where) {
  running(name).meet_in_warp(name, 0xffffffffu, operand, combine, where, true);
}
Votes meet_in_block(const char* name, int predicate, Where where) {
  return running(name).meet_in_block(name, predicate, where);
}
void fail_in_kernel(const char* what, Where where) {
  running(what).fail(what, where);
}
unsigned lane() {
  return running("a shuffle").lane();
}
void* dynamic_shared() {
  return running("shared memory").shared();
}
void check_shared_row(const void* row, Where where);
void copy_later(void* shared, const void* global, int valid_bytes, Where where);
void commit_copies();
void wait_for_copies(int allowed_groups);
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   std::function<void()> body);

void check_shared_row(const void* row, Where where) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail_in_kernel("ldmatrix of a row whose address is not a multiple of 16", where);
  if (memory().device_of(row) >= 0) fail_in_kernel("ldmatrix from memory that is not shared", where);
}
void copy_later(void* shared, const void* global, int valid_bytes, Where where) {
  running("cp_async_16").copy_later(shared, global, valid_bytes, where);
}
void commit_copies() {
  running("cp_async_commit").commit_copies();
}
void wait_for_copies(int allowed_groups) {
  running("cp_async_wait").wait_for_copies(allowed_groups);
}

namespace {

// At its first launch on a device, unless all kernels are loaded at the start: that waits for what runs.
void load(const void* kernel, int device) {
  static const char* const loading = std::getenv("CUDA_MODULE_LOADING");
  static const bool lazily = loading == nullptr || std::strcmp(loading, "EAGER") != 0;
  if (!lazily) return;
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>>& loaded = *new std::set<std::pair<const void*, int>>;
  {
    const std::lock_guard lock(mutex);
    if (!loaded.emplace(kernel, device).second) return;
  }
  wait_for_all_streams(device);
}

}  // namespace

uint64_t barriers_of_late_block(const char* name) {
  const std::lock_guard lock(late_blocks().mutex);
  LateBlocks::Seen last;
  for (const auto& [kernel, seen] : late_blocks().seen)
    if (seen.launch > last.launch && kernel_name(kernel).find(name) != std::string::npos) last = seen;
  return last.barriers;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   std::function<void()> body) {
  if (const cudaError_t error = usable(); error != cudaSuccess) return remember(error);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || threads == 0 || threads > max_threads_per_block ||
      block.z > 64)
    return cudaErrorInvalidConfiguration;
  const int device = device_of_stream(stream);
  if (device != current_device()) return cudaErrorInvalidResourceHandle;
  if (shared_bytes > shared_limit(device, kernel)) return cudaErrorInvalidValue;
  load(kernel, device);
  static const auto seed = static_cast<uint64_t>(setting("LAMINA_EMULATOR_SEED", 0));
  const uint64_t seed_of_launch = (seed << 32) + next_launch_of(stream);
  return enqueue(stream, Work::device,
                 [launch = Launch{kernel, grid, block, shared_bytes, std::move(body)}, device, seed_of_launch] {
                   run_launch(launch, device, seed_of_launch);
                 });
}

}  // namespace lamina_emulator
