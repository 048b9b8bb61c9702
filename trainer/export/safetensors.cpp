#include "trainer/export/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t length_bytes = 8;
constexpr int64_t max_header_bytes = 100'000'000;  // the format's own limit
static_assert(std::endian::native == std::endian::little, "tensors are written as they lie in memory");

constexpr std::array<std::pair<std::string_view, DType>, 4> dtype_names = {
    {{"F64", DType::f64}, {"F32", DType::f32}, {"BF16", DType::bf16}, {"I32", DType::i32}}};

std::string_view file_name_of(DType dtype) {
  for (const auto& [name, value] : dtype_names)
    if (value == dtype) return name;
  LAMINA_CHECK(false, "no name for {}", name_of(dtype));
  return "";
}

DType safetensors_dtype(const std::string& name) {
  for (const auto& [known, value] : dtype_names)
    if (known == name) return value;
  throw Error("dtype \"{}\" found, expected F64, F32, BF16 or I32", name);
}

std::string make_header(std::span<const SafetensorsEntry> tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  int64_t at = 0;
  for (const SafetensorsEntry& tensor : tensors) {
    LAMINA_CHECK(!header.contains(tensor.name), "{} twice", tensor.name);
    header[tensor.name] = {{"dtype", file_name_of(tensor.dtype)},
                           {"shape", std::vector<int64_t>(tensor.shape.begin(), tensor.shape.end())},
                           {"data_offsets", {at, at + tensor.num_bytes()}}};
    at += tensor.num_bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

// The JSON library keeps the last of equal keys; here that is an error.
json parse_header(const std::string& text) {
  std::vector<std::set<std::string>> seen;
  const auto callback = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) seen.emplace_back();
    if (event == json::parse_event_t::object_end) seen.pop_back();
    if (event == json::parse_event_t::key && !seen.back().insert(value.get<std::string>()).second)
      throw Error("\"{}\" is in the header twice", value.get<std::string>());
    return true;
  };
  json header;
  try {
    header = json::parse(text, callback);
  } catch (const json::exception& error) {
    throw Error("its header is no JSON: {}", error.what());
  }
  if (!header.is_object()) throw Error("its header is no JSON object");
  return header;
}

struct Place {
  SafetensorsEntry entry;
  int64_t begin = 0, end = 0;  // in the data
};

// A count that JSON holds: not negative, within int64.
int64_t count_of(const json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()})
    throw Error("{} found, expected a whole number", value.dump());
  return value.get<int64_t>();
}

Place parse_place(const std::string& name, const json& node) {
  Place place;
  place.entry.name = name;
  try {
    for (const char* key : {"dtype", "shape", "data_offsets"})
      if (!node.is_object() || !node.contains(key)) throw Error("\"{}\" is missing", key);
    if (node.size() != 3) throw Error("{} keys found, expected dtype, shape and data_offsets", node.size());
    if (!node.at("dtype").is_string()) throw Error("dtype {} found, expected a text", node.at("dtype").dump());
    place.entry.dtype = safetensors_dtype(node.at("dtype"));
    const json& shape = node.at("shape");
    if (!shape.is_array() || shape.size() > Shape::max_rank)
      throw Error("shape {} found, expected a list of at most {} numbers", shape.dump(), Shape::max_rank);
    int64_t elements = 1;
    for (const json& extent : shape) {
      const int64_t count = count_of(extent);
      if (__builtin_mul_overflow(elements, count, &elements) || elements > (int64_t{1} << 56))
        throw Error("shape {} has too many elements", shape.dump());
      place.entry.shape.push_back(count);
    }
    const json& offsets = node.at("data_offsets");
    if (!offsets.is_array() || offsets.size() != 2)
      throw Error("data_offsets {} found, expected two numbers", offsets.dump());
    place.begin = count_of(offsets[0]);
    place.end = count_of(offsets[1]);
    if (place.end < place.begin || place.end - place.begin != place.entry.num_bytes())
      throw Error("data_offsets {} found, expected {} bytes for {} {}", offsets.dump(), place.entry.num_bytes(),
                  file_name_of(place.entry.dtype), place.entry.shape.to_string());
  } catch (const Error& error) {
    throw Error("tensor {}: {}", name, error.what());
  }
  return place;
}

