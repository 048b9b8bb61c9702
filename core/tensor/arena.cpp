#include "core/tensor/arena.h"

#include <algorithm>
#include <utility>

namespace lamina {
namespace {

constexpr int64_t alignment = 64;
constexpr int64_t smallest_slab = int64_t{16} << 10;  // a pipeline has many arenas, some of them small

int64_t round_up(int64_t bytes) {
  return (bytes + alignment - 1) / alignment * alignment;
}

}  // namespace

Arena::Arena(Device device, MemoryLedger* ledger, std::string purpose)
    : device_(device), ledger_(ledger), purpose_(std::move(purpose)) {}

TensorView Arena::take(DType dtype, const Shape& shape) {
  const int64_t bytes = std::max(alignment, round_up(shape.num_elements() * size_of(dtype)));
  while (current_ < slabs_.size() && slabs_[current_].used + bytes > slabs_[current_].buffer.num_bytes()) {
    if (current_ + 1 == slabs_.size()) break;
    ++current_;
    slabs_[current_].used = 0;
  }
  if (current_ >= slabs_.size() || slabs_[current_].used + bytes > slabs_[current_].buffer.num_bytes()) {
    // A quarter more: until settle() that much may lie idle.
    slabs_.push_back({Buffer(std::max({bytes, smallest_slab, capacity_bytes() / 4}), device_, ledger_, purpose_), 0});
    current_ = slabs_.size() - 1;
  }
  Slab& slab = slabs_[current_];
  TensorView view(static_cast<char*>(slab.buffer.data()) + slab.used, dtype, shape, device_);
  slab.used += bytes;
  in_use_ += bytes;
  peak_ = std::max(peak_, in_use_);
  return view;
}

Arena::Mark Arena::mark() const {
  return {current_, current_ < slabs_.size() ? slabs_[current_].used : 0, in_use_};
}

void Arena::release(const Mark& mark) {
  LAMINA_CHECK(mark.in_use <= in_use_, "arena {}: released out of order", purpose_);
  for (size_t slab = mark.slab + 1; slab < slabs_.size(); ++slab) slabs_[slab].used = 0;
  if (mark.slab < slabs_.size()) slabs_[mark.slab].used = mark.used;
  current_ = mark.slab;
  in_use_ = mark.in_use;
}

void Arena::settle() {
  reset();
  if (is_settled()) return;
  slabs_.clear();
  slabs_.push_back({Buffer(peak_, device_, ledger_, purpose_), 0});
}

void Arena::reset() {
  for (Slab& slab : slabs_) slab.used = 0;
  current_ = 0;
  in_use_ = 0;
}

int64_t Arena::capacity_bytes() const {
  int64_t sum = 0;
  for (const Slab& slab : slabs_) sum += slab.buffer.num_bytes();
  return sum;
}

}  // namespace lamina
