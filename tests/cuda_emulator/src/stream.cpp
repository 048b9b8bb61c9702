#include "stream.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "crash.h"
#include "device.h"
#include "errors.h"
#include "lamina_emulator_counts.h"
#include "memory.h"

namespace lamina_emulator {
namespace {

std::atomic<uint64_t> num_launches, num_blocking_calls;

using Clock = std::chrono::steady_clock;

// A point of a stream's work that can be waited for.
struct Point {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0, reached = 0;  // how often
  Clock::time_point when;

  uint64_t begin() {
    const std::lock_guard lock(mutex);
    return ++recorded;
  }
  void finish(uint64_t which) {
    const std::lock_guard lock(mutex);
    reached = std::max(reached, which);
    when = Clock::now();
    changed.notify_all();
  }
  void wait(uint64_t which) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return reached >= which; });
  }
};

struct Task {
  Work kind;
  std::function<void()> run;
};

}  // namespace
}  // namespace lamina_emulator

struct CUevent_st {
  std::shared_ptr<lamina_emulator::Point> point = std::make_shared<lamina_emulator::Point>();
  bool timed = true;
};

struct CUstream_st : std::enable_shared_from_this<CUstream_st> {
  CUstream_st(int device_, bool ordered_with_default_) : device(device_), ordered_with_default(ordered_with_default_) {}

  const int device;
  const bool ordered_with_default;  // as the default stream itself and streams without cudaStreamNonBlocking are
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<lamina_emulator::Task> queue;
  uint64_t issued = 0, completed = 0, launches = 0;
  bool closing = false;

  void start() {
    std::thread([self = shared_from_this()] { self->work(); }).detach();
  }
  void push(lamina_emulator::Task task) {
    const std::lock_guard lock(mutex);
    queue.push_back(std::move(task));
    ++issued;
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    const uint64_t until = issued;
    changed.wait(lock, [&] { return completed >= until; });
  }
  bool idle() {
    const std::lock_guard lock(mutex);
    return completed == issued;
  }
  void close() {
    const std::lock_guard lock(mutex);
    closing = true;
    changed.notify_all();
  }

 private:
  void work();
};

// Memory stays open from one piece of work to the next; it must be closed before anybody can learn that the last one is done.
void CUstream_st::work() {
  using namespace lamina_emulator;
  give_signal_stack();
  bool is_open = false;
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [&] { return !queue.empty() || closing; });
    if (queue.empty()) return;
    Task task = std::move(queue.front());
    queue.pop_front();
    const bool last = queue.empty();
    lock.unlock();
    const bool works = task.kind == Work::device && device_error(device) == cudaSuccess;
    if (works && !is_open) {
      memory().open(device);
      is_open = true;
    }
    if (is_open && !works && last) {
      memory().close(device);
      is_open = false;
    }
    if (works || task.kind == Work::order) task.run();
    task.run = nullptr;
    lock.lock();
    if (is_open && queue.empty()) {
      memory().close(device);
      is_open = false;
    }
    ++completed;
    changed.notify_all();
  }
}

