#include "core/io/lines_from_end.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina::io {

constexpr int64_t first_block_bytes = int64_t{16} << 10;
constexpr int64_t largest_block_bytes = int64_t{16} << 20;

LinesFromEnd::LinesFromEnd(const std::filesystem::path& path) : path_(path), block_bytes_(first_block_bytes) {
  do fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) throw Error("{}: can't open: {}", path.string(), describe_errno(errno));
  begin_ = ::lseek(fd_, 0, SEEK_END);
  size_t end = std::string::npos;
  while ((end = text_.rfind('\n')) == std::string::npos && read_block()) {
  }
  text_.resize(end == std::string::npos ? 0 : end + 1);
}

LinesFromEnd::~LinesFromEnd() {
  if (fd_ >= 0) ::close(fd_);
}

bool LinesFromEnd::read_block() {
  const int64_t count = std::min(begin_, block_bytes_);
  if (count <= 0) return false;
  std::string block(static_cast<size_t>(count), '\0');
  for (int64_t done = 0; done < count;) {
    const ssize_t n =
        ::pread(fd_, block.data() + done, static_cast<size_t>(count - done), static_cast<off_t>(begin_ - count + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("{}: can't read: {}", path_.string(), describe_errno(errno));
    if (n == 0) throw Error("{}: was cut while it was read", path_.string());
    done += n;
  }
  text_.insert(0, block);
  begin_ -= count;
  block_bytes_ = std::min(2 * block_bytes_, largest_block_bytes);  // a long line costs no more than twice its length
  return true;
}

std::optional<Line> LinesFromEnd::next() {
  if (text_.empty() && !read_block()) return std::nullopt;
  const size_t end = text_.size() - 1;  // of the line: its '\n'
  size_t before = std::string::npos;
  while ((before = end == 0 ? std::string::npos : text_.rfind('\n', text_.size() - 2)) == std::string::npos &&
         read_block()) {
  }
  const size_t begin = before == std::string::npos ? 0 : before + 1;
  Line line{begin_ + static_cast<int64_t>(begin), text_.substr(begin, text_.size() - 1 - begin)};
  text_.resize(begin);
  return line;
}

}  // namespace lamina::io
