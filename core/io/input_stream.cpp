#include "core/io/input_stream.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "core/base/error.h"
#include "core/io/decoders.h"
#include "core/io/file.h"

namespace lamina::io {

namespace {

constexpr size_t longest_magic = 10;

struct Magic {
  Compression compression;
  std::string_view bytes;
  std::string_view ending;  // of a file's name, used where the file is too short to tell
};

// Those of bzip2 have a digit after BZh, then the mark of a block or of the end.
constexpr Magic magics[] = {
    {Compression::gzip, "\x1f\x8b", ".gz"},
    {Compression::zstd, "\x28\xb5\x2f\xfd", ".zst"},
    {Compression::xz,
     std::string_view("\xfd"
                      "7zXZ\0",
                      6),
     ".xz"},
    {Compression::bzip2, "BZh", ".bz2"},
};

bool is_bzip2(std::string_view head) {
  return head.size() >= longest_magic && head[3] >= '1' && head[3] <= '9' &&
         (head.substr(4, 6) == "1AY&SY" || head.substr(4, 6) == "\x17\x72\x45\x38\x50\x90");
}

// A Zstandard file may begin with a frame to be skipped, as those of pzstd do.
bool is_skippable_zstd(std::string_view head) {
  return head.size() >= 4 && (static_cast<unsigned char>(head[0]) & 0xF0) == 0x50 &&
         head.substr(1, 3) == "\x2a\x4d\x18";
}

Compression compression_of(std::string_view head, const std::filesystem::path& path) {
  if (is_skippable_zstd(head)) return Compression::zstd;
  for (const Magic& magic : magics) {
    const bool matches = head.starts_with(magic.bytes);
    if (matches && (magic.compression != Compression::bzip2 || is_bzip2(head))) return magic.compression;
    const bool is_cut = head.size() < longest_magic && (matches || magic.bytes.starts_with(head));
    if (is_cut && path.extension() == magic.ending) return magic.compression;
  }
  return Compression::none;
}

}  // namespace

InputStream::Source::Source(const std::filesystem::path& path) : name_(describe_input(path)) {
  if (path == standard_input) {
    descriptor_ = ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
  } else {
    do descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    while (descriptor_ < 0 && errno == EINTR);
  }
  if (descriptor_ < 0) throw Error("{}: can't open: {}", name_, describe_errno(errno));
  ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_SEQUENTIAL);
}

InputStream::Source::~Source() {
  ::close(descriptor_);
}

std::string_view InputStream::Source::peek(size_t size) {
  while (head_.size() < size) {
    char more[64];
    const size_t count = read_file(more, std::min(sizeof more, size - head_.size()));
    if (count == 0) break;
    head_.append(more, count);
  }
  return head_;
}

size_t InputStream::Source::read(char* out, size_t size) {
  if (head_.empty()) return read_file(out, size);
  const size_t count = std::min(size, head_.size());
  head_.copy(out, count);
  head_.erase(0, count);
  return count;
}

size_t InputStream::Source::read_file(char* out, size_t size) {
  for (;;) {
    const ssize_t count = ::read(descriptor_, out, size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error("{}: can't read: {}", name_, describe_errno(errno));
    position_ += count;
    return static_cast<size_t>(count);
  }
}

InputStream::InputStream(const std::filesystem::path& path) : source_(std::make_unique<Source>(path)) {
  // A folder can be opened, and says what it is when it is read.
  std::string_view head;
  if (!std::filesystem::is_directory(path)) head = source_->peek(longest_magic);
  decoder_ = make_decoder(compression_of(head, path), *source_);
}

InputStream::~InputStream() = default;
InputStream::InputStream(InputStream&&) noexcept = default;
InputStream& InputStream::operator=(InputStream&&) noexcept = default;

size_t InputStream::read(char* out, size_t size) {
  LAMINA_CHECK(size > 0);
  return decoder_ ? decoder_->read(out, size) : source_->read(out, size);
}

int64_t InputStream::file_bytes_read() const {
  return source_->position();
}

bool InputStream::is_compressed() const {
  return decoder_ != nullptr;
}

std::string describe_input(const std::filesystem::path& path) {
  return path == standard_input ? "standard input" : path.string();
}

}  // namespace lamina::io
