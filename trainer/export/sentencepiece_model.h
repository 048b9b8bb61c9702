// What stands in a SentencePiece model file (sentencepiece_model.proto), as far as another program needs it to be the same tokenizer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

struct SentencePieceModel {
  enum class Kind : int64_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  enum class Algorithm : int64_t { unigram = 1, bpe = 2, word = 3, character = 4 };
  struct Piece {
    std::string text;
    float score = 0;
    Kind kind = Kind::normal;
  };
  std::vector<Piece> pieces;  // by id
  Algorithm algorithm = Algorithm::unigram;
  bool byte_fallback = false;
  bool whitespace_is_suffix = false;
  std::string normalizer;          // its name
  bool has_character_map = false;  // it replaces characters
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Error naming the byte where the text is not such a model.
SentencePieceModel parse_sentencepiece_model(std::string_view bytes);

}  // namespace lamina
