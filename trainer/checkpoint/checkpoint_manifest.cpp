#include "trainer/checkpoint/checkpoint_manifest.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/hash.h"
#include "core/base/here.h"
#include "core/io/file.h"
#include "core/io/hdf5.h"
#include "trainer/checkpoint/checkpoint_files.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

uint64_t parse_hex(const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (text.size() != 16 || error != std::errc() || end != text.data() + text.size())
    throw Error("\"{}\" found, expected a checksum of 16 hexadecimal digits", text);
  return value;
}

DType parse_dtype(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f64, DType::i32})
    if (name == name_of(dtype)) return dtype;
  throw Error("dtype \"{}\" found, expected fp32, fp64 or int32", name);
}

io::ElementType element_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return io::ElementType::f32;
    case DType::f64:
      return io::ElementType::f64;
    case DType::i32:
      return io::ElementType::i32;
    case DType::bf16:
      break;
  }
  LAMINA_CHECK(false, "no file type for {}", name_of(dtype));
  return io::ElementType::f32;
}

json shard_to_json(const ShardFile& shard) {
  json pieces = json::array();
  for (const StoredPiece& piece : shard.pieces) {
    pieces.push_back({{"tensor", piece.tensor},
                      {"dtype", name_of(piece.dtype)},
                      {"shape", std::vector<int64_t>(piece.shape.begin(), piece.shape.end())},
                      {"begin", piece.begin},
                      {"end", piece.end},
                      {"offset", piece.offset},
                      {"hash", hash_to_hex(piece.hash)}});
  }
  return {{"name", shard.name},
          {"num_bytes", shard.num_bytes},
          {"rest_hash", hash_to_hex(shard.rest_hash)},
          {"pieces", std::move(pieces)}};
}

ShardFile shard_from_json(const json& node) {
  ShardFile shard;
  shard.name = node.at("name");
  shard.num_bytes = node.at("num_bytes");
  shard.rest_hash = parse_hex(node.at("rest_hash"));
  for (const json& entry : node.at("pieces")) {
    StoredPiece piece;
    piece.tensor = entry.at("tensor");
    piece.dtype = parse_dtype(entry.at("dtype"));
    for (const json& extent : entry.at("shape")) piece.shape.push_back(extent);
    piece.begin = entry.at("begin");
    piece.end = entry.at("end");
    piece.offset = entry.at("offset");
    piece.hash = parse_hex(entry.at("hash"));
    shard.pieces.push_back(std::move(piece));
  }
  return shard;
}

std::string make_table(const Manifest& manifest) {
  json shards = json::array();
  for (const ShardFile& shard : manifest.shards) shards.push_back(shard_to_json(shard));
  return json{{"shards", std::move(shards)}, {"extra", manifest.info.extra}}.dump();
}

std::string make_marker(const fs::path& index, const std::string& table) {
  const RawFile file(index);
  std::string text =
      fmt::format("lamina checkpoint {}\n{} {} {}\ntable {} {}\n", format_version, index_name, file.num_bytes(),
                  hash_to_hex(file.hash(0, file.num_bytes())), table.size(), hash_to_hex(hash64(table)));
  text += hash_to_hex(hash64(text)) + "\n";
  return text;
}

struct Marker {
  int64_t index_bytes = 0;
  uint64_t index_hash = 0;
  uint64_t table_hash = 0;
};

Marker parse_marker(const std::string& text) {
  constexpr size_t seal_bytes = 17;  // 16 digits and the end of the line
  if (text.size() <= seal_bytes ||
      hash_to_hex(hash64(text.substr(0, text.size() - seal_bytes))) + "\n" != text.substr(text.size() - seal_bytes))
    throw Error("its checksum doesn't match its {} bytes", text.size());
  std::istringstream in(text);
  std::string word, index_hash, table_bytes, table_hash;
  int64_t version = 0;
  Marker marker;
  in >> word >> word >> version;
  if (version != format_version) throw Error("format {} found, expected {}", version, format_version);
  in >> word >> marker.index_bytes >> index_hash >> word >> table_bytes >> table_hash;
  marker.index_hash = parse_hex(index_hash);
  marker.table_hash = parse_hex(table_hash);
  return marker;
}

