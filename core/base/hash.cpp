#include "core/base/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "core/base/error.h"

namespace lamina {

uint64_t hash64(const void* data, size_t num_bytes) {
  return XXH3_64bits(data, num_bytes);
}

std::string hash_to_hex(uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

struct StreamingHash::State {
  XXH3_state_t* handle = XXH3_createState();
  State() {
    LAMINA_CHECK(handle != nullptr);
    XXH3_64bits_reset(handle);
  }
  ~State() { XXH3_freeState(handle); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

StreamingHash::StreamingHash() : state_(std::make_unique<State>()) {}
StreamingHash::~StreamingHash() = default;
StreamingHash::StreamingHash(StreamingHash&&) noexcept = default;
StreamingHash& StreamingHash::operator=(StreamingHash&&) noexcept = default;
void StreamingHash::update(const void* data, size_t num_bytes) {
  XXH3_64bits_update(state_->handle, data, num_bytes);
}
uint64_t StreamingHash::digest() const {
  return XXH3_64bits_digest(state_->handle);
}

}  // namespace lamina
