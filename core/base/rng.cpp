#include "core/base/rng.h"

#include <cmath>
#include <numbers>

#include "core/base/hash.h"

namespace lamina {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    if (round > 0) {
      k[0] += 0x9E3779B9u;
      k[1] += 0xBB67AE85u;
    }
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
  }
  return c;
}

CounterRng::CounterRng(uint64_t seed, std::string_view stream_name) : seed_(seed), stream_(hash64(stream_name)) {}

namespace {

std::array<uint32_t, 4> draw(uint64_t seed, uint64_t stream, uint64_t index) {
  return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(stream),
                     static_cast<uint32_t>(stream >> 32)},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

double to_unit(uint32_t high, uint32_t low) {
  const uint64_t word = (uint64_t{high} << 32) | low;
  return static_cast<double>(word >> 11) * 0x1.0p-53;
}

}  // namespace

uint64_t CounterRng::bits(uint64_t index) const {
  const auto r = draw(seed_, stream_, index);
  return (uint64_t{r[0]} << 32) | r[1];
}

double CounterRng::uniform(uint64_t index) const {
  const auto r = draw(seed_, stream_, index);
  return to_unit(r[0], r[1]);
}

double CounterRng::normal(uint64_t index) const {
  const auto r = draw(seed_, stream_, index);
  const double u = 1.0 - to_unit(r[0], r[1]);  // (0, 1]: the logarithm stays finite
  const double v = to_unit(r[2], r[3]);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

uint64_t CounterRng::below(uint64_t index, uint64_t bound) const {
  __extension__ using wide = unsigned __int128;
  return static_cast<uint64_t>((static_cast<wide>(bits(index)) * bound) >> 64);
}

}  // namespace lamina
