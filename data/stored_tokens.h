// Tokens where they lie: in one file or in several, one after the other, mapped into memory.
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

  // The bytes of tokens [begin, begin + count), as stored. May be called from several threads. Throws Error naming the file: one that
  // was cut short, or can't be read.
  void read(int64_t begin, int64_t count, char* out) const;

  // How often read() found, after it had its bytes, that a file isn't what it was before: its length, its time of change, or another
  // file under its name (the one that was opened is read on).
  uint64_t num_changes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lamina
