// How long a host thread sleeps before it asks a GPU again. During a short wait, and most are, it doesn't sleep: Linux's shortest
// sleep takes 50 to 100 microseconds, for which the GPU would stand idle.
#pragma once

#include <chrono>

namespace lamina::cuda {

constexpr std::chrono::microseconds spin_time{200}, nap_time{50};

constexpr std::chrono::microseconds nap_after(std::chrono::nanoseconds waited) {
  return waited < spin_time ? std::chrono::microseconds(0) : nap_time;
}

}  // namespace lamina::cuda