// The tensors by place, which must cover the data once.
std::vector<Place> parse_places(const json& header, int64_t data_bytes) {
  std::vector<Place> places;
  for (const auto& [name, node] : header.items())
    if (name != "__metadata__") places.push_back(parse_place(name, node));
  std::stable_sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t at = 0;
  for (const Place& place : places) {
    if (place.begin != at)
      throw Error("tensor {}: begins at byte {} of the data, expected {}: tensors {}", place.entry.name, place.begin,
                  at, place.begin < at ? "overlap" : "leave a hole");
    at = place.end;
  }
  if (at != data_bytes)
    throw Error("{} bytes of data found, expected {}{}", data_bytes, at,
                places.empty() ? "" : fmt::format(" up to the end of tensor {}", places.back().entry.name));
  return places;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const fs::path& path, std::vector<SafetensorsEntry> tensors)
    : path_(path), tensors_(std::move(tensors)) {
  std::stable_sort(tensors_.begin(), tensors_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return size_of(a.dtype) > size_of(b.dtype);
  });
  const std::string header = make_header(tensors_);
  if (static_cast<int64_t>(header.size()) > max_header_bytes)
    throw Error("{}: a header of {} bytes for {} tensors, expected at most {}", path_.string(), header.size(),
                tensors_.size(), max_header_bytes);
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) throw Error("{}: can't create: {}", path_.string(), io::describe_errno(errno));
  try {
    const uint64_t length = header.size();
    append(&length, length_bytes);
    append(header.data(), static_cast<int64_t>(header.size()));
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) ::close(fd_);
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      tensors_(std::move(other.tensors_)),
      next_(std::exchange(other.next_, 0)),
      fd_(std::exchange(other.fd_, -1)) {}

SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(tensors_, other.tensors_);
  std::swap(next_, other.next_);
  std::swap(fd_, other.fd_);
  return *this;
}

void SafetensorsWriter::append(const void* data, int64_t num_bytes) {
  for (int64_t done = 0; done < num_bytes;) {
    const ssize_t n = ::write(fd_, static_cast<const char*>(data) + done, static_cast<size_t>(num_bytes - done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("{}: can't write: {}", path_.string(), io::describe_errno(errno));
    done += n;
  }
}

void SafetensorsWriter::write(const void* data, int64_t num_bytes) {
  LAMINA_CHECK(fd_ >= 0 && next_ < tensors_.size(), "{}: after tensor {}", path_.string(), next_);
  LAMINA_CHECK(num_bytes == tensors_[next_].num_bytes(), "{}: {} bytes of {}", tensors_[next_].name, num_bytes,
               tensors_[next_].num_bytes());
  append(data, num_bytes);
  ++next_;
}

void SafetensorsWriter::finish() {
  LAMINA_CHECK(fd_ >= 0 && next_ == tensors_.size(), "{}: {} of {} tensors", path_.string(), next_, tensors_.size());
  const int synced = ::fsync(fd_), reason = errno;
  const int closed = ::close(std::exchange(fd_, -1));
  if (synced != 0) throw Error("{}: can't write: {}", path_.string(), io::describe_errno(reason));
  if (closed != 0) throw Error("{}: can't write: {}", path_.string(), io::describe_errno(errno));
}

namespace {

RawFile open_raw(const fs::path& path) {
  try {
    return RawFile(path);
  } catch (const Error& error) {
    throw Error("{}: {}", path.string(), error.what());
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& path) : path_(path), file_(open_raw(path)) {
  try {
    if (file_.num_bytes() < length_bytes)
      throw Error("{} bytes found, expected at least the {} of the header's length", file_.num_bytes(), length_bytes);
    uint64_t length = 0;
    file_.read(0, length_bytes, &length);
    if (length > uint64_t{max_header_bytes} || static_cast<int64_t>(length) > file_.num_bytes() - length_bytes)
      throw Error("a header of {} bytes announced in a file of {}", length, file_.num_bytes());
    std::string text(length, '\0');
    file_.read(length_bytes, static_cast<int64_t>(length), text.data());
    if (text.empty() || text.front() != '{') throw Error("its header does not begin with '{'");
    const int64_t data = length_bytes + static_cast<int64_t>(length);
    for (Place& place : parse_places(parse_header(text), file_.num_bytes() - data)) {
      index_[place.entry.name] = tensors_.size();
      tensors_.push_back(std::move(place.entry));
      offsets_.push_back(data + place.begin);
    }
  } catch (const Error& error) {
    throw Error("{}: {}", path_.string(), error.what());
  }
}

size_t SafetensorsFile::index_of(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) throw Error("{}: tensor {} not found among its {}", path_.string(), name, tensors_.size());
  return found->second;
}

const SafetensorsEntry& SafetensorsFile::entry(const std::string& name) const {
  return tensors_[index_of(name)];
}

void SafetensorsFile::read(const std::string& name, std::span<char> out) const {
  LAMINA_CHECK(static_cast<int64_t>(out.size()) == entry(name).num_bytes(), "{}: {} bytes for {}", name, out.size(),
               entry(name).num_bytes());
  read(name, 0, out);
}

void SafetensorsFile::read(const std::string& name, int64_t offset, std::span<char> out) const {
  const size_t index = index_of(name);
  const auto count = static_cast<int64_t>(out.size());
  LAMINA_CHECK(offset >= 0 && offset + count <= tensors_[index].num_bytes(), "{}: {} bytes from {} of {}", name, count,
               offset, tensors_[index].num_bytes());
  try {
    file_.read(offsets_[index] + offset, count, out.data());
  } catch (const Error& error) {
    throw Error("{}: tensor {}: {}", path_.string(), name, error.what());
  }
}

}  // namespace lamina
