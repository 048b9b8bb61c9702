#include "core/io/input_stream.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina::io {

struct InputStream::Impl {
  explicit Impl(std::filesystem::path name) : path(std::move(name)) {
    do descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) throw Error("{}: can't open: {}", path.string(), describe_errno(errno));
    ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  virtual ~Impl() { ::close(descriptor); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  virtual size_t read(char* out, size_t size) { return read_file_bytes(out, size); }

  size_t read_file_bytes(char* out, size_t size) {
    for (;;) {
      const ssize_t count = ::read(descriptor, out, size);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw Error("{}: can't read: {}", path.string(), describe_errno(errno));
      position += count;
      return static_cast<size_t>(count);
    }
  }

  std::filesystem::path path;
  int descriptor = -1;
  int64_t position = 0;
};

namespace {

constexpr size_t compressed_block_bytes = size_t{1} << 17;

}  // namespace

struct InputStream::Gzip final : InputStream::Impl {
  explicit Gzip(std::filesystem::path name) : Impl(std::move(name)), input(compressed_block_bytes) {
    LAMINA_CHECK(inflateInit2(&state, 15 + 16) == Z_OK);  // 16: gzip, not the bare zlib format
  }
  ~Gzip() override { inflateEnd(&state); }

  size_t read(char* out, size_t size) override {
    state.next_out = reinterpret_cast<Bytef*>(out);
    state.avail_out = static_cast<uInt>(std::min(size, size_t{1} << 30));
    const uInt wanted = state.avail_out;
    while (state.avail_out == wanted) {
      if (state.avail_in == 0) {
        state.next_in = reinterpret_cast<Bytef*>(input.data());
        state.avail_in = static_cast<uInt>(read_file_bytes(input.data(), input.size()));
        if (state.avail_in == 0) {
          if (in_member || num_members == 0) throw Error("{}: the gzip data is truncated", path.string());
          return 0;
        }
      }
      if (!in_member && num_members > 0) LAMINA_CHECK(inflateReset(&state) == Z_OK);
      in_member = true;
      const int result = inflate(&state, Z_NO_FLUSH);
      if (result == Z_STREAM_END) {
        in_member = false;
        ++num_members;
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        throw Error("{}: not valid gzip data: {}", path.string(), state.msg != nullptr ? state.msg : zError(result));
      }
    }
    return wanted - state.avail_out;
  }

  z_stream state{};
  std::vector<char> input;
  bool in_member = false;
  int64_t num_members = 0;
};

struct InputStream::Zstd final : InputStream::Impl {
  explicit Zstd(std::filesystem::path name)
      : Impl(std::move(name)), input(compressed_block_bytes), state(ZSTD_createDStream(), ZSTD_freeDStream) {
    LAMINA_CHECK(state != nullptr);
    ZSTD_DCtx_setParameter(state.get(), ZSTD_d_windowLogMax, 31);  // files written with --long
  }

  size_t read(char* out, size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0) {
      // What the decoder holds back comes first: a full output buffer may have left data inside it.
      if (source.pos == source.size && !more_inside) {
        source = {input.data(), read_file_bytes(input.data(), input.size()), 0};
        if (source.size == 0) {
          if (in_frame || !any_frame) throw Error("{}: the Zstandard data is truncated", path.string());
          return 0;
        }
      }
      const size_t result = ZSTD_decompressStream(state.get(), &output, &source);
      if (ZSTD_isError(result))
        throw Error("{}: not valid Zstandard data: {}", path.string(), ZSTD_getErrorName(result));
      in_frame = result != 0;
      any_frame = true;
      more_inside = in_frame && output.pos == output.size;
    }
    return output.pos;
  }

  std::vector<char> input;
  ZSTD_inBuffer source{nullptr, 0, 0};
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> state;
  bool in_frame = false;
  bool any_frame = false;
  bool more_inside = false;
};

InputStream::InputStream(const std::filesystem::path& path) {
  if (path.extension() == ".gz") {
    impl_ = std::make_unique<Gzip>(path);
  } else if (path.extension() == ".zst") {
    impl_ = std::make_unique<Zstd>(path);
  } else {
    impl_ = std::make_unique<Impl>(path);
  }
}

InputStream::~InputStream() = default;
InputStream::InputStream(InputStream&&) noexcept = default;
InputStream& InputStream::operator=(InputStream&&) noexcept = default;

size_t InputStream::read(char* out, size_t size) {
  LAMINA_CHECK(size > 0);
  return impl_->read(out, size);
}

int64_t InputStream::file_bytes_read() const {
  return impl_->position;
}

}  // namespace lamina::io
