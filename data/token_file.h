// A folder written by `lamina prepare`: one long array of token ids in tokens.h5, with the tokenizer that made it.
//
//   /tokens            u8, u16 or u32 [num_tokens], documents one after the other, each closed by end_of_document
//   /document_starts   u64 [num_documents], index of each document's first token
//   /checksums         u64, XXH3 of the stored bytes of every run of 65536 tokens (the last may be short)
//   /tokenizer         u8, the tokenizer's model (data/tokenizer.h); absent for bytes
// Where the tokens lie in files of another program there is no /tokens, but the attribute token_bytes (1, 2 or 4) and
//   /files             u8, a line of JSON for each file in order: file (absolute), bytes (its length), offset (of its first token, in
//                      bytes) and tokens (how many)
// Programs before /files wrote one file as the attributes tokens_file, tokens_file_bytes and tokens_offset.
// Attributes of "/": format, format_version, tokenizer, tokenizer_hash, vocab_size, end_of_document, num_tokens,
// num_documents, num_bytes (of text), sources, text_hash, tokens_hash (XXH3 of /checksums).
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/stored_tokens.h"
#include "data/token_input.h"
#include "data/tokenizer.h"

namespace lamina {

constexpr int64_t token_file_format_version = 1;
constexpr int64_t tokens_per_piece = 65536;  // per chunk of /tokens and per checksum

// Everything but the tokens.
struct TokenFileInfo {
  std::string tokenizer;
  std::string tokenizer_hash;
  int64_t vocab_size = 0;
  int32_t end_of_document = 0;
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t num_bytes = 0;
  std::string sources;
  std::string text_hash;    // the same for the same documents, however they were stored
  std::string tokens_hash;  // the same for the same tokens
};

namespace io {
class Hdf5File;
}

class TokenFile {
 public:
  // Reads the description and checks the lengths of all files and the first and last piece. Throws Error for a folder that is
  // missing, damaged, truncated or of another format.
  static TokenFile open(const std::filesystem::path& folder);
  const std::filesystem::path& folder() const { return folder_; }
  const TokenFileInfo& info() const { return info_; }
  int64_t num_tokens() const { return info_.num_tokens; }
  int64_t vocab_size() const { return info_.vocab_size; }
  const std::string& tokenizer_hash() const { return info_.tokenizer_hash; }

  // Tokens [begin, begin + tokens.size()). May be called from several threads; each id is checked against vocab_size. Of each piece the
  // checksum is compared before its first use, and again once its file's length or time of change is another.
  void read(int64_t begin, std::span<int32_t> tokens) const;

  std::vector<TokenInput> files_elsewhere() const;    // of tokens in place; empty: they are in this folder
  std::unique_ptr<Tokenizer> make_tokenizer() const;  // from the stored copy

  // Reads everything and compares every checksum and count. Throws Error with the first piece that differs.
  void verify() const;

 private:
  TokenFile(std::filesystem::path folder, TokenFileInfo info, StoredTokens tokens);
  std::filesystem::path file() const { return folder_ / "tokens.h5"; }
  void check_piece(int64_t piece) const;
  void check_pieces_once(int64_t begin, int64_t count, uint64_t num_changes) const;

  std::filesystem::path folder_;
  TokenFileInfo info_;
  StoredTokens tokens_;
  std::vector<uint64_t> checksums_;                      // per piece: 8 bytes for 65536 tokens
  std::unique_ptr<std::atomic<uint64_t>[]> checked_at_;  // per piece: 1 + the changes of files known then; 0: never
};

// Appends documents to a new tokens.h5. Of tokens that lie elsewhere only the description is written: what is appended must be they, in
// their order.
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& file, const Tokenizer& tokenizer,
                  std::span<const TokenInput> elsewhere = {});
  ~TokenFileWriter();
  TokenFileWriter(TokenFileWriter&&) noexcept;
  TokenFileWriter& operator=(TokenFileWriter&&) noexcept;

  void append(std::span<const int32_t> tokens);  // more of the open document
  void end_document();                           // appends end_of_document; nothing for an empty document

  int64_t num_tokens() const;
  int64_t num_documents() const;

  // Writes the description and closes the file.
  void finish(int64_t num_bytes, const std::string& text_hash, const std::string& sources);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lamina
