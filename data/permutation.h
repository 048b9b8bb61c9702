// A pseudorandom permutation of [0, size) that is evaluated at one point without a table: a Feistel network on the next
// power of four, walked until it falls into the range (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
#pragma once

#include <cstdint>

namespace lamina {

class Permutation {
 public:
  // Different (seed, stream) pairs give unrelated permutations.
  Permutation(uint64_t size, uint64_t seed, uint64_t stream);

  uint64_t operator()(uint64_t index) const;  // index < size

 private:
  uint64_t size_, seed_, stream_;
  int half_bits_;
};

}  // namespace lamina
