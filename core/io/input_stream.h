// A file read from its beginning, decompressed on the way when its name ends in .gz (gzip, also several members one
// after the other) or .zst (Zstandard, also several frames). Memory use doesn't grow with the file. Move-only.
// A damaged or truncated file is an Error that names it; the end of the file is reported only after all checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>

namespace lamina::io {

class InputStream {
 public:
  explicit InputStream(const std::filesystem::path& path);
  ~InputStream();
  InputStream(InputStream&&) noexcept;
  InputStream& operator=(InputStream&&) noexcept;

  // Up to `size` bytes, at least one; 0 at the end.
  size_t read(char* out, size_t size);

  int64_t file_bytes_read() const;  // position in the file as it lies on the disk, for progress

 private:
  struct Impl;
  struct Gzip;
  struct Zstd;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::io
