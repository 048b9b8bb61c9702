#include "core/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace lamina::io {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const char* what, int error_number) {
  throw Error("{}: {}: {}", path.string(), what, describe_errno(error_number));
}

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags, mode_t mode, const char* what) : path_(path) {
    do fd_ = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0) fail(path_, what, errno);
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }

  void sync() {
    while (::fsync(fd_) != 0) {
      if (errno == EINTR) continue;
      if (errno == EINVAL || errno == ENOTSUP) return;  // a file system that can't flush folders, or a pipe
      fail(path_, "can't flush to the disk", errno);
    }
  }

  void close() {
    if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail(path_, "can't close", errno);
  }

 private:
  fs::path path_;
  int fd_ = -1;
};

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

void write_all(const Descriptor& file, const fs::path& path, std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = ::write(file.get(), content.data(), content.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(path, "can't write", errno);
    }
    content.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace

std::string describe_errno(int error_number) {
  switch (error_number) {
    case ENOSPC:
      return "disk full";
    case EDQUOT:
      return "disk quota exceeded";
    default:
      return std::generic_category().message(error_number);
  }
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  // Unique in this process and among the processes of this machine that share the folder.
  static std::atomic<uint64_t> counter{0};
  fs::path temporary = path;
  temporary += fmt::format(".tmp-{}-{}", ::getpid(), counter.fetch_add(1));
  try {
    Descriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0666, "can't create");
    write_all(file, path, content);
    file.sync();
    file.close();
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail(path, "can't put the new file in place", errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  fsync_directory(folder_of(path));
}

void write_file_atomically(const fs::path& path, std::span<const uint8_t> content) {
  write_file_atomically(path, std::string_view(reinterpret_cast<const char*>(content.data()), content.size()));
}

std::string read_file(const fs::path& path) {
  Descriptor file(path, O_RDONLY, 0, "can't open");
  std::string content;
  struct stat status {};
  if (::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode))
    content.reserve(static_cast<size_t>(status.st_size));
  std::vector<char> buffer(size_t{1} << 16);
  for (;;) {
    const ssize_t count = ::read(file.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path, "can't read", errno);
    if (count == 0) return content;
    content.append(buffer.data(), static_cast<size_t>(count));
  }
}

void fsync_file(const fs::path& path) {
  Descriptor(path, O_RDONLY, 0, "can't open").sync();
}

void fsync_directory(const fs::path& path) {
  Descriptor(path, O_RDONLY | O_DIRECTORY, 0, "can't open").sync();
}

void fsync_tree(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->is_symlink()) continue;
    if (entry->is_directory()) {
      fsync_tree(entry->path());
    } else if (entry->is_regular_file()) {
      fsync_file(entry->path());
    }
  }
  if (error) fail(directory, "can't list", error.value());
  fsync_directory(directory);
}

void rename_durably(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    const int reason = errno;
    throw Error("{}: can't rename to {}: {}", from.string(), to.string(), describe_errno(reason));
  }
  fsync_directory(folder_of(to));
  if (folder_of(from) != folder_of(to)) fsync_directory(folder_of(from));
}

}  // namespace lamina::io
