#include "data/token_file.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "core/base/error.h"
#include "core/base/hash.h"
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

// What lies in files of others.
std::vector<TokenInput> read_files(const Hdf5File& file) {
  std::vector<TokenInput> inputs;
  if (!file.has("/files")) {  // of an older program
    TokenInput& input = inputs.emplace_back();
    input.file = file.read_string("/", "tokens_file");
    input.file_bytes = file.read_int("/", "tokens_file_bytes");
    input.offset = file.read_int("/", "tokens_offset");
    input.num_tokens = file.read_int("/", "num_tokens");
    return inputs;
  }
  std::string lines(static_cast<size_t>(file.info("/files").num_elements()), '\0');
  file.read("/files", ElementType::u8, 0, static_cast<int64_t>(lines.size()), lines.data());
  std::istringstream in(lines);
  for (std::string line; std::getline(in, line);) {
    try {
      const nlohmann::json json = nlohmann::json::parse(line);
      TokenInput& input = inputs.emplace_back();
      input.file = json.at("file").get<std::string>();
      input.file_bytes = json.at("bytes").get<int64_t>();
      input.offset = json.at("offset").get<int64_t>();
      input.num_tokens = json.at("tokens").get<int64_t>();
    } catch (const nlohmann::json::exception& failure) {
      throw Error("{}: /files: line {}: {}; the file is damaged", file.path().string(), inputs.size(), failure.what());
    }
  }
  return inputs;
}

std::string files_to_lines(std::span<const TokenInput> inputs) {
  std::string lines;
  for (const TokenInput& input : inputs)
    lines += nlohmann::ordered_json{{"file", input.file.string()},
                                    {"bytes", input.file_bytes},
                                    {"offset", input.offset},
                                    {"tokens", input.num_tokens}}
                 .dump() +
             "\n";
  return lines;
}

StoredTokens find_tokens(const Hdf5File& file, int64_t num_tokens) {
  const std::string name = file.path().string();
  if (file.has("/tokens")) {
    const io::DatasetInfo info = file.info("/tokens");
    if (info.type != ElementType::u8 && info.type != ElementType::u16 && info.type != ElementType::u32)
      throw Error("{}: /tokens: expected u8, u16 or u32", name);
    expect_length(file, "/tokens", num_tokens);
    StoredTokens tokens(io::size_of(info.type));
    const std::vector<int64_t> offsets = file.chunk_offsets("/tokens");
    expect_length(file, "/checksums", static_cast<int64_t>(offsets.size()));
    tokens.add(file.path(), offsets, tokens_per_piece, num_tokens);
    return tokens;
  }
  StoredTokens tokens(file.read_int("/", "token_bytes"));
  const int64_t width = tokens.token_bytes();
  for (const TokenInput& input : read_files(file)) {
    std::error_code error;
    const auto found = fs::file_size(input.file, error);
    if (error) throw Error("{}: not found, expected the tokens of {} there", input.file.string(), name);
    if (static_cast<int64_t>(found) != input.file_bytes || input.offset < 0 || input.offset > input.file_bytes ||
        (width != 1 && width != 2 && width != 4) || input.num_tokens < 1 ||
        input.num_tokens > (input.file_bytes - input.offset) / width)
      throw Error("{}: found {} bytes, expected the {} that {} describes; prepare it again", input.file.string(), found,
                  input.file_bytes, name);
    tokens.add(input.file, {input.offset}, input.num_tokens, input.num_tokens);
  }
  if (tokens.num_tokens() != num_tokens)
    throw Error("{}: /files: found {} tokens, expected {}; the file is damaged", name, tokens.num_tokens(), num_tokens);
  return tokens;
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

TokenFile::TokenFile(fs::path folder, TokenFileInfo info, StoredTokens tokens)
    : folder_(std::move(folder)), info_(std::move(info)), tokens_(std::move(tokens)) {
  const int64_t pieces = num_pieces(num_tokens());
  checksums_.resize(static_cast<size_t>(pieces));
  checked_at_ = std::make_unique<std::atomic<uint64_t>[]>(static_cast<size_t>(pieces));
}

TokenFile TokenFile::open(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error))
    throw Error("{}: no such folder, expected one written by `lamina prepare`", folder.string());
  const fs::path path = folder / "tokens.h5";
  if (!fs::exists(path, error))
    throw Error(
        "{}: not found, expected a folder written by `lamina prepare` (with --in-place where the tokens are there)",
        path.string());
  const Hdf5File file = Hdf5File::open(path);
  TokenFileInfo info = read_info(file);
  if (info.num_tokens <= 0 || info.vocab_size <= 0 || info.end_of_document < 0 ||
      info.end_of_document >= info.vocab_size)
    throw Error("{}: found {} tokens of a vocabulary of {} with end of document {}; the file is damaged", path.string(),
                info.num_tokens, info.vocab_size, info.end_of_document);
  StoredTokens tokens = find_tokens(file, info.num_tokens);
  TokenFile result(folder, std::move(info), std::move(tokens));
  const auto pieces = static_cast<int64_t>(result.checksums_.size());
  expect_length(file, "/checksums", pieces);
  expect_length(file, "/document_starts", result.info_.num_documents);
  file.read("/checksums", ElementType::u64, 0, pieces, result.checksums_.data());
  result.check_piece(0);
  result.check_piece(pieces - 1);
  return result;
}

