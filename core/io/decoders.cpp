#include "core/io/decoders.h"

#include <bzlib.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <vector>

#include "core/base/error.h"

namespace lamina::io {

namespace {

constexpr size_t compressed_block_bytes = size_t{1} << 17;
constexpr size_t most_at_once = size_t{1} << 30;  // the libraries count in 32 bits

// A block of the file, refilled when it is used up.
class Block {
 public:
  Block(InputStream::Source& source, const char* format)
      : source_(source), format_(format), data_(compressed_block_bytes) {}

  // The unused bytes; empty at the end of the file.
  std::string_view bytes() {
    if (begin_ == end_) {
      begin_ = 0;
      end_ = source_.read(data_.data(), data_.size());
    }
    return {data_.data() + begin_, end_ - begin_};
  }
  void keep(size_t count) { begin_ = end_ - count; }  // the last ones stay unused

  // Zeros up to the end of the file. Other bytes there are no padding.
  void expect_zeros() {
    for (std::string_view rest; !(rest = bytes()).empty(); keep(0))
      if (rest.find_first_not_of('\0') != std::string_view::npos)
        throw Error("{}: found other data after the zeros that pad the {} data", source_.name(), format_);
  }

  [[noreturn]] void truncated() const { throw Error("{}: the {} data is truncated", source_.name(), format_); }
  [[noreturn]] void invalid(std::string_view reason) const {
    throw Error("{}: not valid {} data: {}", source_.name(), format_, reason);
  }

 private:
  InputStream::Source& source_;
  const char* format_;
  std::vector<char> data_;
  size_t begin_ = 0, end_ = 0;
};

class Gzip final : public InputStream::Decoder {
 public:
  explicit Gzip(InputStream::Source& source) : block_(source, "gzip") {
    LAMINA_CHECK(inflateInit2(&state_, 15 + 16) == Z_OK);  // 16: gzip, not the bare zlib format
  }
  ~Gzip() override { inflateEnd(&state_); }

  size_t read(char* out, size_t size) override {
    state_.next_out = reinterpret_cast<Bytef*>(out);
    state_.avail_out = static_cast<uInt>(std::min(size, most_at_once));
    const uInt wanted = state_.avail_out;
    while (state_.avail_out == wanted) {
      const std::string_view input = block_.bytes();
      if (input.empty()) {
        if (in_member_ || !any_member_) block_.truncated();
        return 0;
      }
      if (!in_member_ && any_member_) {
        if (input.front() == '\0') {
          block_.expect_zeros();
          return 0;
        }
        LAMINA_CHECK(inflateReset(&state_) == Z_OK);
      }
      in_member_ = true;
      state_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(input.data()));
      state_.avail_in = static_cast<uInt>(input.size());
      const int result = inflate(&state_, Z_NO_FLUSH);
      block_.keep(state_.avail_in);
      if (result == Z_STREAM_END) {
        in_member_ = false;
        any_member_ = true;
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        block_.invalid(state_.msg != nullptr ? state_.msg : zError(result));
      }
    }
    return wanted - state_.avail_out;
  }

 private:
  Block block_;
  z_stream state_{};
  bool in_member_ = false, any_member_ = false;
};

class Zstd final : public InputStream::Decoder {
 public:
  explicit Zstd(InputStream::Source& source)
      : block_(source, "Zstandard"), state_(ZSTD_createDStream(), ZSTD_freeDStream) {
    LAMINA_CHECK(state_ != nullptr);
    ZSTD_DCtx_setParameter(state_.get(), ZSTD_d_windowLogMax, 31);  // files written with --long
  }

  size_t read(char* out, size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0) {
      // What the decoder holds back comes first: a full output buffer may have left data inside it.
      std::string_view input;
      if (!more_inside_) {
        input = block_.bytes();
        if (input.empty()) {
          if (in_frame_ || !any_frame_) block_.truncated();
          return 0;
        }
      }
      ZSTD_inBuffer source{input.data(), input.size(), 0};
      const size_t result = ZSTD_decompressStream(state_.get(), &output, &source);
      if (ZSTD_isError(result)) block_.invalid(ZSTD_getErrorName(result));
      if (!more_inside_) block_.keep(source.size - source.pos);
      in_frame_ = result != 0;
      any_frame_ = true;
      more_inside_ = in_frame_ && output.pos == output.size;
    }
    return output.pos;
  }

