#include "core/io/hdf5.h"

#include <hdf5.h>

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/io/hdf5_detail.h"
#include "core/io/hdf5_driver.h"

namespace lamina::io {

namespace fs = std::filesystem;

namespace {

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex instance;
  return instance;
}

herr_t keep_first(unsigned, const H5E_error2_t* error, void* out) {
  auto& text = *static_cast<std::string*>(out);
  if (text.empty() && error->desc != nullptr) text = error->desc;
  return 0;
}

}  // namespace

Hdf5Library hdf5_library() {
  const Hdf5Lock lock;
  unsigned major = 0, minor = 0, release = 0;
  hbool_t is_threadsafe = false;
  if (H5get_libversion(&major, &minor, &release) < 0) return {"unknown", false};
  H5is_library_threadsafe(&is_threadsafe);
  return {fmt::format("{}.{}.{}", major, minor, release), is_threadsafe};
}

Hdf5Lock::Hdf5Lock() : guard_(library_mutex()) {
  thread_local const bool silenced = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  static_cast<void>(silenced);
  take_io_failure();
}

void fail_hdf5(const fs::path& path, std::string_view object, std::string_view what) {
  std::string reason = take_io_failure();
  if (reason.empty()) H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &reason);
  if (reason.empty()) reason = "the HDF5 library gives no reason";
  std::replace(reason.begin(), reason.end(), '\n', ' ');
  H5Eclear2(H5E_DEFAULT);
  if (object.empty()) throw Error("{}: {}: {}", path.string(), what, reason);
  throw Error("{}: {}: {}: {}", path.string(), object, what, reason);
}

void check_io(const fs::path& path, std::string_view object, std::string_view what) {
  const std::string reason = take_io_failure();
  if (reason.empty()) return;
  if (object.empty()) throw Error("{}: {}: {}", path.string(), what, reason);
  throw Error("{}: {}: {}: {}", path.string(), object, what, reason);
}

Hdf5Id file_access_properties(const fs::path& path) {
  Hdf5Id properties(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, path, "", "can't set up file access");
  // The 1.8 object headers lift the 64 KiB limit on an attribute; virtual datasets come with 1.10.
  const hid_t driver = posix_driver();
  if (driver < 0) fail_hdf5(path, "", "can't register the file driver with the HDF5 library");
  if (H5Pset_libver_bounds(properties, H5F_LIBVER_V18, H5F_LIBVER_LATEST) < 0 ||
      H5Pset_driver(properties, driver, nullptr) < 0)
    fail_hdf5(path, "", "can't set up file access");
  return properties;
}

void switch_time_stamps_off(hid_t creation_properties, const fs::path& path) {
  if (H5Pset_obj_track_times(creation_properties, false) < 0) fail_hdf5(path, "", "can't switch time stamps off");
}

Hdf5File Hdf5File::create(const fs::path& path) {
  const Hdf5Lock lock;
  const Hdf5Id properties = file_access_properties(path);
  const Hdf5Id creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, path, "", "can't set up");
  switch_time_stamps_off(creation, path);
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, properties);
  if (file < 0) fail_hdf5(path, "", "can't create");
  return Hdf5File(path, file);
}

Hdf5File Hdf5File::open(const fs::path& path) {
  const Hdf5Lock lock;
  const Hdf5Id properties = file_access_properties(path);
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, properties);
  if (file < 0) fail_hdf5(path, "", "can't open as HDF5");
  return Hdf5File(path, file);
}

Hdf5File Hdf5File::open_for_append(const fs::path& path) {
  const Hdf5Lock lock;
  const Hdf5Id properties = file_access_properties(path);
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, properties);
  if (file < 0) fail_hdf5(path, "", "can't open as HDF5 for writing");
  return Hdf5File(path, file);
}

Hdf5File::~Hdf5File() {
  if (handle_ < 0) return;
  const Hdf5Lock lock;
  H5Fclose(handle_);
}

Hdf5File::Hdf5File(Hdf5File&& other) noexcept
    : path_(std::move(other.path_)), handle_(std::exchange(other.handle_, -1)) {}

Hdf5File& Hdf5File::operator=(Hdf5File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(handle_, other.handle_);
  return *this;
}

bool Hdf5File::has(const std::string& object) const {
  const Hdf5Lock lock;
  // A link below a missing group is an error to the library, so ask from the root downwards.
  for (size_t at = 0; at != std::string::npos && at < object.size();) {
    at = object.find('/', at + 1);
    const std::string prefix = object.substr(0, at);
    if (prefix.empty() || prefix == "/") continue;
    const htri_t exists = H5Lexists(handle_, prefix.c_str(), H5P_DEFAULT);
    if (exists < 0) fail_hdf5(path_, object, "can't look up");
    if (exists == 0) return false;
  }
  return true;
}

std::vector<std::string> Hdf5File::list(const std::string& group) const {
  const Hdf5Lock lock;
  const Hdf5Id id(H5Gopen2(handle_, group.c_str(), H5P_DEFAULT), H5Gclose, path_, group, "can't open group");
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  if (H5Literate(id, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, add, &names) < 0) fail_hdf5(path_, group, "can't list");
  std::sort(names.begin(), names.end());
  return names;
}

void Hdf5File::flush() {
  const Hdf5Lock lock;
  if (H5Fflush(handle_, H5F_SCOPE_LOCAL) < 0) fail_hdf5(path_, "", "can't write");
  check_io(path_, "", "can't write");
}

void Hdf5File::close() {
  if (handle_ < 0) return;
  const Hdf5Lock lock;
  if (H5Fclose(std::exchange(handle_, -1)) < 0) fail_hdf5(path_, "", "can't write");
  check_io(path_, "", "can't write");
}

}  // namespace lamina::io
