// A file that is read where it lies, mapped into memory: without a copy on disk, its pages shared by all processes of a host. Another
// program may change, replace or cut it meanwhile; that gives what pread() would give, never the end of the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace lamina::io {

// All zero: there is no file under the name.
struct FileStamp {
  uint64_t device = 0, inode = 0;
  int64_t bytes = 0;
  int64_t seconds = 0, nanoseconds = 0;  // of the last change
  bool operator==(const FileStamp&) const = default;
};

struct FileRead {
  size_t bytes;     // found; fewer than asked for only where the file ends
  FileStamp stamp;  // of what stood under the name after that
};

class MappedFile {
 public:
  // Where the system refuses the map (some network file systems, a limit on addresses) the file is read with system calls, and the log
  // says so for the first one. Throws Error when it can't be opened.
  explicit MappedFile(std::filesystem::path path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  bool is_mapped() const { return !map_.empty(); }
  const FileStamp& stamp_at_open() const { return opened_; }

  // Copies bytes [offset, offset + bytes) to `out`. A file that was replaced under its name is read on as it was. May be called from
  // several threads. Throws Error naming the file when it can't be read.
  FileRead read(int64_t offset, size_t bytes, char* out) const;

 private:
  class Descriptor;
  size_t read_by_calls(int64_t offset, size_t bytes, char* out) const;
  FileStamp stamp() const;

  std::filesystem::path path_;
  FileStamp opened_;
  std::span<const char> map_;
  std::unique_ptr<Descriptor> kept_;  // only of some files that aren't mapped
};

}  // namespace lamina::io
