// Up to five int64 extents, kept in place: views are copied freely and must not allocate.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/base/error.h"

namespace lamina {

class Shape {
 public:
  static constexpr int max_rank = 5;

  Shape() = default;
  Shape(std::initializer_list<int64_t> extents) {
    LAMINA_CHECK(extents.size() <= max_rank, "rank {}", extents.size());
    for (int64_t extent : extents) extents_[static_cast<size_t>(rank_++)] = extent;
  }

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return extents_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)]; }
  int64_t& operator[](int axis) { return extents_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)]; }
  const int64_t* begin() const { return extents_.data(); }
  const int64_t* end() const { return extents_.data() + rank_; }

  void push_back(int64_t extent) {
    LAMINA_CHECK(rank_ < max_rank);
    extents_[static_cast<size_t>(rank_++)] = extent;
  }

  int64_t num_elements() const {
    int64_t product = 1;
    for (int64_t extent : *this) product *= extent;
    return product;
  }

  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int axis = 0; axis < rank_; ++axis)
      if ((*this)[axis] != other[axis]) return false;
    return true;
  }

  std::string to_string() const;  // "[4, 512]"

 private:
  std::array<int64_t, max_rank> extents_{};
  int rank_ = 0;
};

}  // namespace lamina