namespace lamina_emulator {
namespace {

using Stream = std::shared_ptr<CUstream_st>;

struct Streams {
  std::mutex mutex;
  std::map<cudaStream_t, Stream> all;
  std::array<Stream, max_devices> default_of;
};
Streams& streams() {
  static Streams& all = *new Streams;  // threads may outlive main()
  return all;
}

Stream find(cudaStream_t handle) {
  Streams& known = streams();
  const std::lock_guard lock(known.mutex);
  if (handle == nullptr) {
    Stream& stream = known.default_of[static_cast<size_t>(current_device())];
    if (!stream) {
      stream = std::make_shared<CUstream_st>(current_device(), true);
      stream->start();
    }
    return stream;
  }
  const auto found = known.all.find(handle);
  return found == known.all.end() ? nullptr : found->second;
}

std::vector<Stream> streams_of(int device) {
  Streams& known = streams();
  const std::lock_guard lock(known.mutex);
  std::vector<Stream> result;
  if (const Stream& stream = known.default_of[static_cast<size_t>(device)]) result.push_back(stream);
  for (const auto& [handle, stream] : known.all)
    if (stream->device == device) result.push_back(stream);
  return result;
}

void hold(const Stream& stream, const Stream& until) {
  const auto point = std::make_shared<Point>();
  point->begin();
  until->push({Work::order, [point] { point->finish(1); }});
  stream->push({Work::order, [point] { point->wait(1); }});
}

// The default stream waits for the others, and they for it, except those that were made not to.
void order_with_default(const Stream& stream) {
  if (!stream->ordered_with_default) return;
  const bool is_default = streams().default_of[static_cast<size_t>(stream->device)] == stream;
  for (const Stream& other : streams_of(stream->device)) {
    const bool other_is_default = streams().default_of[static_cast<size_t>(stream->device)] == other;
    if (other != stream && other->ordered_with_default && (is_default || other_is_default) && !other->idle())
      hold(stream, other);
  }
}

cudaError_t create(cudaStream_t* handle, unsigned flags) {
  if (handle == nullptr || (flags & ~static_cast<unsigned>(cudaStreamNonBlocking)) != 0) return cudaErrorInvalidValue;
  if (const cudaError_t error = usable(); error != cudaSuccess) return error;
  const auto stream = std::make_shared<CUstream_st>(current_device(), flags == cudaStreamDefault);
  stream->start();
  Streams& known = streams();
  const std::lock_guard lock(known.mutex);
  known.all[stream.get()] = stream;
  *handle = stream.get();
  return cudaSuccess;
}

}  // namespace

cudaError_t enqueue(cudaStream_t handle, Work kind, std::function<void()> run) {
  if (num_devices() == 0) return cudaErrorNoDevice;
  const Stream stream = find(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  order_with_default(stream);
  stream->push({kind, std::move(run)});
  return cudaSuccess;
}

cudaError_t wait_for_stream(cudaStream_t handle) {
  if (num_devices() == 0) return cudaErrorNoDevice;
  const Stream stream = find(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  ++num_blocking_calls;
  stream->wait();
  return device_error(stream->device);
}

void wait_for_all_streams(int device) {
  ++num_blocking_calls;
  for (const Stream& stream : streams_of(device)) stream->wait();
}

std::function<bool()> all_streams_are_through(int device) {
  std::vector<std::pair<Stream, uint64_t>> points;
  for (const Stream& stream : streams_of(device)) {
    const std::lock_guard lock(stream->mutex);
    points.emplace_back(stream, stream->issued);
  }
  return [points = std::move(points)] {
    return std::all_of(points.begin(), points.end(), [](const auto& point) {
      const std::lock_guard lock(point.first->mutex);
      return point.first->completed >= point.second;
    });
  };
}

int device_of_stream(cudaStream_t handle) {
  if (num_devices() == 0) return -1;
  const Stream stream = find(handle);
  return stream ? stream->device : -1;
}

uint64_t next_launch_of(cudaStream_t handle) {
  ++num_launches;
  const Stream stream = find(handle);
  const std::lock_guard lock(stream->mutex);
  return stream->launches++;
}

Counts counts() {
  return {num_launches, num_blocking_calls};
}

}  // namespace lamina_emulator

using namespace lamina_emulator;

cudaError_t cudaStreamCreate(cudaStream_t* pStream) {
  return remember(create(pStream, cudaStreamDefault));
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* pStream, unsigned int flags) {
  return remember(create(pStream, flags));
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* pStream, unsigned int flags, int) {
  return remember(create(pStream, flags));
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const Stream stream = handle == nullptr ? nullptr : find(handle);
  if (!stream) return remember(cudaErrorInvalidResourceHandle);
  {
    Streams& known = streams();
    const std::lock_guard lock(known.mutex);
    known.all.erase(handle);
  }
  stream->close();  // what it holds is still done
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return remember(wait_for_stream(stream));
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  if (num_devices() == 0) return remember(cudaErrorNoDevice);
  const Stream stream = find(handle);
  if (!stream) return remember(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = device_error(stream->device); error != cudaSuccess) return remember(error);
  return stream->idle() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  if (event == nullptr) return remember(cudaErrorInvalidValue);
  if (const cudaError_t error = usable(); error != cudaSuccess) return remember(error);
  *event = new CUevent_st;
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (event == nullptr || device_of_stream(stream) < 0) return remember(cudaErrorInvalidResourceHandle);
  const uint64_t which = event->point->begin();
  return remember(enqueue(stream, Work::order, [point = event->point, which] { point->finish(which); }));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  uint64_t which = 0;
  {
    const std::lock_guard lock(event->point->mutex);
    which = event->point->recorded;
  }
  return remember(enqueue(stream, Work::order, [point = event->point, which] { point->wait(which); }));
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = usable(); error != cudaSuccess) return remember(error);
  const std::lock_guard lock(event->point->mutex);
  return event->point->reached == event->point->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  uint64_t which = 0;
  {
    const std::lock_guard lock(event->point->mutex);
    which = event->point->recorded;
  }
  ++num_blocking_calls;
  event->point->wait(which);
  return remember(usable());
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  if (start == nullptr || end == nullptr || !start->timed || !end->timed)
    return remember(cudaErrorInvalidResourceHandle);
  const std::scoped_lock lock(start->point->mutex, end->point->mutex);
  if (start->point->recorded == 0 || end->point->recorded == 0) return remember(cudaErrorInvalidResourceHandle);
  if (start->point->reached != start->point->recorded || end->point->reached != end->point->recorded)
    return cudaErrorNotReady;
  *ms = std::chrono::duration<float, std::milli>(end->point->when - start->point->when).count();
  return cudaSuccess;
}
