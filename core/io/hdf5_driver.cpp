#include "core/io/hdf5_driver.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/io/file.h"

namespace lamina::io {

namespace {

// Not destroyed at exit: the library may still close files then.
std::string& failure() {
  static auto* text = new std::string;
  return *text;
}

herr_t refuse(std::string reason) {
  failure() = std::move(reason);
  return -1;
}

struct PosixFile {
  H5FD_t base;  // first: the library sees only this part
  int descriptor;
  haddr_t end_of_allocation;
  haddr_t end_of_file;
  dev_t device;
  ino_t inode;
  bool writable;
  int write_error;  // errno of the first write that failed; from then on writes are dropped
};

PosixFile* self(H5FD_t* file) {
  return reinterpret_cast<PosixFile*>(file);
}
const PosixFile* self(const H5FD_t* file) {
  return reinterpret_cast<const PosixFile*>(file);
}

herr_t drop_write(PosixFile* file, int error_number) {
  if (file->write_error == 0) file->write_error = error_number;
  failure() = describe_errno(file->write_error);
  return 0;
}

H5FD_t* open_file(const char* name, unsigned flags, hid_t, haddr_t) {
  int mode = (flags & H5F_ACC_RDWR) ? O_RDWR : O_RDONLY;
  if (flags & H5F_ACC_CREAT) mode |= O_CREAT;
  if (flags & H5F_ACC_EXCL) mode |= O_EXCL;
  if (flags & H5F_ACC_TRUNC) mode |= O_TRUNC;
  int descriptor = -1;
  do descriptor = ::open(name, mode | O_CLOEXEC, 0666);
  while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) {
    refuse(describe_errno(errno));
    return nullptr;
  }
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || S_ISDIR(status.st_mode)) {
    refuse(S_ISDIR(status.st_mode) ? "it is a folder" : describe_errno(errno));
    ::close(descriptor);
    return nullptr;
  }
  auto* file = new PosixFile{};
  file->descriptor = descriptor;
  file->end_of_file = static_cast<haddr_t>(status.st_size);
  file->device = status.st_dev;
  file->inode = status.st_ino;
  file->writable = (flags & H5F_ACC_RDWR) != 0;
  return &file->base;
}

herr_t close_file(H5FD_t* base) {
  PosixFile* file = self(base);
  // NFS reports a full disk or a quota as late as here.
  if (::close(file->descriptor) != 0 && errno != EINTR && file->writable) drop_write(file, errno);
  if (file->write_error != 0) failure() = describe_errno(file->write_error);
  delete file;
  return 0;
}

int compare_files(const H5FD_t* a, const H5FD_t* b) {
  const std::pair<dev_t, ino_t> left{self(a)->device, self(a)->inode};
  const std::pair<dev_t, ino_t> right{self(b)->device, self(b)->inode};
  return left < right ? -1 : (right < left ? 1 : 0);
}

herr_t query_features(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
  return 0;
}

haddr_t get_end_of_allocation(const H5FD_t* base, H5FD_mem_t) {
  return self(base)->end_of_allocation;
}

herr_t set_end_of_allocation(H5FD_t* base, H5FD_mem_t, haddr_t address) {
  self(base)->end_of_allocation = address;
  return 0;
}

// Dropped writes count: the library must find the file as long as it believes it is.
haddr_t get_end_of_file(const H5FD_t* base, H5FD_mem_t) {
  return self(base)->end_of_file;
}

herr_t get_descriptor(H5FD_t* base, hid_t, void** handle) {
  *handle = &self(base)->descriptor;
  return 0;
}

herr_t read_bytes(H5FD_t* base, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* buffer) {
  auto* out = static_cast<char*>(buffer);
  auto offset = static_cast<off_t>(address);
  while (size > 0) {
    const ssize_t count = ::pread(self(base)->descriptor, out, size, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return refuse(describe_errno(errno));
    if (count == 0) {  // allocated but never written: zeros, as in a sparse file
      std::memset(out, 0, size);
      return 0;
    }
    out += count;
    offset += count;
    size -= static_cast<size_t>(count);
  }
  return 0;
}

herr_t write_bytes(H5FD_t* base, H5FD_mem_t, hid_t, haddr_t address, size_t size, const void* buffer) {
  PosixFile* file = self(base);
  file->end_of_file = std::max(file->end_of_file, address + size);
  const auto* in = static_cast<const char*>(buffer);
  auto offset = static_cast<off_t>(address);
  while (size > 0 && file->write_error == 0) {
    const ssize_t count = ::pwrite(file->descriptor, in, size, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return drop_write(file, errno);
    in += count;
    offset += count;
    size -= static_cast<size_t>(count);
  }
  return file->write_error == 0 ? 0 : drop_write(file, file->write_error);
}

herr_t truncate_file(H5FD_t* base, hid_t, hbool_t) {
  PosixFile* file = self(base);
  if (!file->writable || file->end_of_allocation == file->end_of_file) return 0;
  file->end_of_file = file->end_of_allocation;
  if (file->write_error != 0) return drop_write(file, file->write_error);
  if (::ftruncate(file->descriptor, static_cast<off_t>(file->end_of_allocation)) != 0) return drop_write(file, errno);
  return 0;
}

herr_t lock_file(H5FD_t* base, hbool_t exclusive) {
  if (::flock(self(base)->descriptor, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0) return 0;
  if (errno == EWOULDBLOCK)
    return refuse("another program has it open for writing, or reads it while it is to be written");
  return 0;  // file systems without locks are common on clusters
}

herr_t unlock_file(H5FD_t* base) {
  ::flock(self(base)->descriptor, LOCK_UN);
  return 0;
}

H5FD_class_t make_driver_class() {
  H5FD_class_t driver{};
#ifdef H5FD_CLASS_VERSION  // HDF5 1.14 and newer
  driver.version = H5FD_CLASS_VERSION;
  driver.value = 600;  // names the driver in a process; from 512 on they are free for private use
#endif
  driver.name = "lamina_posix";
  driver.maxaddr = (haddr_t{1} << 62) - 1;
  driver.fc_degree = H5F_CLOSE_WEAK;
  driver.open = open_file;
  driver.close = close_file;
  driver.cmp = compare_files;
  driver.query = query_features;
  driver.get_eoa = get_end_of_allocation;
  driver.set_eoa = set_end_of_allocation;
  driver.get_eof = get_end_of_file;
  driver.get_handle = get_descriptor;
  driver.read = read_bytes;
  driver.write = write_bytes;
  driver.truncate = truncate_file;
  driver.lock = lock_file;
  driver.unlock = unlock_file;
  const H5FD_mem_t free_lists[H5FD_MEM_NTYPES] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(free_lists), std::end(free_lists), driver.fl_map);
  return driver;
}

}  // namespace

hid_t posix_driver() {
  static const H5FD_class_t driver_class = make_driver_class();
  static const hid_t id = H5FDregister(&driver_class);
  return id;
}

std::string take_io_failure() {
  return std::exchange(failure(), {});
}

}  // namespace lamina::io
