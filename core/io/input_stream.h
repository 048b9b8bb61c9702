// A file, or standard input, read from its beginning and decompressed on the way. Its first bytes decide how, not its name: gzip (also
// several members, and zeros after the last, as on a tape), Zstandard and xz (also several frames or streams), bzip2
// (the same), or uncompressed. Memory use doesn't grow with the file. Move-only.
// A damaged or truncated file is an Error that names it; the end of the file is reported only after all checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace lamina::io {

inline constexpr const char* standard_input = "-";

class InputStream {
 public:
  explicit InputStream(const std::filesystem::path& path);  // or `standard_input`
  ~InputStream();
  InputStream(InputStream&&) noexcept;
  InputStream& operator=(InputStream&&) noexcept;

  // Up to `size` bytes, at least one; 0 at the end.
  size_t read(char* out, size_t size);

  int64_t file_bytes_read() const;  // position in the file as it lies on the disk, for progress
  bool is_compressed() const;

  class Source;
  class Decoder;

 private:
  std::unique_ptr<Source> source_;
  std::unique_ptr<Decoder> decoder_;  // null where nothing is compressed
};

// "standard input", or the path.
std::string describe_input(const std::filesystem::path& path);

}  // namespace lamina::io
