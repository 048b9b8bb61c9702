// Tokens where they lie: in one file or in several, one after the other. Read with pread and not mapped into memory: a file that another
// program cuts short is an error of a read, and would be the end of the process (SIGBUS) for a map; the pages are the kernel's either way.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

namespace lamina {

class StoredTokens {
 public:
  explicit StoredTokens(int64_t token_bytes);
  ~StoredTokens();
  StoredTokens(StoredTokens&&) noexcept;
  StoredTokens& operator=(StoredTokens&&) noexcept;

  // The next tokens lie in `file`, in pieces of `piece_tokens` (the last may be short) at `offsets`, in bytes. Throws Error when it
  // can't be opened.
  void add(const std::filesystem::path& file, const std::vector<int64_t>& offsets, int64_t piece_tokens,
           int64_t num_tokens);

  int64_t num_tokens() const;
  int64_t token_bytes() const;
  const std::filesystem::path& file_of(int64_t token) const;

  // The bytes of tokens [begin, begin + count), as stored. May be called from several threads. Throws Error naming the file.
  void read(int64_t begin, int64_t count, char* out) const;

  // Whether a file of tokens [begin, begin + count) isn't what it was at the call before: its length, its time of change, or another
  // file under its name. May be called from several threads.
  bool have_changed(int64_t begin, int64_t count) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lamina
