#include "core/io/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina::io {

AppendFile::AppendFile(const std::filesystem::path& path, Mode mode) : path_(path) {
  const int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (mode == Mode::create ? O_EXCL : 0);
  do fd_ = ::open(path.c_str(), flags, 0644);
  while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) throw Error("{}: can't open for appending: {}", path.string(), describe_errno(errno));
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

AppendFile::AppendFile(AppendFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

AppendFile& AppendFile::operator=(AppendFile&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    path_ = std::move(other.path_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void AppendFile::append(std::string_view bytes) {
  if (fd_ < 0) return;
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("{}: can't append: {}", path_.string(), describe_errno(errno));
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

}  // namespace lamina::io
