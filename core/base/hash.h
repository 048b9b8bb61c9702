// XXH3, 64 bits: checksums of files and checkpoint tensors, and names turned into RNG streams. Not cryptographic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace lamina {

uint64_t hash64(const void* data, size_t num_bytes);
inline uint64_t hash64(std::string_view text) {
  return hash64(text.data(), text.size());
}
std::string hash_to_hex(uint64_t hash);  // 16 lower-case hexadecimal digits

// The same hash over a sequence of pieces: update(a), update(b), digest() equals hash64(ab).
class StreamingHash {
 public:
  StreamingHash();
  ~StreamingHash();
  StreamingHash(StreamingHash&&) noexcept;
  StreamingHash& operator=(StreamingHash&&) noexcept;
  void update(const void* data, size_t num_bytes);
  uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lamina
