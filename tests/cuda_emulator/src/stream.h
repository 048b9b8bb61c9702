// Streams: queues of work, each with a thread of its own. Events: points in them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "cuda_runtime_api.h"

namespace lamina_emulator {

// What a task may do is set by its kind.
enum class Work {
  device,  // touches the memory of the stream's device; left out once something on the device has failed
  order,   // waits for or tells others; always done
};

// Puts work behind what the stream holds; cudaErrorInvalidResourceHandle when there is no such stream.
cudaError_t enqueue(cudaStream_t stream, Work kind, std::function<void()> run);
// Returns when what the stream holds now has been done.
cudaError_t wait_for_stream(cudaStream_t stream);
void wait_for_all_streams(int device);
// Whether what the device's streams hold now has been done.
std::function<bool()> all_streams_are_through(int device);
// Device of the stream, -1 when there is no such stream.
int device_of_stream(cudaStream_t stream);
uint64_t next_launch_of(cudaStream_t stream);  // 0, 1, ...: which launch of the stream this is

}  // namespace lamina_emulator
