// How long a host thread sleeps before it asks a GPU again. Not at all while a wait is as short as most are: Linux makes 50 to 100
// microseconds of the shortest sleep, and for that long the GPU would stand idle.
#pragma once

#include <chrono>

namespace lamina::cuda {

constexpr std::chrono::microseconds spin_time{200}, nap_time{50};

constexpr std::chrono::microseconds nap_after(std::chrono::nanoseconds waited) {
  return waited < spin_time ? std::chrono::microseconds(0) : nap_time;
}

}  // namespace lamina::cuda
