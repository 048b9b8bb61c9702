#include "core/tensor/view.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace lamina {
namespace {

// A [2, 3, 4] tensor whose element (i, j, k) holds 12 i + 4 j + k.
class View : public ::testing::Test {
 protected:
  View() : storage_(24) { std::iota(storage_.begin(), storage_.end(), 0.0f); }
  TensorView cube() { return {storage_.data(), DType::f32, {2, 3, 4}}; }

  static float at(const TensorView& view, std::initializer_list<int64_t> index) {
    int64_t offset = 0;
    int axis = 0;
    for (int64_t i : index) offset += i * view.stride(axis++);
    return view.as<float>()[offset];
  }

  std::vector<float> storage_;
};

TEST_F(View, ContiguousStridesAndCounts) {
  const TensorView view = cube();
  EXPECT_EQ(view.strides, Shape({12, 4, 1}));
  EXPECT_EQ(view.num_elements(), 24);
  EXPECT_EQ(view.num_bytes(), 96);
  EXPECT_EQ(view.size(-1), 4);
  EXPECT_EQ(view.stride(-2), 4);
  EXPECT_TRUE(view.is_contiguous());
  EXPECT_TRUE(static_cast<bool>(view));
  EXPECT_TRUE(TensorView().empty());
  EXPECT_EQ(view.to_string(), "fp32 [2, 3, 4]");
  EXPECT_EQ(at(view, {1, 2, 3}), 23.0f);
}

TEST_F(View, ScalarHasOneElement) {
  const TensorView scalar(storage_.data(), DType::f32, {});
  EXPECT_EQ(scalar.rank(), 0);
  EXPECT_EQ(scalar.num_elements(), 1);
  EXPECT_TRUE(scalar.is_contiguous());
}

TEST_F(View, SliceKeepsRankAndStrides) {
  const TensorView view = cube().slice(1, 1, 3);
  EXPECT_EQ(view.shape, Shape({2, 2, 4}));
  EXPECT_EQ(view.strides, Shape({12, 4, 1}));
  EXPECT_FALSE(view.is_contiguous());
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 2; ++j)
      for (int64_t k = 0; k < 4; ++k) EXPECT_EQ(at(view, {i, j, k}), static_cast<float>(12 * i + 4 * (j + 1) + k));
  EXPECT_TRUE(cube().slice(0, 1, 2).is_contiguous());
  EXPECT_EQ(at(cube().slice(-1, 3, 4), {1, 1, 0}), 19.0f);
  EXPECT_EQ(cube().slice(2, 4, 4).num_elements(), 0);
}

TEST_F(View, SliceCountsInElementsOfTheDtype) {
  std::vector<double> wide{0, 1, 2, 3};
  EXPECT_EQ(TensorView(wide.data(), DType::f64, {4}).slice(0, 3, 4).as<double>()[0], 3.0);
  std::vector<bf16> narrow{bf16(0.0f), bf16(1.0f), bf16(2.0f)};
  EXPECT_EQ(static_cast<float>(TensorView(narrow.data(), DType::bf16, {3}).slice(0, 2, 3).as<bf16>()[0]), 2.0f);
}

TEST_F(View, SliceRefusesWhatIsOutside) {
  EXPECT_THROW(cube().slice(1, -1, 2), InternalError);
  EXPECT_THROW(cube().slice(1, 2, 1), InternalError);
  EXPECT_THROW(cube().slice(1, 0, 4), InternalError);
}

TEST_F(View, SelectDropsTheAxis) {
  const TensorView middle = cube().select(1, 2);
  EXPECT_EQ(middle.shape, Shape({2, 4}));
  EXPECT_EQ(middle.strides, Shape({12, 1}));
  EXPECT_EQ(at(middle, {1, 3}), 23.0f);
  EXPECT_EQ(cube().select(-1, 1).shape, Shape({2, 3}));
  EXPECT_EQ(at(cube().select(-1, 1), {1, 1}), 17.0f);
  EXPECT_EQ(cube().select(0, 1).select(0, 1).select(0, 1).as<float>()[0], 17.0f);
}

TEST_F(View, SelectRefusesWhatIsOutside) {
  EXPECT_THROW(cube().select(0, 2), InternalError);
  EXPECT_THROW(cube().select(0, -1), InternalError);
}

TEST_F(View, TransposedMovesNoData) {
  const TensorView view = cube().transposed();
  EXPECT_EQ(view.shape, Shape({2, 4, 3}));
  EXPECT_EQ(view.data, cube().data);
  EXPECT_FALSE(view.is_contiguous());
  for (int64_t j = 0; j < 3; ++j)
    for (int64_t k = 0; k < 4; ++k) EXPECT_EQ(at(view, {1, k, j}), at(cube(), {1, j, k}));
  EXPECT_TRUE(view.transposed().is_contiguous());
  EXPECT_EQ(cube().transposed(0, 2).shape, Shape({4, 3, 2}));
  EXPECT_EQ(at(cube().transposed(0, 2), {3, 2, 1}), 23.0f);
}

TEST_F(View, AnAxisOfOneIsContiguousWhateverItsStride) {
  EXPECT_TRUE(cube().slice(1, 0, 1).slice(0, 0, 1).is_contiguous());
  EXPECT_TRUE(TensorView(storage_.data(), DType::f32, {1, 24}).transposed().is_contiguous());
}

TEST_F(View, ReshapedKeepsTheOrder) {
  const TensorView matrix = cube().reshaped({6, 4});
  EXPECT_EQ(matrix.data, cube().data);
  EXPECT_EQ(at(matrix, {5, 3}), 23.0f);
  EXPECT_EQ(at(matrix.reshaped({24}), {17}), 17.0f);
  EXPECT_EQ(cube().slice(0, 1, 2).reshaped({12}).as<float>()[0], 12.0f);
}

TEST_F(View, ReshapedRefusesOtherCountsAndGaps) {
  EXPECT_THROW(cube().reshaped({5, 5}), InternalError);
  EXPECT_THROW(cube().transposed().reshaped({24}), InternalError);
  EXPECT_THROW(cube().slice(2, 0, 2).reshaped({12}), InternalError);
}

TEST_F(View, ReadAsAnotherTypeIsRefused) {
  EXPECT_THROW(cube().as<double>(), InternalError);
  EXPECT_THROW(cube().as<bf16>(), InternalError);
  EXPECT_THROW(cube().as<int32_t>(), InternalError);
  EXPECT_NO_THROW(cube().as<float>());
}

TEST_F(View, SameLayoutIgnoresStridesOnly) {
  std::vector<float> other(24);
  EXPECT_TRUE(same_layout(cube().transposed(), TensorView(other.data(), DType::f32, {2, 4, 3})));
  EXPECT_FALSE(same_layout(cube(), cube().transposed()));
  EXPECT_FALSE(same_layout(cube(), TensorView(other.data(), DType::i32, {2, 3, 4})));
  EXPECT_FALSE(same_layout(cube(), cube().reshaped({6, 4})));
}

TEST_F(View, TooManyAxesAreRefused) {
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1}), InternalError);
}

}  // namespace
}  // namespace lamina
