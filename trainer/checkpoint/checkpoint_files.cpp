#include "trainer/checkpoint/checkpoint_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "core/base/hash.h"
#include "core/io/file.h"
#include "core/tensor/host_copy.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

constexpr int64_t buffer_bytes = int64_t{4} << 20;

void update(StreamingHash& hash, const RawFile& file, int64_t offset, int64_t count, std::vector<char>& buffer) {
  buffer.resize(static_cast<size_t>(std::min(count, buffer_bytes)));
  for (int64_t done = 0; done < count;) {
    const int64_t n = std::min(count - done, buffer_bytes);
    file.read(offset + done, n, buffer.data());
    hash.update(buffer.data(), static_cast<size_t>(n));
    done += n;
  }
}

struct PieceCheck {
  uint64_t hash = 0;
  std::optional<int64_t> not_finite;  // element of the whole tensor
};

PieceCheck check_piece_of(const RawFile& file, const StoredPiece& piece) {
  PieceCheck check;
  StreamingHash hash;
  std::vector<char> buffer(static_cast<size_t>(std::min(piece.num_bytes(), buffer_bytes)));
  for (int64_t done = 0; done < piece.num_bytes();) {
    const int64_t n = std::min(piece.num_bytes() - done, buffer_bytes);
    file.read(piece.offset + done, n, buffer.data());
    hash.update(buffer.data(), static_cast<size_t>(n));
    const TensorView values(buffer.data(), piece.dtype, {n / size_of(piece.dtype)});
    if (const auto at = first_non_finite(values); at && !check.not_finite)
      check.not_finite = piece.begin + done / size_of(piece.dtype) + *at;
    done += n;
  }
  check.hash = hash.digest();
  return check;
}

io::ElementType file_type(const TensorPiece& piece) {
  switch (piece.data.dtype) {
    case DType::f32:
      return io::ElementType::f32;
    case DType::f64:
      return io::ElementType::f64;
    case DType::i32:
      return io::ElementType::i32;
    case DType::bf16:
      break;
  }
  LAMINA_CHECK(false, "{}: dtype {}", piece.name, name_of(piece.data.dtype));
  return io::ElementType::f32;
}

void check_piece(const TensorPiece& piece) {
  LAMINA_CHECK(0 <= piece.begin && piece.begin <= piece.end && piece.end <= piece.shape.num_elements(),
               "{} {}: [{}, {})", piece.name, piece.shape.to_string(), piece.begin, piece.end);
  if (piece.begin == piece.end) return;
  LAMINA_CHECK(piece.data.num_elements() == piece.end - piece.begin && piece.data.is_contiguous(),
               "{}: {} for [{}, {})", piece.name, piece.data.to_string(), piece.begin, piece.end);
}

}  // namespace

RawFile::RawFile(const fs::path& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (fd_ < 0 || ::fstat(fd_, &status) != 0) {
    const int reason = errno;
    if (fd_ >= 0) ::close(fd_);
    throw Error("can't open: {}", io::describe_errno(reason));
  }
  num_bytes_ = status.st_size;
}

RawFile::~RawFile() {
  if (fd_ >= 0) ::close(fd_);
}