 private:
  Block block_;
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> state_;
  bool in_frame_ = false, any_frame_ = false, more_inside_ = false;
};

class Xz final : public InputStream::Decoder {
 public:
  explicit Xz(InputStream::Source& source) : block_(source, "xz") {
    LAMINA_CHECK(lzma_stream_decoder(&state_, UINT64_MAX, LZMA_CONCATENATED) == LZMA_OK);
  }
  ~Xz() override { lzma_end(&state_); }

  size_t read(char* out, size_t size) override {
    state_.next_out = reinterpret_cast<uint8_t*>(out);
    state_.avail_out = size;
    while (state_.avail_out == size && !at_end_) {
      const std::string_view input = block_.bytes();
      state_.next_in = reinterpret_cast<const uint8_t*>(input.data());
      state_.avail_in = input.size();
      const lzma_ret result = lzma_code(&state_, input.empty() ? LZMA_FINISH : LZMA_RUN);
      block_.keep(state_.avail_in);
      if (result == LZMA_BUF_ERROR) block_.truncated();
      if (result == LZMA_MEM_ERROR) block_.invalid("its dictionary doesn't fit into memory");
      if (result == LZMA_FORMAT_ERROR) block_.invalid("something else follows");
      if (result == LZMA_OPTIONS_ERROR) block_.invalid("it uses options that liblzma doesn't know");
      if (result != LZMA_OK && result != LZMA_STREAM_END) block_.invalid("it is damaged");
      at_end_ = result == LZMA_STREAM_END;
    }
    return size - state_.avail_out;
  }

 private:
  Block block_;
  lzma_stream state_ = LZMA_STREAM_INIT;
  bool at_end_ = false;
};

class Bzip2 final : public InputStream::Decoder {
 public:
  explicit Bzip2(InputStream::Source& source) : block_(source, "bzip2") {}
  ~Bzip2() override {
    if (in_stream_) BZ2_bzDecompressEnd(&state_);
  }

  size_t read(char* out, size_t size) override {
    const auto wanted = static_cast<unsigned>(std::min(size, most_at_once));
    state_.next_out = out;
    state_.avail_out = wanted;
    while (state_.avail_out == wanted) {
      const std::string_view input = block_.bytes();
      if (input.empty()) {
        if (in_stream_ || !any_stream_) block_.truncated();
        return 0;
      }
      if (!in_stream_) {
        if (any_stream_ && input.front() == '\0') {
          block_.expect_zeros();
          return 0;
        }
        LAMINA_CHECK(BZ2_bzDecompressInit(&state_, 0, 0) == BZ_OK);
        in_stream_ = true;
      }
      state_.next_in = const_cast<char*>(input.data());
      state_.avail_in = static_cast<unsigned>(input.size());
      const int result = BZ2_bzDecompress(&state_);
      block_.keep(state_.avail_in);
      if (result == BZ_STREAM_END) {
        BZ2_bzDecompressEnd(&state_);
        in_stream_ = false;
        any_stream_ = true;
      } else if (result != BZ_OK) {
        block_.invalid(result == BZ_DATA_ERROR_MAGIC ? "something else follows" : "it is damaged");
      }
    }
    return wanted - state_.avail_out;
  }

 private:
  Block block_;
  bz_stream state_{};
  bool in_stream_ = false, any_stream_ = false;
};

}  // namespace

std::unique_ptr<InputStream::Decoder> make_decoder(Compression compression, InputStream::Source& source) {
  switch (compression) {
    case Compression::none:
      return nullptr;
    case Compression::gzip:
      return std::make_unique<Gzip>(source);
    case Compression::zstd:
      return std::make_unique<Zstd>(source);
    case Compression::xz:
      return std::make_unique<Xz>(source);
    case Compression::bzip2:
      return std::make_unique<Bzip2>(source);
  }
  return nullptr;
}

}  // namespace lamina::io
