#include "core/device/staging_pool.h"

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>

#include "core/base/error.h"
#include "core/device/cuda_device.h"

namespace lamina {
namespace {

// An eighth more than asked for at most, so that sizes that vary a little find their memory again.
int64_t size_class(int64_t num_bytes) {
  constexpr uint64_t smallest = 4096;
  const uint64_t wanted = std::max(smallest, static_cast<uint64_t>(num_bytes));
  const uint64_t step = std::max<uint64_t>(smallest, std::bit_floor(wanted) / 8);
  return static_cast<int64_t>((wanted + step - 1) / step * step);
}

std::mutex mutex;  // of all pools: ranks may be threads on one device

}  // namespace

StagingPool::Piece StagingPool::take(int64_t num_bytes, Stream& stream) {
  const int64_t wanted = size_class(num_bytes);
  Piece piece;
  {
    const std::lock_guard lock(mutex);
    auto found = free_.end();
    int in_flight = 0;
    for (auto each = free_.begin(); each != free_.end(); ++each) {
      if (each->memory.num_bytes() != wanted) continue;
      if (each->released.reached()) {
        found = each;
        in_flight = limits_.max_in_flight;  // no other is wanted
        break;
      }
      // The oldest is waited for: that bounds the memory, which would else be a matter of timing.
      if (in_flight++ == 0) found = each;
    }
    if (in_flight >= limits_.max_in_flight) {
      piece = std::move(*found);
      free_.erase(found);
    }
  }
  if (piece.memory.data() == nullptr) return {Buffer::staging(wanted, stream.device(), ledger_, purpose_), {}};
  piece.released.wait(stream);
  return piece;
}

void StagingPool::give_back(Piece piece) {
  if (piece.memory.data() == nullptr || piece.memory.num_bytes() > limits_.largest_kept) return;
  const std::lock_guard lock(mutex);
  free_.push_back(std::move(piece));
}

const std::shared_ptr<StagingPool>& StagingPool::of(Stream& stream) {
  constexpr Limits limits{int64_t{64} << 20, 4};
  LAMINA_CHECK(stream.device().kind == DeviceKind::cuda, "staging memory of the CPU");
  const std::lock_guard lock(mutex);
  static auto& pools = *new std::map<int, std::shared_ptr<StagingPool>>;  // never freed, as what they hold
  std::shared_ptr<StagingPool>& pool = pools[stream.device().index];
  if (!pool) pool = std::make_shared<StagingPool>(nullptr, "host copies", limits);
  return pool;
}

void Staging::copy(void* to, const void* from, int64_t num_bytes, Stream& stream) {
  if (num_bytes == 0) return;
  cuda::copy(to, from, num_bytes, stream);
  piece_.released.record(stream);
}

}  // namespace lamina
