#include "data/token_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/io/file.h"
#include "core/io/hdf5.h"

namespace lamina {

namespace fs = std::filesystem;
using io::ElementType;
using io::Hdf5File;

namespace {

constexpr const char* format_name = "lamina tokens";

TokenFileInfo read_info(const Hdf5File& file) {
  const std::string name = file.path().string();
  if (!file.has_attribute("/", "format") || file.read_string("/", "format") != format_name)
    throw Error("{}: not a token file, expected one written by `lamina prepare`", name);
  if (const int64_t version = file.read_int("/", "format_version"); version != token_file_format_version)
    throw Error("{}: found format version {}, expected {}; prepare the data again", name, version,
                token_file_format_version);
  TokenFileInfo info;
  info.tokenizer = file.read_string("/", "tokenizer");
  info.tokenizer_hash = file.read_string("/", "tokenizer_hash");
  info.vocab_size = file.read_int("/", "vocab_size");
  info.end_of_document = static_cast<int32_t>(file.read_int("/", "end_of_document"));
  info.num_tokens = file.read_int("/", "num_tokens");
  info.num_documents = file.read_int("/", "num_documents");
  info.num_bytes = file.read_int("/", "num_bytes");
  info.sources = file.read_string("/", "sources");
  info.text_hash = file.read_string("/", "text_hash");
  info.tokens_hash = file.read_string("/", "tokens_hash");
  return info;
}

void expect_length(const Hdf5File& file, const char* dataset, int64_t expected) {
  const int64_t found = file.info(dataset).num_elements();
  if (found != expected)
    throw Error("{}: {}: found {} elements, expected {}; the file is damaged", file.path().string(), dataset, found,
                expected);
}

int64_t num_pieces(int64_t num_tokens) {
  return (num_tokens + tokens_per_piece - 1) / tokens_per_piece;
}

template <class T>
int32_t widen(const char* stored, std::span<int32_t> tokens) {
  uint32_t largest = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    T value;
    std::memcpy(&value, stored + i * sizeof(T), sizeof(T));
    largest = std::max(largest, static_cast<uint32_t>(value));
    tokens[i] = static_cast<int32_t>(value);
  }
  return static_cast<int32_t>(std::min(largest, uint32_t{0x7fffffff}));
}

}  // namespace

TokenFile TokenFile::open(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error))
    throw Error("{}: no such folder, expected one written by `lamina prepare`", folder.string());
  TokenFile result;
  result.folder_ = folder;
  const fs::path path = result.file();
  if (!fs::exists(path, error))
    throw Error("{}: not found, expected a folder written by `lamina prepare`", path.string());
  const Hdf5File file = Hdf5File::open(path);
  result.info_ = read_info(file);
  const TokenFileInfo& info = result.info_;
  if (info.num_tokens <= 0 || info.vocab_size <= 0 || info.end_of_document < 0 ||
      info.end_of_document >= info.vocab_size)
    throw Error("{}: found {} tokens of a vocabulary of {} with end of document {}; the file is damaged", path.string(),
                info.num_tokens, info.vocab_size, info.end_of_document);
  result.find_tokens(file);
  expect_length(file, "/checksums", num_pieces(info.num_tokens));
  expect_length(file, "/document_starts", info.num_documents);
  expect_length(file, "/checksums", static_cast<int64_t>(result.chunk_offsets_.size()));
  do result.descriptor_ = ::open(result.tokens_path_.c_str(), O_RDONLY | O_CLOEXEC);
  while (result.descriptor_ < 0 && errno == EINTR);
  if (result.descriptor_ < 0)
    throw Error("{}: can't open: {}", result.tokens_path_.string(), io::describe_errno(errno));
  for (const int64_t piece : {int64_t{0}, num_pieces(info.num_tokens) - 1}) {
    uint64_t checksum = 0;
    file.read("/checksums", ElementType::u64, piece, 1, &checksum);
    result.check_piece(piece, checksum);
  }
  return result;
}

