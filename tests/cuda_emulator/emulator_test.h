// What the emulator's tests share: device memory with a lifetime, and launches that are waited for.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/device/cuda/kernel.h"

namespace lamina_emulator_test {

template <class T>
class OnDevice {
 public:
  explicit OnDevice(size_t count) : count_(count) { EXPECT_EQ(cudaMalloc(&data_, count * sizeof(T)), cudaSuccess); }
  explicit OnDevice(const std::vector<T>& values) : OnDevice(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }

  T* data() const { return data_; }
  size_t size() const { return count_; }
  std::vector<T> values() const {
    std::vector<T> result(count_);
    EXPECT_EQ(cudaMemcpy(result.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return result;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// What a launch's failure says; the device is well again afterwards.
template <class... Arguments>
std::string failure_of(Arguments&&... arguments) {
  lamina::cuda::launch(std::forward<Arguments>(arguments)...);
  const cudaError_t status = cudaDeviceSynchronize();
  const std::string text = status == cudaSuccess ? "" : cudaGetErrorString(status);
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
  return text;
}

}  // namespace lamina_emulator_test