void write_info(io::Hdf5File& file, const CheckpointInfo& info) {
  file.write_attribute("/", "format_version", format_version);
  file.write_attribute("/", "step", info.step);
  file.write_attribute("/", "config", info.config_yaml);
  file.write_attribute("/", "sampler_fingerprint", info.sampler_fingerprint);
  file.write_attribute("/", "sequences_consumed", info.sequences_consumed);
  file.write_attribute("/", "seed", std::to_string(info.seed));  // 64 bits, unsigned
  file.write_attribute("/", "world_size", int64_t{info.world_size});
  file.write_attribute("/", "data_parallel", int64_t{info.data_parallel});
  file.write_attribute("/", "program_version", info.program_version);
  file.write_attribute("/", "written_at", utc_now());
  if (!info.tokenizer) return;
  file.write_attribute("/", "tokenizer", info.tokenizer->name);
  const int64_t size = static_cast<int64_t>(info.tokenizer->model.size());
  if (size > 0) file.write("/tokenizer", io::ElementType::u8, std::span(&size, 1), info.tokenizer->model.data());
}

CheckpointInfo read_info(const io::Hdf5File& file) {
  CheckpointInfo info;
  info.step = file.read_int("/", "step");
  info.config_yaml = file.read_string("/", "config");
  info.sampler_fingerprint = file.read_string("/", "sampler_fingerprint");
  info.sequences_consumed = file.read_int("/", "sequences_consumed");
  info.seed = std::stoull(file.read_string("/", "seed"));
  info.world_size = static_cast<int>(file.read_int("/", "world_size"));
  info.data_parallel = static_cast<int>(file.read_int("/", "data_parallel"));
  info.program_version = file.read_string("/", "program_version");
  info.written_at = file.read_string("/", "written_at");
  if (file.has_attribute("/", "tokenizer")) {
    info.tokenizer = StoredTokenizer{file.read_string("/", "tokenizer"), ""};
    std::string& model = info.tokenizer->model;
    if (file.has("/tokenizer")) {
      model.resize(static_cast<size_t>(file.info("/tokenizer").num_elements()));
      file.read("/tokenizer", io::ElementType::u8, 0, static_cast<int64_t>(model.size()), model.data());
    }
  }
  return info;
}

void write_tensors(io::Hdf5File& file, std::span<const ShardFile> shards) {
  for (const auto& [name, layout] : make_tensor_layouts(shards)) {
    std::vector<io::VirtualPiece> parts;
    for (const TensorLayout::Part& part : layout.parts) {
      const ShardFile& shard = shards[part.shard];
      const StoredPiece& piece = shard.pieces[part.piece];
      parts.push_back({piece.begin, piece.end, shard.name, piece.dataset(), 0, piece.end - piece.begin});
    }
    std::vector<int64_t> shape(layout.tensor.shape.begin(), layout.tensor.shape.end());
    if (shape.empty()) shape.push_back(1);  // a virtual dataset has at least one axis
    file.write_virtual("/" + name, element_type(layout.tensor.dtype), shape, parts);
  }
}

}  // namespace

std::string StoredPiece::dataset() const {
  return fmt::format("/{}[{}:{}]", tensor, begin, end);
}

std::string to_text(const ShardFile& shard) {
  return shard_to_json(shard).dump();
}

ShardFile parse_shard(const std::string& text) {
  return shard_from_json(json::parse(text));
}

