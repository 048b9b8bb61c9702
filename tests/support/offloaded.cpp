#include "tests/support/offloaded.h"

#include <algorithm>

#include "core/device/staging_pool.h"

namespace lamina::test {
namespace {

constexpr char mark = 0x5a;

struct Extent {
  char *begin, *end;
};
// Strides may be negative.
Extent extent_of(const TensorView& view) {
  int64_t first = 0, last = 0;
  for (int axis = 0; axis < view.rank(); ++axis) {
    const int64_t step = (view.size(axis) - 1) * view.stride(axis);
    (step < 0 ? first : last) += step;
  }
  char* const origin = static_cast<char*>(view.data);
  return {origin + first * size_of(view.dtype), origin + (last + 1) * size_of(view.dtype)};
}

}  // namespace

void DeviceCopies::add(const TensorView& view) {
  if (view.empty() || view.num_elements() == 0) return;
  const auto [begin, end] = extent_of(view);
  Piece piece{begin, end, nullptr};
  std::erase_if(pieces_, [&](const Piece& other) {
    if (other.begin >= piece.end || piece.begin >= other.end) return false;
    piece.begin = std::min(piece.begin, other.begin);
    piece.end = std::max(piece.end, other.end);
    return true;
  });
  pieces_.push_back(std::move(piece));
}

void DeviceCopies::upload() {
  for (Piece& piece : pieces_) {
    const int64_t bytes = piece.end - piece.begin, offset = reinterpret_cast<intptr_t>(piece.begin) % alignment;
    const TensorView room = memory_.take(DType::bf16, {(bytes + offset + 2 * guard + alignment + 1) / 2});
    char* const base = static_cast<char*>(room.data);
    const int64_t to_aligned = (alignment - reinterpret_cast<intptr_t>(base) % alignment) % alignment;
    piece.copy = base + to_aligned + guard + offset;
    static_assert(guard % alignment == 0);
    // The operand between its guards, in one copy.
    Staging host(StagingPool::of(stream_), bytes + 2 * guard, stream_);
    char* const begin = static_cast<char*>(host.data());
    std::fill_n(begin, guard, mark);
    std::copy_n(piece.begin, bytes, begin + guard);
    std::fill_n(begin + guard + bytes, guard, mark);
    host.copy(piece.copy - guard, begin, bytes + 2 * guard, stream_);
  }
  stream_.synchronize();
}

const DeviceCopies::Piece& DeviceCopies::piece_of(const void* data) const {
  const auto* const at = static_cast<const char*>(data);
  const auto found =
      std::find_if(pieces_.begin(), pieces_.end(), [&](const Piece& p) { return p.begin <= at && at < p.end; });
  LAMINA_CHECK(found != pieces_.end(), "an operand that was not copied");
  return *found;
}

TensorView DeviceCopies::device_view(const TensorView& view) const {
  TensorView out = view;
  out.device = offload_device;
  if (view.empty() || view.num_elements() == 0) return out;  // its address is never followed
  const Piece& piece = piece_of(view.data);
  out.data = piece.copy + (static_cast<char*>(view.data) - piece.begin);
  return out;
}

void DeviceCopies::download() {
  for (Piece& piece : pieces_) {
    const int64_t bytes = piece.end - piece.begin;
    Staging host(StagingPool::of(stream_), bytes + 2 * guard, stream_);
    char* const begin = static_cast<char*>(host.data());
    host.copy(begin, piece.copy - guard, bytes + 2 * guard, stream_);
    stream_.synchronize();
    const int64_t intact =
        std::count(begin, begin + guard, mark) + std::count(begin + guard + bytes, begin + bytes + 2 * guard, mark);
    LAMINA_CHECK(intact == 2 * guard, "written outside an operand of {} bytes", bytes);
    std::copy_n(begin + guard, bytes, piece.begin);
  }
}

OffloadContext& offload_context() {
  static thread_local OffloadContext context;
  return context;
}

}  // namespace lamina::test
