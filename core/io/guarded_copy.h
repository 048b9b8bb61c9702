// A copy from mapped pages that may not be there: the kernel answers with SIGBUS when the file was cut short or can't be read, which by
// default ends the process.
//
// The first call of guard_copies() puts a handler in place, which stays. It takes only faults of copy_guarded() on the same thread inside
// the map; every other SIGBUS goes to the handler that was there before, or else ends the process as always. A library that puts its own
// handler in place later has the signal to itself until guard_copies() is called again.
#pragma once

#include <cstddef>
#include <span>

namespace lamina::io {

// False when the handler can't be put in place: libraries may keep SIGBUS to themselves. Call it for each map.
bool guard_copies();

// `map` is the whole mapping, `from` of it is copied. False when pages of `from` are not there; `out` is then half written. SIGBUS must not be
// blocked on this thread.
bool copy_guarded(std::span<const char> map, std::span<const char> from, char* out) noexcept;

}  // namespace lamina::io
