// What InputStream is made of: the bytes as they lie in the file, and a decoder for each compression.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "core/io/input_stream.h"

namespace lamina::io {

enum class Compression { none, gzip, zstd, xz, bzip2 };

class InputStream::Source {
 public:
  explicit Source(const std::filesystem::path& path);
  ~Source();
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  std::string_view peek(size_t size);  // the first bytes, fewer where the file ends; only before anything is read
  size_t read(char* out, size_t size);
  const std::string& name() const { return name_; }
  int64_t position() const { return position_; }

 private:
  size_t read_file(char* out, size_t size);

  std::string name_;
  int descriptor_ = -1;
  int64_t position_ = 0;
  std::string head_;  // was looked at and not read yet
};

class InputStream::Decoder {
 public:
  virtual ~Decoder() = default;
  virtual size_t read(char* out, size_t size) = 0;
};

// Null for none. `source` must live as long as the decoder.
std::unique_ptr<InputStream::Decoder> make_decoder(Compression compression, InputStream::Source& source);

}  // namespace lamina::io
