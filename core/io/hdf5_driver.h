// The file driver under every Hdf5File: plain POSIX reads and writes.
//
// It exists because the library (1.10) can't survive a write that fails while it closes a file: it keeps a handle to freed
// memory and crashes at exit. This driver remembers the first failure, drops that write and all later ones, and tells
// the library they succeeded; whoever drives the library asks `take_io_failure()` after each operation and throws.
#pragma once

#include <hdf5.h>

#include <string>

namespace lamina::io {

hid_t posix_driver();  // registered at the first call; negative when the library refuses it

// What went wrong in the file system since the last call ("disk full"), or nothing. Call with the library's lock held.
std::string take_io_failure();

}  // namespace lamina::io
