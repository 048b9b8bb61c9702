#include "trainer/export/sentencepiece_model.h"

#include <bit>
#include <cstring>

#include "core/base/error.h"

namespace lamina {
namespace {

// Fields of one message in protobuf's wire format: a varint with number and type, then a varint (type 0), 8 bytes (1), a length and as
// many bytes (2), or 4 bytes (5).
class Fields {
 public:
  explicit Fields(std::string_view message) : message_(message) {}

  int64_t number = 0;
  int64_t value = 0;       // of a varint
  std::string_view bytes;  // of any other type

  bool next() {
    if (at_ == message_.size()) return false;
    const int64_t key = varint();
    number = key >> 3;
    value = 0;
    bytes = {};
    switch (key & 7) {
      case 0:
        value = varint();
        return true;
      case 1:
        bytes = take(8);
        return true;
      case 2:
        bytes = take(varint());
        return true;
      case 5:
        bytes = take(4);
        return true;
      default:
        throw Error("no SentencePiece model: field type {} at byte {}", key & 7, at_);
    }
  }

  float real() const {
    if (bytes.size() != sizeof(float)) throw Error("no SentencePiece model: a number of {} bytes", bytes.size());
    float result = 0;
    std::memcpy(&result, bytes.data(), sizeof result);  // little-endian, as this machine
    return result;
  }

 private:
  static_assert(std::endian::native == std::endian::little);

  int64_t varint() {
    uint64_t result = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      result |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return static_cast<int64_t>(result);
    }
    throw Error("no SentencePiece model: an endless number at byte {}", at_);
  }

  std::string_view take(int64_t count) {
    if (count < 0 || static_cast<uint64_t>(count) > message_.size() - at_)
      throw Error("no SentencePiece model: ends at byte {}, expected {} more", message_.size(), count);
    const std::string_view taken = message_.substr(at_, static_cast<size_t>(count));
    at_ += taken.size();
    return taken;
  }

  std::string_view message_;
  size_t at_ = 0;
};

SentencePieceModel::Piece parse_piece(std::string_view bytes) {
  SentencePieceModel::Piece piece;
  for (Fields field(bytes); field.next();) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2) piece.score = field.real();
    if (field.number == 3) piece.kind = static_cast<SentencePieceModel::Kind>(field.value);
  }
  return piece;
}

void parse_trainer(std::string_view bytes, SentencePieceModel& model) {
  for (Fields field(bytes); field.next();) {
    if (field.number == 3) model.algorithm = static_cast<SentencePieceModel::Algorithm>(field.value);
    if (field.number == 24) model.whitespace_is_suffix = field.value != 0;
    if (field.number == 35) model.byte_fallback = field.value != 0;
  }
}

void parse_normalizer(std::string_view bytes, SentencePieceModel& model) {
  for (Fields field(bytes); field.next();) {
    if (field.number == 1) model.normalizer = field.bytes;
    if (field.number == 2) model.has_character_map = !field.bytes.empty();
    if (field.number == 3) model.add_dummy_prefix = field.value != 0;
    if (field.number == 4) model.remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) model.escape_whitespaces = field.value != 0;
  }
}

}  // namespace

SentencePieceModel parse_sentencepiece_model(std::string_view bytes) {
  SentencePieceModel model;
  for (Fields field(bytes); field.next();) {
    if (field.number == 1) model.pieces.push_back(parse_piece(field.bytes));
    if (field.number == 2) parse_trainer(field.bytes, model);
    if (field.number == 3) parse_normalizer(field.bytes, model);
  }
  return model;
}

}  // namespace lamina
