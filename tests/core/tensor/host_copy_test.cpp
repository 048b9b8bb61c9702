#include "core/tensor/host_copy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace lamina {
namespace {

TensorView view_of(std::vector<float>& values) {
  return {values.data(), DType::f32, {static_cast<int64_t>(values.size())}};
}

TEST(HostCopy, OfTheHostIsTheViewItself) {
  std::vector<float> values = {1, 2, 3};
  Stream stream;
  HostCopy copy(view_of(values), stream);
  EXPECT_EQ(copy->data, values.data());
  const HostCopy moved = std::move(copy);
  EXPECT_EQ(moved->data, values.data());
  EXPECT_EQ(HostCopy(view_of(values).slice(0, 1, 3))->data, values.data() + 1);
  Buffer staging;
  EXPECT_EQ(staged_values(view_of(values), staging).data, values.data());
  EXPECT_EQ(staging.num_bytes(), 0);
}

TEST(HostRoom, OfTheHostIsTheTargetItself) {
  std::vector<float> values(3);
  Stream stream;
  HostRoom room(view_of(values), stream);
  HostRoom moved = std::move(room);
  set_element(moved.view(), 1, 2.5);
  moved.upload();
  EXPECT_EQ(values, (std::vector<float>{0, 2.5f, 0}));
}

// In blocks of 4096, at every place that a block's loop may miss.
template <class T>
void expect_finds_non_finite(DType dtype) {
  for (const int64_t count : {0, 1, 7, 4096, 4097, 10'000}) {
    std::vector<T> values(static_cast<size_t>(count), T(1.5F));
    if (count > 6) {
      values[1] = std::numeric_limits<T>::max();
      values[2] = std::numeric_limits<T>::denorm_min();
      values[3] = -T(0);
    }
    const TensorView view(values.data(), dtype, {count});
    EXPECT_EQ(first_non_finite(view), std::nullopt) << count;
    for (const int64_t at : {count - 1, count / 2, int64_t{0}}) {  // each earlier than the one before
      if (count == 0) continue;
      values[static_cast<size_t>(at)] =
          at % 2 == 0 ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::quiet_NaN();
      EXPECT_EQ(first_non_finite(view), at) << count;
    }
  }
}

TEST(FirstNonFinite, IsFoundWhereverItIs) {
  expect_finds_non_finite<float>(DType::f32);
  expect_finds_non_finite<double>(DType::f64);
  std::vector<bf16> narrow(5000, bf16(1.5F));
  const TensorView view(narrow.data(), DType::bf16, {5000});
  EXPECT_EQ(first_non_finite(view), std::nullopt);
  narrow[4999] = bf16(std::numeric_limits<float>::infinity());
  EXPECT_EQ(first_non_finite(view), 4999);
  std::vector<int32_t> counts(10, -1);  // all bits set
  EXPECT_EQ(first_non_finite(TensorView(counts.data(), DType::i32, {10})), std::nullopt);
}

TEST(HostCopy, BytesOnTheHostAreCopiedAtOnce) {
  std::vector<int> from(100), to(100);
  std::iota(from.begin(), from.end(), 1);
  Stream stream;
  copy_bytes(to.data(), from.data(), 99 * static_cast<int64_t>(sizeof(int)), stream);
  EXPECT_EQ(std::vector<int>(to.begin(), to.end() - 1), std::vector<int>(from.begin(), from.end() - 1));
  EXPECT_EQ(to.back(), 0);
  copy_bytes(nullptr, nullptr, 0, stream);
}

TEST(HostCopy, ElementsOfEveryDtype) {
  for (const DType dtype : {DType::bf16, DType::f32, DType::f64, DType::i32}) {
    Buffer memory(3 * size_of(dtype), Device{}, nullptr, "test");
    const TensorView view(memory.data(), dtype, {3});
    set_element(view, 1, -3.0);
    EXPECT_EQ(element_of(view, 0), 0.0);
    EXPECT_EQ(element_of(view, 1), -3.0);
    EXPECT_EQ(element_of(view, 2), 0.0);
    if (dtype == DType::i32) continue;
    set_element(view, 2, std::numeric_limits<double>::quiet_NaN());
    EXPECT_TRUE(std::isnan(element_of(view, 2)));
  }
  // 1 + 2^-8 lies between two bf16; the even one is 1.
  Buffer memory(2, Device{}, nullptr, "test");
  const TensorView narrow(memory.data(), DType::bf16, {1});
  set_element(narrow, 0, 1.0 + 0x1p-8);
  EXPECT_EQ(element_of(narrow, 0), 1.0);
}

}  // namespace
}  // namespace lamina