RawFile::RawFile(RawFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

RawFile& RawFile::operator=(RawFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

void RawFile::read(int64_t offset, int64_t count, void* out) const {
  for (int64_t done = 0; done < count;) {
    const ssize_t n = ::pread(fd_, static_cast<char*>(out) + done, static_cast<size_t>(count - done), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("can't read at byte {}: {}", offset + done, io::describe_errno(errno));
    if (n == 0) throw Error("ends at byte {}, expected at least {}", offset + done, offset + count);
    done += n;
  }
}

uint64_t RawFile::hash(int64_t offset, int64_t count) const {
  StreamingHash hash;
  std::vector<char> buffer;
  update(hash, *this, offset, count, buffer);
  return hash.digest();
}

uint64_t hash_rest(const RawFile& file, const ShardFile& shard) {
  StreamingHash hash;
  std::vector<char> buffer;
  int64_t at = 0;
  for (const StoredPiece& piece : shard.pieces) {
    LAMINA_CHECK(at <= piece.offset, "{} at byte {} begins before {}", piece.dataset(), piece.offset, at);
    update(hash, file, at, piece.offset - at, buffer);
    at = piece.offset + piece.num_bytes();
  }
  LAMINA_CHECK(at <= file.num_bytes(), "pieces end at byte {} of {}", at, file.num_bytes());
  update(hash, file, at, file.num_bytes() - at, buffer);
  return hash.digest();
}

std::vector<CheckpointProblem> check_shard_size(const fs::path& checkpoint, const ShardFile& shard) {
  try {
    const RawFile file(checkpoint / shard.name);
    if (file.num_bytes() != shard.num_bytes)
      throw Error("{} bytes found, expected {}", file.num_bytes(), shard.num_bytes);
    return {};
  } catch (const Error& error) {
    return {{shard.name, error.what()}};
  }
}

std::vector<CheckpointProblem> verify_shard(const fs::path& checkpoint, const ShardFile& shard) {
  std::vector<CheckpointProblem> problems = check_shard_size(checkpoint, shard);
  if (!problems.empty()) return problems;
  try {
    const RawFile file(checkpoint / shard.name);
    if (hash_rest(file, shard) != shard.rest_hash)
      problems.push_back({shard.name, "the checksum of its HDF5 records doesn't match"});
    for (const StoredPiece& piece : shard.pieces) {
      const PieceCheck check = check_piece_of(file, piece);
      if (check.hash != piece.hash)
        problems.push_back({shard.name, fmt::format("{}: checksum {} found, expected {}", piece.dataset(),
                                                    hash_to_hex(check.hash), hash_to_hex(piece.hash))});
      else if (check.not_finite)
        problems.push_back(
            {shard.name, fmt::format("{}: element {} is infinite or not a number, expected finite numbers",
                                     piece.dataset(), *check.not_finite)});
    }
  } catch (const Error& error) {
    problems.push_back({shard.name, error.what()});
  }
  return problems;
}

ShardWriter::ShardWriter(const fs::path& folder, int rank, int64_t max_elements)
    : path_(folder / fmt::format("shard-{:05d}.h5", rank)),
      max_elements_(max_elements),
      file_(io::Hdf5File::create(path_)),
      name_(path_.filename().string()) {}

void ShardWriter::write(const TensorPiece& whole) {
  check_piece(whole);
  for (int64_t begin = whole.begin; begin < whole.end; begin += max_elements_) {
    StoredPiece piece{.tensor = whole.name, .dtype = whole.data.dtype, .shape = whole.shape, .begin = begin};
    piece.end = std::min(whole.end, begin + max_elements_);
    const int64_t count = piece.end - begin;
    const TensorView flat = whole.data.reshaped({whole.end - whole.begin});
    const TensorView values = staged_values(flat.slice(0, begin - whole.begin, piece.end - whole.begin), staging_);
    if (const auto at = first_non_finite(values))
      throw NotFinite("{}: element {} is {}, expected a finite number", whole.name, begin + *at,
                      element_of(values, *at));
    const void* data = values.data;
    piece.hash = hash64(data, static_cast<size_t>(piece.num_bytes()));
    file_.write(piece.dataset(), file_type(whole), std::span(&count, 1), data);
    pieces_.push_back(std::move(piece));
  }
}

ShardFile ShardWriter::finish() {
  ShardFile shard;
  shard.name = name_;
  shard.pieces = std::move(pieces_);
  file_.flush();
  for (StoredPiece& piece : shard.pieces) {
    piece.offset = file_.contiguous_offset(piece.dataset());
    LAMINA_CHECK(piece.offset >= 0, "{} is not contiguous in {}", piece.dataset(), path_.string());
  }
  file_.close();
  io::fsync_file(path_);
  std::sort(shard.pieces.begin(), shard.pieces.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  try {
    const RawFile raw(path_);
    shard.num_bytes = raw.num_bytes();
    shard.rest_hash = hash_rest(raw, shard);
  } catch (const Error& error) {
    throw Error("{}: {}", path_.string(), error.what());
  }
  return shard;
}

ShardFile write_shard(const fs::path& folder, int rank, std::span<const TensorPiece> pieces, int64_t max_elements) {
  ShardWriter writer(folder, rank, max_elements);
  for (const TensorPiece& piece : pieces) writer.write(piece);
  return writer.finish();
}

}  // namespace lamina
