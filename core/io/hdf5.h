// HDF5 files through the C library (the only place that sees hdf5.h). Owns the handle; move-only. Errors are Error with
// the file's path, the object's path and what failed; the library's own error stack is not printed.
// Thread safety: Debian's library is built thread-safe or not; calls are serialised by a lock in hdf5.cpp.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace lamina::io {

enum class ElementType : uint8_t { u8, u16, u32, u64, i32, i64, f32, f64 };
int64_t size_of(ElementType type);

// The library that runs.
struct Hdf5Library {
  std::string version;  // "1.10.7"
  bool is_threadsafe = false;
};
Hdf5Library hdf5_library();

struct DatasetInfo {
  ElementType type;
  std::vector<int64_t> shape;
  int64_t num_elements() const;
};

// A run of consecutive elements (row-major order) of a logical dataset, stored as a one-dimensional dataset elsewhere.
struct VirtualPiece {
  int64_t begin, end;   // element range in the logical dataset
  std::string file;     // relative to the file that holds the virtual dataset
  std::string dataset;  // path in that file; begins at source_begin
  int64_t source_begin = 0;
  int64_t source_size = 0;  // elements of the source dataset
};

class Hdf5File {
 public:
  static Hdf5File create(const std::filesystem::path& path);  // truncates
  static Hdf5File open(const std::filesystem::path& path);    // read-only
  static Hdf5File open_for_append(const std::filesystem::path& path);
  ~Hdf5File();
  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  bool has(const std::string& object) const;
  std::vector<std::string> list(const std::string& group) const;  // names of the links in a group, sorted
  DatasetInfo info(const std::string& dataset) const;

  // Creates groups on the way. Data is contiguous, row-major.
  void write(const std::string& dataset, ElementType type, std::span<const int64_t> shape, const void* data);
  void create_appendable(const std::string& dataset, ElementType type, int64_t chunk_elements);
  void append(const std::string& dataset, const void* data, int64_t count);
  void write_virtual(const std::string& dataset, ElementType type, std::span<const int64_t> shape,
                     std::span<const VirtualPiece> pieces);

  // Elements [begin, begin + count) in row-major order, converted to `type` by the library.
  void read(const std::string& dataset, ElementType type, int64_t begin, int64_t count, void* out) const;
  // Byte offset of a contiguous dataset's data in the file, or -1 when it is chunked or virtual.
  int64_t contiguous_offset(const std::string& dataset) const;
  // Byte offsets of the chunks of an appendable dataset, in order: with them a reader needs no library and no lock.
  std::vector<int64_t> chunk_offsets(const std::string& dataset) const;

  // Attributes of "/" or of any group or dataset. Writing replaces.
  void write_attribute(const std::string& object, const std::string& name, const std::string& value);
  void write_attribute(const std::string& object, const std::string& name, int64_t value);
  void write_attribute(const std::string& object, const std::string& name, double value);
  bool has_attribute(const std::string& object, const std::string& name) const;
  std::string read_string(const std::string& object, const std::string& name) const;
  int64_t read_int(const std::string& object, const std::string& name) const;
  double read_double(const std::string& object, const std::string& name) const;

  void flush();
  void
  close();  // throws Error when the library can't write what it buffered (a full disk); the destructor doesn't throw

 private:
  Hdf5File(std::filesystem::path path, int64_t handle) : path_(std::move(path)), handle_(handle) {}
  std::filesystem::path path_;
  int64_t handle_ = -1;
};

}  // namespace lamina::io
