#include "core/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "core/io/guarded_copy.h"

namespace lamina::io {

namespace fs = std::filesystem;

namespace {

// Of a process's 1,024. Files beyond them that can't be mapped are opened for each read.
constexpr int max_kept = 256;
constinit std::atomic<int> num_kept{0};

FileStamp stamp_of(const struct stat& status) {
  return {status.st_dev, status.st_ino, status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

bool is_same_file(const FileStamp& a, const FileStamp& b) {
  return a.device == b.device && a.inode == b.inode;
}

void tell_first(const fs::path& path, const std::string& reason) {
  static constinit std::atomic_flag told;
  if (!told.test_and_set())
    log::warning("{}: can't be mapped into memory ({}); it is read with system calls, as are others like it",
                 path.string(), reason);
}

}  // namespace

class MappedFile::Descriptor {
 public:
  explicit Descriptor(const fs::path& path) : path_(path) {
    do number_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    while (number_ < 0 && errno == EINTR);
    if (number_ < 0) throw Error("{}: can't open: {}", path.string(), describe_errno(errno));
  }
  ~Descriptor() { ::close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }
  FileStamp stamp() const {
    struct stat status {};
    if (::fstat(number_, &status) != 0) throw Error("{}: can't look at it: {}", path_.string(), describe_errno(errno));
    return stamp_of(status);
  }

 private:
  const fs::path& path_;
  int number_;
};

// No MADV_RANDOM: what is random are windows of pieces that were read whole before, one by one.
MappedFile::MappedFile(fs::path path) : path_(std::move(path)) {
  auto descriptor = std::make_unique<Descriptor>(path_);
  opened_ = descriptor->stamp();
  if (opened_.bytes > 0) {
    if (!guard_copies()) {
      tell_first(path_, "a library keeps the handler of SIGBUS to itself");
    } else {
      const auto bytes = static_cast<size_t>(opened_.bytes);
      const void* const map = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor->number(), 0);
      if (map != MAP_FAILED) {
        map_ = {static_cast<const char*>(map), bytes};
        return;
      }
      tell_first(path_, describe_errno(errno));
    }
  }
  if (num_kept.fetch_add(1) < max_kept)
    kept_ = std::move(descriptor);
  else
    --num_kept;
}

MappedFile::~MappedFile() {
  if (is_mapped()) ::munmap(const_cast<char*>(map_.data()), map_.size());
  if (kept_) --num_kept;
}

FileRead MappedFile::read(int64_t offset, size_t bytes, char* out) const {
  const auto begin = static_cast<size_t>(offset);
  if (begin > map_.size() || bytes > map_.size() - begin || !copy_guarded(map_, map_.subspan(begin, bytes), out)) {
    const size_t found = read_by_calls(offset, bytes, out);
    return {found, stamp()};
  }
  const FileStamp now = stamp();
  // A page that the file's end now cuts is still there, with zeros behind the end.
  if (is_same_file(now, opened_))
    bytes = static_cast<size_t>(std::clamp<int64_t>(now.bytes - offset, 0, static_cast<int64_t>(bytes)));
  return {bytes, now};
}

// Also for pages that are gone: tells where the file ends, or why it can't be read.
size_t MappedFile::read_by_calls(int64_t offset, size_t bytes, char* out) const {
  std::unique_ptr<Descriptor> opened;
  if (!kept_) opened = std::make_unique<Descriptor>(path_);
  if (is_mapped() && !is_same_file(opened->stamp(), opened_))
    throw Error("{}: can't read bytes {} to {}: they are gone, and another file has taken its place", path_.string(),
                offset, offset + static_cast<int64_t>(bytes));
  const int descriptor = (kept_ ? *kept_ : *opened).number();
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(descriptor, out + done, bytes - done, offset + static_cast<int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error("{}: can't read: {}", path_.string(), describe_errno(errno));
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

FileStamp MappedFile::stamp() const {
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0) return stamp_of(status);
  if (errno == ENOENT || errno == ENOTDIR) return {};
  throw Error("{}: can't look at it: {}", path_.string(), describe_errno(errno));
}

}  // namespace lamina::io