std::map<std::string, TensorLayout> make_tensor_layouts(std::span<const ShardFile> shards) {
  std::map<std::string, TensorLayout> layouts;
  for (size_t s = 0; s < shards.size(); ++s) {
    for (size_t p = 0; p < shards[s].pieces.size(); ++p) {
      const StoredPiece& piece = shards[s].pieces[p];
      const auto [entry, is_new] = layouts.try_emplace(piece.tensor);
      CheckpointTensor& tensor = entry->second.tensor;
      if (is_new) tensor = {piece.tensor, piece.dtype, piece.shape};
      LAMINA_CHECK(tensor.dtype == piece.dtype && tensor.shape == piece.shape, "{}: {} {} and {} {}", piece.tensor,
                   name_of(tensor.dtype), tensor.shape.to_string(), name_of(piece.dtype), piece.shape.to_string());
      entry->second.parts.push_back({s, p});
    }
  }
  for (auto& [name, layout] : layouts) {
    const auto piece_of = [&](const TensorLayout::Part& part) -> const StoredPiece& {
      return shards[part.shard].pieces[part.piece];
    };
    std::sort(layout.parts.begin(), layout.parts.end(),
              [&](const auto& a, const auto& b) { return piece_of(a).begin < piece_of(b).begin; });
    int64_t covered = 0;
    for (const TensorLayout::Part& part : layout.parts) {
      LAMINA_CHECK(piece_of(part).begin == covered, "{}: element {} is in {} pieces", name,
                   std::min(covered, piece_of(part).begin), piece_of(part).begin < covered ? "two" : "no");
      covered = piece_of(part).end;
    }
    LAMINA_CHECK(covered == layout.tensor.shape.num_elements(), "{}: {} of {} elements are in a piece", name, covered,
                 layout.tensor.shape.num_elements());
  }
  return layouts;
}

std::string write_index(const fs::path& folder, const Manifest& manifest) {
  const fs::path path = folder / index_name;
  const std::string table = make_table(manifest);
  io::Hdf5File file = io::Hdf5File::create(path);
  write_info(file, manifest.info);
  write_tensors(file, manifest.shards);
  const int64_t size = static_cast<int64_t>(table.size());
  file.write("/table", io::ElementType::u8, std::span(&size, 1), table.data());
  file.close();
  io::fsync_file(path);
  return make_marker(path, table);
}

Manifest read_manifest(const fs::path& checkpoint) {
  const auto damaged = [&](const char* file, const std::string& reason) {
    return CheckpointDamaged(checkpoint, {file, reason});
  };
  Marker marker;
  if (!fs::exists(checkpoint / marker_name)) throw damaged(marker_name, "missing: the checkpoint was never completed");
  try {
    marker = parse_marker(io::read_file(checkpoint / marker_name));
  } catch (const Error& error) {
    throw damaged(marker_name, error.what());
  }
  try {
    {
      const RawFile raw(checkpoint / index_name);
      if (raw.num_bytes() != marker.index_bytes)
        throw Error("{} bytes found, expected {}", raw.num_bytes(), marker.index_bytes);
      const uint64_t hash = raw.hash(0, raw.num_bytes());
      if (hash != marker.index_hash)
        throw Error("checksum {} found, expected {}", hash_to_hex(hash), hash_to_hex(marker.index_hash));
    }
    const io::Hdf5File file = io::Hdf5File::open(checkpoint / index_name);
    Manifest manifest;
    manifest.info = read_info(file);
    std::string table(static_cast<size_t>(file.info("/table").num_elements()), '\0');
    file.read("/table", io::ElementType::u8, 0, static_cast<int64_t>(table.size()), table.data());
    if (hash64(table) != marker.table_hash)
      throw Error("table checksum {} found, expected {}", hash_to_hex(hash64(table)), hash_to_hex(marker.table_hash));
    const json node = json::parse(table);
    for (const json& shard : node.at("shards")) manifest.shards.push_back(shard_from_json(shard));
    manifest.info.extra = node.at("extra").get<std::map<std::string, std::string>>();
    return manifest;
  } catch (const Error& error) {
    throw damaged(index_name, error.what());
  } catch (const std::exception& error) {
    throw damaged(index_name, fmt::format("its table can't be read: {}", error.what()));
  }
}

}  // namespace lamina