void TokenFile::read(int64_t begin, std::span<int32_t> tokens) const {
  const auto count = static_cast<int64_t>(tokens.size());
  LAMINA_CHECK(begin >= 0 && begin <= num_tokens() - count, "tokens [{}, {}) of {}", begin, begin + count,
               num_tokens());
  if (tokens.empty()) return;
  const int64_t width = tokens_.token_bytes();
  std::vector<char> stored(static_cast<size_t>(count * width));
  // A file that went on changing must not hold a run up for ever: its pieces were right every time.
  for (int attempt = 0; attempt < 10; ++attempt) {
    const uint64_t num_changes = tokens_.num_changes();
    check_pieces_once(begin, count, num_changes);
    tokens_.read(begin, count, stored.data());
    if (tokens_.num_changes() == num_changes) break;
  }
  const int32_t largest = width == 1   ? widen<uint8_t>(stored.data(), tokens)
                          : width == 2 ? widen<uint16_t>(stored.data(), tokens)
                                       : widen<uint32_t>(stored.data(), tokens);
  if (largest >= vocab_size())
    throw Error("{}: found token id {} in tokens [{}, {}), expected ids below {}; the file is damaged",
                tokens_.file_of(begin).string(), largest, begin, begin + count, vocab_size());
}

void TokenFile::check_pieces_once(int64_t begin, int64_t count, uint64_t num_changes) const {
  for (int64_t piece = begin / tokens_per_piece; piece * tokens_per_piece < begin + count; ++piece) {
    std::atomic<uint64_t>& checked_at = checked_at_[static_cast<size_t>(piece)];
    if (checked_at == num_changes + 1) continue;
    check_piece(piece);
    checked_at = num_changes + 1;
  }
}

void TokenFile::check_piece(int64_t piece) const {
  const int64_t begin = piece * tokens_per_piece;
  const int64_t count = std::min(tokens_per_piece, num_tokens() - begin);
  std::vector<char> stored(static_cast<size_t>(count * tokens_.token_bytes()));
  tokens_.read(begin, count, stored.data());
  const uint64_t found = hash64(stored.data(), stored.size()), expected = checksums_[static_cast<size_t>(piece)];
  if (found == expected) return;
  const std::string first = tokens_.file_of(begin).string(), last = tokens_.file_of(begin + count - 1).string();
  throw Error(
      "{}: tokens [{}, {}){} have checksum {}, expected {}; the file is damaged, or changed since it was prepared",
      first, begin, begin + count, first == last ? "" : " of the folder, up to " + last, hash_to_hex(found),
      hash_to_hex(expected));
}

std::vector<TokenInput> TokenFile::files_elsewhere() const {
  const Hdf5File hdf5 = Hdf5File::open(file());
  return hdf5.has("/tokens") ? std::vector<TokenInput>{} : read_files(hdf5);
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
  const int64_t pieces = num_pieces(num_tokens());
  StreamingHash all;
  all.update(checksums_.data(), checksums_.size() * sizeof(uint64_t));
  int64_t num_documents = 0;
  std::vector<int32_t> tokens;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    check_piece(piece);
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

TokenFileWriter::TokenFileWriter(const fs::path& file, const Tokenizer& tokenizer,
                                 std::span<const TokenInput> elsewhere) {
  const int64_t vocab_size = tokenizer.vocab_size();
  const ElementType type = vocab_size <= 256     ? ElementType::u8
                           : vocab_size <= 65536 ? ElementType::u16
                                                 : ElementType::u32;
  state_ = std::make_unique<State>(
      State{.file = Hdf5File::create(file),
            .tokenizer = tokenizer.name(),
            .tokenizer_hash = tokenizer.hash(),
            .vocab_size = vocab_size,
            .end_of_document = tokenizer.end_of_document(),
            .token_bytes = elsewhere.empty() ? io::size_of(type) : elsewhere.front().token_bytes,
            .is_elsewhere = !elsewhere.empty(),
            .piece = {},
            .starts = {},
            .checksums = {}});
  if (!elsewhere.empty()) {
    const std::string lines = files_to_lines(elsewhere);
    state_->file.write("/files", ElementType::u8, std::vector<int64_t>{static_cast<int64_t>(lines.size())},
                       lines.data());
    state_->file.write_attribute("/", "token_bytes", elsewhere.front().token_bytes);
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
