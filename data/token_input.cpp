#include "data/token_input.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <map>
#include <string_view>

#include "core/base/error.h"
#include "data/utf8.h"

namespace lamina {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

static_assert(std::endian::native == std::endian::little);

namespace {

constexpr auto megatron_mark = "MMIDIDX\0\0"sv;
constexpr auto numpy_mark = "\x93NUMPY"sv;

// Reads numbers in turn and knows where the file ends.
class NumberReader {
 public:
  explicit NumberReader(const fs::path& path) : path_(path), in_(path, std::ios::binary) {
    if (!in_) throw Error("{}: can't open", path.string());
  }
  std::string bytes(size_t count) {
    std::string result(count, '\0');
    take(result.data(), count);
    return result;
  }
  template <class T>
  T number() {
    T value{};
    take(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  template <class T>
  std::vector<T> numbers(int64_t count) {
    const auto left = static_cast<int64_t>(fs::file_size(path_)) - static_cast<int64_t>(in_.tellg());
    if (count < 0 || count > left / static_cast<int64_t>(sizeof(T)))
      throw Error("{}: found {} bytes, expected {} numbers of {} in them; the file is damaged", path_.string(), left,
                  count, sizeof(T));
    std::vector<T> values(static_cast<size_t>(count));
    take(reinterpret_cast<char*>(values.data()), values.size() * sizeof(T));
    return values;
  }

 private:
  void take(char* out, size_t count) {
    if (!in_.read(out, static_cast<std::streamsize>(count))) throw Error("{}: the file is truncated", path_.string());
  }

  fs::path path_;
  std::ifstream in_;
};

std::string first_bytes(const fs::path& path) {
  char head[16] = {};
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error("{}: can't open", path.string());
  in.read(head, sizeof head);
  return {head, static_cast<size_t>(in.gcount())};
}

void set_file(TokenInput& input, const fs::path& path) {
  input.file = fs::canonical(path);
  input.file_bytes = static_cast<int64_t>(fs::file_size(path));
  const std::string name = input.file.string();
  if (valid_utf8(name) != name.size())
    throw Error("{}: found {} in its name, expected UTF-8", name, describe_utf8_fault(name.substr(valid_utf8(name))));
}

int64_t num_tokens_of(const fs::path& path, int64_t offset, int64_t token_bytes) {
  const int64_t bytes = static_cast<int64_t>(fs::file_size(path)) - offset;
  if (bytes % token_bytes != 0)
    throw Error("{}: found {} bytes of tokens, expected a multiple of {}", path.string(), bytes, token_bytes);
  return bytes / token_bytes;
}

// megatron/core/datasets/indexed_dataset.py: mark, version, type, two counts, then lengths of sequences (i32), where they begin (i64) and
// the sequences at which documents begin (i64, the last one is the end).
TokenInput open_megatron(const fs::path& index, const fs::path& data) {
  if (!fs::is_regular_file(data))
    throw Error("{}: not found, expected the tokens of {}", data.string(), index.string());
  NumberReader in(index);
  if (in.bytes(megatron_mark.size()) != megatron_mark)
    throw Error("{}: found no Megatron index, expected the one of {}", index.string(), data.string());
  if (const auto version = in.number<uint64_t>(); version != 1)
    throw Error("{}: found version {} of Megatron's index, expected 1", index.string(), version);
  const int code = in.number<uint8_t>();
  TokenInput input;
  input.token_bytes = code == 1 ? 1 : code == 8 ? 2 : code == 4 ? 4 : 0;
  if (input.token_bytes == 0)
    throw Error("{}: found tokens of Megatron's type {}, expected 1, 4 or 8 (uint8, int32, uint16)", index.string(),
                code);
  const auto num_sequences = in.number<int64_t>(), num_bounds = in.number<int64_t>();
  const auto lengths = in.numbers<int32_t>(num_sequences);
  const auto begins = in.numbers<int64_t>(num_sequences);
  const auto bounds = in.numbers<int64_t>(num_bounds);
  std::vector<int64_t> ends{0};  // of the first i sequences
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0 || begins[i] != ends.back() * input.token_bytes)
      throw Error(
          "{}: found sequence {} at byte {}, expected it at {}; only sequences that follow each other can be used in "
          "place",
          index.string(), i, begins[i], ends.back() * input.token_bytes);
    ends.push_back(ends.back() + lengths[i]);
  }
  for (size_t i = 0; i < bounds.size(); ++i) {
    if (bounds[i] < 0 || bounds[i] > num_sequences || (i > 0 && bounds[i] < bounds[i - 1]))
      throw Error("{}: found a document that begins at sequence {} of {}; the file is damaged", index.string(),
                  bounds[i], num_sequences);
    const int64_t end = ends[static_cast<size_t>(bounds[i])];
    if (end > 0 && (input.document_ends.empty() || end > input.document_ends.back()))
      input.document_ends.push_back(end);
  }
  set_file(input, data);
  input.num_tokens = num_tokens_of(data, 0, input.token_bytes);
  if (input.num_tokens != ends.back())
    throw Error("{}: found {} tokens, expected the {} of {}", data.string(), input.num_tokens, ends.back(),
                index.string());
  return input;
}

// numpy/lib/format.py: mark, version, length of the header, which is a Python dictionary.
TokenInput open_numpy(const fs::path& path) {
  NumberReader in(path);
  in.bytes(numpy_mark.size());
  const int major = in.number<uint8_t>();
  in.number<uint8_t>();
  const size_t length = major == 1 ? in.number<uint16_t>() : in.number<uint32_t>();
  if (length > 65536) throw Error("{}: found a header of {} bytes; the file is damaged", path.string(), length);
  const std::string header = in.bytes(length);
  const auto value_of = [&](std::string_view key) {
    size_t begin = header.find(key);
    if (begin == std::string::npos) throw Error("{}: found no {} in the header of the NumPy array", path.string(), key);
    begin = header.find_first_not_of(": ", begin + key.size());
    const size_t end = header.find_first_of(header.substr(begin, 1) == "(" ? ")" : ",", begin);
    return header.substr(begin, end - begin);
  };
  TokenInput input;
  const std::string type = value_of("'descr'"), shape = value_of("'shape'");
  input.token_bytes = type == "'|u1'" ? 1 : type == "'<u2'" ? 2 : type == "'<u4'" || type == "'<i4'" ? 4 : 0;
  if (input.token_bytes == 0)
    throw Error("{}: found a NumPy array of {}, expected uint8, uint16, uint32 or int32 in little-endian order",
                path.string(), type);
  if (shape.find(',') != shape.size() - 1)  // "(5,"
    throw Error("{}: found a NumPy array of shape {}), expected one axis", path.string(), shape);
  set_file(input, path);
  input.offset = static_cast<int64_t>(numpy_mark.size() + 2 + (major == 1 ? 2 : 4) + length);
  input.num_tokens = num_tokens_of(path, input.offset, input.token_bytes);
  if (shape != fmt::format("({},", input.num_tokens))
    throw Error("{}: found {} tokens, expected those of shape {})", path.string(), input.num_tokens, shape);
  return input;
}

}  // namespace

TokenInput open_token_input(const fs::path& path, const std::string& token_type) {
  if (!fs::is_regular_file(path)) throw Error("{}: found no file, expected one of token ids", path.string());
  const std::string head = first_bytes(path);
  const bool is_index = head.starts_with(megatron_mark), is_numpy = head.starts_with(numpy_mark);
  const fs::path index = is_index ? path : fs::path(path).replace_extension(".idx");
  const bool is_megatron = is_index || (!is_numpy && path.extension() == ".bin" && fs::exists(index));
  if ((is_megatron || is_numpy) && !token_type.empty())
    throw Error("{}: found {}, which tells its type; --token-type is for flat files", path.string(),
                is_numpy ? "a NumPy array" : "a Megatron data set");
  if (is_numpy) return open_numpy(path);
  if (is_megatron) return open_megatron(index, is_index ? fs::path(path).replace_extension(".bin") : path);
  TokenInput input;
  input.token_bytes = token_type == "u8" ? 1 : token_type == "u16" ? 2 : token_type == "u32" ? 4 : 0;
  if (input.token_bytes == 0)
    throw Error(
        "{}: found neither a Megatron data set nor a NumPy array, expected --token-type u8, u16 or u32 for a flat file",
        path.string());
  set_file(input, path);
  input.num_tokens = num_tokens_of(path, 0, input.token_bytes);
  return input;
}

namespace {

// The token files of a folder by name; what else is there goes to `passed_over`.
std::vector<std::string> token_files_in(const fs::path& folder, std::vector<std::string>& passed_over) {
  std::vector<std::string> names, files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string() + (entry.is_directory() ? "/" : ""));
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    const fs::path path = folder / name;
    const std::string ending = path.extension().string();
    if (ending == ".bin" || ending == ".npy" || ending == ".idx")
      files.push_back(path.string());
    else
      passed_over.push_back(path.string());
  }
  if (files.empty())
    throw Error("{}: found no token file in this folder, expected .bin (with its .idx) or .npy", folder.string());
  return files;
}

}  // namespace

TokenInputs open_token_inputs(const std::vector<std::string>& paths, const std::string& token_type) {
  TokenInputs inputs;
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (fs::is_directory(path)) {
      const std::vector<std::string> inside = token_files_in(path, inputs.passed_over);
      files.insert(files.end(), inside.begin(), inside.end());
    } else {
      files.push_back(path);
    }
  }
  std::map<fs::path, std::string> named_by;
  for (const std::string& path : files) {
    TokenInput input = open_token_input(path, token_type);
    const auto [before, is_new] = named_by.try_emplace(input.file, fs::path(path).extension().string());
    if (!is_new) {
      // shards/* names a data set by its .bin and its .idx.
      if (before->second == fs::path(path).extension()) throw Error("{}: named twice, expected each file once", path);
      continue;
    }
    if (input.num_tokens == 0) throw Error("{}: found no tokens", input.file.string());
    if (!inputs.files.empty() && input.token_bytes != inputs.files.front().token_bytes)
      throw Error("{}: found tokens of {} bytes, expected {} as in {}", input.file.string(), input.token_bytes,
                  inputs.files.front().token_bytes, inputs.files.front().file.string());
    inputs.files.push_back(std::move(input));
  }
  return inputs;
}

}  // namespace lamina
