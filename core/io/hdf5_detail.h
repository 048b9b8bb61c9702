// What the parts of Hdf5File share: the lock around the library, scoped library objects, and errors.
#pragma once

#include <hdf5.h>

#include <filesystem>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace lamina::io {

// One lock around every use of the library: a build that isn't thread-safe works too. Taking it also silences the
// library's printing, which a thread-safe build keeps per thread, and forgets failures of earlier operations.
class Hdf5Lock {
 public:
  Hdf5Lock();

 private:
  std::lock_guard<std::recursive_mutex> guard_;
};

// Error "<path>: <object>: <what>: <reason>": the file system's reason, or else the library's innermost message.
[[noreturn]] void fail_hdf5(const std::filesystem::path& path, std::string_view object, std::string_view what);

// Throws when the file system refused something since the lock was taken, even though the library didn't notice.
void check_io(const std::filesystem::path& path, std::string_view object, std::string_view what);

// A library object that is closed at the end of the scope.
class Hdf5Id {
 public:
  Hdf5Id(hid_t id, herr_t (*closer)(hid_t), const std::filesystem::path& path, std::string_view object,
         std::string_view what)
      : id_(id), closer_(closer) {
    if (id_ < 0) fail_hdf5(path, object, what);
  }
  ~Hdf5Id() {
    if (id_ >= 0) closer_(id_);
  }
  Hdf5Id(Hdf5Id&& other) noexcept : id_(std::exchange(other.id_, -1)), closer_(other.closer_) {}
  Hdf5Id& operator=(Hdf5Id&&) = delete;
  operator hid_t() const { return id_; }

  // Data may be written as late as here, so the result counts.
  void close_written(const std::filesystem::path& path, std::string_view object, std::string_view what) {
    if (closer_(std::exchange(id_, -1)) < 0) fail_hdf5(path, object, what);
    check_io(path, object, what);
  }

 private:
  hid_t id_;
  herr_t (*closer_)(hid_t);
};

// For whatever is created: files of the same content are the same bytes.
void switch_time_stamps_off(hid_t creation_properties, const std::filesystem::path& path);

Hdf5Id file_access_properties(const std::filesystem::path& path);

}  // namespace lamina::io