void TokenFile::find_tokens(const Hdf5File& file) {
  const std::string name = file.path().string();
  if (!file.has_attribute("/", "tokens_file")) {
    tokens_path_ = file.path();
    const io::DatasetInfo tokens = file.info("/tokens");
    if (tokens.type != ElementType::u8 && tokens.type != ElementType::u16 && tokens.type != ElementType::u32)
      throw Error("{}: /tokens: expected u8, u16 or u32", name);
    token_bytes_ = io::size_of(tokens.type);
    expect_length(file, "/tokens", info_.num_tokens);
    chunk_offsets_ = file.chunk_offsets("/tokens");
    return;
  }
  tokens_path_ = file.read_string("/", "tokens_file");
  token_bytes_ = file.read_int("/", "token_bytes");
  const int64_t offset = file.read_int("/", "tokens_offset"), bytes = file.read_int("/", "tokens_file_bytes");
  std::error_code error;
  const auto found = fs::file_size(tokens_path_, error);
  if (error) throw Error("{}: not found, expected the tokens of {} there", tokens_path_.string(), name);
  if (static_cast<int64_t>(found) != bytes || offset < 0 || offset > bytes ||
      (token_bytes_ != 1 && token_bytes_ != 2 && token_bytes_ != 4) ||
      info_.num_tokens > (bytes - offset) / token_bytes_)
    throw Error("{}: found {} bytes, expected the {} that {} describes; prepare it again", tokens_path_.string(), found,
                bytes, name);
  for (int64_t piece = 0; piece < num_pieces(info_.num_tokens); ++piece)
    chunk_offsets_.push_back(offset + piece * tokens_per_piece * token_bytes_);
}

TokenFile::~TokenFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

TokenFile::TokenFile(TokenFile&& other) noexcept
    : folder_(std::move(other.folder_)),
      tokens_path_(std::move(other.tokens_path_)),
      info_(std::move(other.info_)),
      token_bytes_(other.token_bytes_),
      descriptor_(std::exchange(other.descriptor_, -1)),
      chunk_offsets_(std::move(other.chunk_offsets_)) {}

