// Files in the safetensors format: 8 bytes with the header's length (little-endian), the header (JSON: of each tensor its
// dtype, shape and place), and the tensors' bytes, without gaps, in the header's order. The header is padded with spaces to a
// multiple of 8, and tensors are laid out by falling size of their elements, so that each is aligned to its own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/shape.h"
#include "trainer/checkpoint/checkpoint_files.h"

namespace lamina {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  int64_t num_bytes() const { return shape.num_elements() * size_of(dtype); }
};

// Writes one tensor after the other, in the order of tensors(). Move-only. A file that was not finished is left for its folder's
// owner to remove.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsEntry> tensors);
  ~SafetensorsWriter();
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&& other) noexcept;

  const std::vector<SafetensorsEntry>& tensors() const { return tensors_; }
  void write(const void* data, int64_t num_bytes);  // of the next tensor, whole
  void finish();                                    // after the last one: the file is on the disk

 private:
  void append(const void* data, int64_t num_bytes);

  std::filesystem::path path_;
  std::vector<SafetensorsEntry> tensors_;
  size_t next_ = 0;
  int fd_ = -1;
};

// Opens and checks everything but the values: the header's length and syntax, names, dtypes (F64, F32, BF16, I32), shapes against
// lengths, and that the tensors cover the file once. Error naming the file and the tensor. Move-only.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const std::vector<SafetensorsEntry>& tensors() const { return tensors_; }  // by place
  bool has(const std::string& name) const { return index_.contains(name); }
  const SafetensorsEntry& entry(const std::string& name) const;                   // Error when it is not there
  void read(const std::string& name, std::span<char> out) const;                  // entry(name).num_bytes()
  void read(const std::string& name, int64_t offset, std::span<char> out) const;  // bytes of it from `offset` on

 private:
  size_t index_of(const std::string& name) const;

  std::filesystem::path path_;
  RawFile file_;
  std::vector<SafetensorsEntry> tensors_;
  std::vector<int64_t> offsets_;  // in the file
  std::map<std::string, size_t> index_;
};

}  // namespace lamina