TokenFile& TokenFile::operator=(TokenFile&& other) noexcept {
  std::swap(folder_, other.folder_);
  std::swap(tokens_path_, other.tokens_path_);
  std::swap(info_, other.info_);
  std::swap(token_bytes_, other.token_bytes_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(chunk_offsets_, other.chunk_offsets_);
  return *this;
}

void TokenFile::read_bytes(int64_t begin, int64_t count, char* out) const {
  while (count > 0) {
    const int64_t in_chunk = begin % tokens_per_piece;
    const int64_t run = std::min(count, tokens_per_piece - in_chunk);
    off_t offset = chunk_offsets_[static_cast<size_t>(begin / tokens_per_piece)] + in_chunk * token_bytes_;
    for (auto left = static_cast<size_t>(run * token_bytes_); left > 0;) {
      const ssize_t got = ::pread(descriptor_, out, left, offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw Error("{}: can't read: {}", tokens_path_.string(), io::describe_errno(errno));
      if (got == 0)
        throw Error("{}: the file ends inside /tokens at token {}; it was truncated", tokens_path_.string(), begin);
      out += got;
      offset += got;
      left -= static_cast<size_t>(got);
    }
    begin += run;
    count -= run;
  }
}

void TokenFile::read(int64_t begin, std::span<int32_t> tokens) const {
  const auto count = static_cast<int64_t>(tokens.size());
  LAMINA_CHECK(begin >= 0 && begin <= num_tokens() - count, "tokens [{}, {}) of {}", begin, begin + count,
               num_tokens());
  if (tokens.empty()) return;
  std::vector<char> stored(static_cast<size_t>(count * token_bytes_));
  read_bytes(begin, count, stored.data());
  const int32_t largest = token_bytes_ == 1   ? widen<uint8_t>(stored.data(), tokens)
                          : token_bytes_ == 2 ? widen<uint16_t>(stored.data(), tokens)
                                              : widen<uint32_t>(stored.data(), tokens);
  if (largest >= vocab_size())
    throw Error("{}: found token id {} in tokens [{}, {}), expected ids below {}; the file is damaged",
                tokens_path_.string(), largest, begin, begin + count, vocab_size());
}

void TokenFile::check_piece(int64_t piece, uint64_t expected) const {
  const int64_t begin = piece * tokens_per_piece;
  const int64_t count = std::min(tokens_per_piece, num_tokens() - begin);
  std::vector<char> stored(static_cast<size_t>(count * token_bytes_));
  read_bytes(begin, count, stored.data());
  const uint64_t found = hash64(stored.data(), stored.size());
  if (found != expected)
    throw Error("{}: tokens [{}, {}) have checksum {}, expected {}; the file is damaged", tokens_path_.string(), begin,
                begin + count, hash_to_hex(found), hash_to_hex(expected));
}

std::unique_ptr<Tokenizer> TokenFile::make_tokenizer() const {
  const Hdf5File hdf5 = Hdf5File::open(file());
  std::string model;
  if (hdf5.has("/tokenizer")) {
    model.resize(static_cast<size_t>(hdf5.info("/tokenizer").num_elements()));
    hdf5.read("/tokenizer", ElementType::u8, 0, static_cast<int64_t>(model.size()), model.data());
  }
  std::unique_ptr<Tokenizer> tokenizer = make_stored_tokenizer(info_.tokenizer, model, file().string());
  if (tokenizer->hash() != info_.tokenizer_hash)
    throw Error("{}: /tokenizer has hash {}, expected {}; the file is damaged", file().string(), tokenizer->hash(),
                info_.tokenizer_hash);
  return tokenizer;
}

void TokenFile::verify() const {
  const Hdf5File hdf5 = Hdf5File::open(file());
  const int64_t pieces = num_pieces(num_tokens());
  StreamingHash all;
  int64_t num_documents = 0;
  std::vector<int32_t> tokens;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    uint64_t checksum = 0;
    hdf5.read("/checksums", ElementType::u64, piece, 1, &checksum);
    all.update(&checksum, sizeof(checksum));
    check_piece(piece, checksum);
    const int64_t begin = piece * tokens_per_piece;
    tokens.resize(static_cast<size_t>(std::min(tokens_per_piece, num_tokens() - begin)));
    read(begin, tokens);
    num_documents += std::count(tokens.begin(), tokens.end(), info_.end_of_document);
  }
  if (hash_to_hex(all.digest()) != info_.tokens_hash)
    throw Error("{}: /checksums have hash {}, expected {}; the file is damaged", file().string(),
                hash_to_hex(all.digest()), info_.tokens_hash);
  if (num_documents != info_.num_documents)
    throw Error("{}: found {} ends of documents, expected {}; the file is damaged", file().string(), num_documents,
                info_.num_documents);
  static_cast<void>(make_tokenizer());
}

struct TokenFileWriter::State {
  Hdf5File file;
  std::string tokenizer, tokenizer_hash;
  int64_t vocab_size;
  int32_t end_of_document;
  int64_t token_bytes;
  bool is_elsewhere;             // the tokens are not written
  std::vector<int32_t> piece;    // tokens that don't fill a chunk yet
  std::vector<uint64_t> starts;  // of documents, not written yet
  StreamingHash checksums;
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t document_start = 0;

  template <class T>
  void write_piece_as() {
    const std::vector<T> stored(piece.begin(), piece.end());
    if (!is_elsewhere) file.append("/tokens", stored.data(), static_cast<int64_t>(stored.size()));
    const uint64_t checksum = hash64(stored.data(), stored.size() * sizeof(T));
    checksums.update(&checksum, sizeof(checksum));
    file.append("/checksums", &checksum, 1);
    piece.clear();
  }

  void write_piece() {
    if (token_bytes == 1) write_piece_as<uint8_t>();
    if (token_bytes == 2) write_piece_as<uint16_t>();
    if (token_bytes == 4) write_piece_as<uint32_t>();
  }

  void write_starts() {
    file.append("/document_starts", starts.data(), static_cast<int64_t>(starts.size()));
    starts.clear();
  }
};

TokenFileWriter::TokenFileWriter(const fs::path& file, const Tokenizer& tokenizer, const TokenInput* elsewhere) {
  const int64_t vocab_size = tokenizer.vocab_size();
  const ElementType type = vocab_size <= 256     ? ElementType::u8
                           : vocab_size <= 65536 ? ElementType::u16
                                                 : ElementType::u32;
  state_ = std::make_unique<State>(State{.file = Hdf5File::create(file),
                                         .tokenizer = tokenizer.name(),
                                         .tokenizer_hash = tokenizer.hash(),
                                         .vocab_size = vocab_size,
                                         .end_of_document = tokenizer.end_of_document(),
                                         .token_bytes = elsewhere ? elsewhere->token_bytes : io::size_of(type),
                                         .is_elsewhere = elsewhere != nullptr,
                                         .piece = {},
                                         .starts = {},
                                         .checksums = {}});
  if (elsewhere) {
    state_->file.write_attribute("/", "tokens_file", elsewhere->file.string());
    state_->file.write_attribute("/", "tokens_file_bytes", static_cast<int64_t>(fs::file_size(elsewhere->file)));
    state_->file.write_attribute("/", "tokens_offset", elsewhere->offset);
    state_->file.write_attribute("/", "token_bytes", elsewhere->token_bytes);
  } else {
    state_->file.create_appendable("/tokens", type, tokens_per_piece);
  }
  state_->file.create_appendable("/document_starts", ElementType::u64, 4096);
  state_->file.create_appendable("/checksums", ElementType::u64, 4096);
  const std::string& model = tokenizer.model();
  if (!model.empty())
    state_->file.write("/tokenizer", ElementType::u8, std::vector<int64_t>{static_cast<int64_t>(model.size())},
                       model.data());
}

TokenFileWriter::~TokenFileWriter() = default;
TokenFileWriter::TokenFileWriter(TokenFileWriter&&) noexcept = default;
TokenFileWriter& TokenFileWriter::operator=(TokenFileWriter&&) noexcept = default;

void TokenFileWriter::append(std::span<const int32_t> tokens) {
  State& state = *state_;
  while (!tokens.empty()) {
    const size_t count = std::min(tokens.size(), static_cast<size_t>(tokens_per_piece) - state.piece.size());
    state.piece.insert(state.piece.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
    state.num_tokens += static_cast<int64_t>(count);
    tokens = tokens.subspan(count);
    if (static_cast<int64_t>(state.piece.size()) == tokens_per_piece) state.write_piece();
  }
}

void TokenFileWriter::end_document() {
  State& state = *state_;
  if (state.num_tokens == state.document_start && !state.is_elsewhere) return;
  append(std::span<const int32_t>(&state.end_of_document, 1));
  state.starts.push_back(static_cast<uint64_t>(state.document_start));
  state.document_start = state.num_tokens;
  ++state.num_documents;
  if (state.starts.size() == 4096) state.write_starts();
}

int64_t TokenFileWriter::num_tokens() const {
  return state_->num_tokens;
}
int64_t TokenFileWriter::num_documents() const {
  return state_->num_documents;
}

void TokenFileWriter::finish(int64_t num_bytes, const std::string& text_hash, const std::string& sources) {
  State& state = *state_;
  LAMINA_CHECK(state.document_start == state.num_tokens || state.is_elsewhere, "a document is open");
  if (!state.piece.empty()) state.write_piece();
  if (!state.starts.empty()) state.write_starts();
  Hdf5File& file = state.file;
  file.write_attribute("/", "format", std::string(format_name));
  file.write_attribute("/", "format_version", token_file_format_version);
  file.write_attribute("/", "tokenizer", state.tokenizer);
  file.write_attribute("/", "tokenizer_hash", state.tokenizer_hash);
  file.write_attribute("/", "vocab_size", state.vocab_size);
  file.write_attribute("/", "end_of_document", int64_t{state.end_of_document});
  file.write_attribute("/", "num_tokens", state.num_tokens);
  file.write_attribute("/", "num_documents", state.num_documents);
  file.write_attribute("/", "num_bytes", num_bytes);
  file.write_attribute("/", "sources", sources);
  file.write_attribute("/", "text_hash", text_hash);
  file.write_attribute("/", "tokens_hash", hash_to_hex(state.checksums.digest()));
  file.close();
}

}  // namespace lamina
