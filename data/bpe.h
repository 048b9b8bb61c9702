// Byte-pair encoding: a word starts as its letters; of all adjacent pairs that may merge, the one with the earliest merge goes first, the
// leftmost of equals (Sennrich et al. 2016), as in `tokenizers` and `tiktoken`. Immutable; each thread needs a BpeScratch of its own.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lamina {

// From 64-bit keys to small values; a flat table, for keys other than all ones.
class KeyTable {
 public:
  struct Value {
    uint32_t rank = 0;
    int32_t id = -1;
  };
  void reserve(size_t num_keys);
  void put(uint64_t key, Value value);  // replaces
  const Value* find(uint64_t key) const {
    for (size_t at = slot(key); slots_[at].key != none; at = (at + 1) & mask_)
      if (slots_[at].key == key) return &slots_[at].value;
    return nullptr;
  }

 private:
  static constexpr uint64_t none = ~uint64_t{0};
  struct Slot {
    uint64_t key = none;
    Value value;
  };
  size_t slot(uint64_t key) const { return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 32) & mask_; }

  std::vector<Slot> slots_ = std::vector<Slot>(16);
  size_t mask_ = 15;
  size_t size_ = 0;
};

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using Vocabulary = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

struct BpeMerge {
  int32_t left = 0, right = 0;
  uint32_t rank = 0;
  int32_t id = 0;  // of what the two become
};

struct BpeOptions {
  bool letters_are_bytes = false;  // else characters of UTF-8
  bool whole_words_first = false;  // a word of the vocabulary is its own token, whatever the merges make of it
  bool byte_fallback =
      false;  // a character that the vocabulary lacks is spelt in bytes, <0x41>, where it has all of them
  std::optional<int32_t> unknown;  // what stands for other letters; without it they vanish
  bool fuse_unknown = false;       // one for several next to each other
};

class BpeScratch;

class Bpe {
 public:
  // `vocabulary`: the words that texts may become, by their bytes.
  Bpe(Vocabulary vocabulary, const std::vector<BpeMerge>& merges, const BpeOptions& options);

  // Appends the word's tokens. A word is whole characters unless letters are bytes.
  void encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& tokens) const;

 private:
  void encode_cached(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& tokens) const;
  void encode_now(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& tokens) const;
  void letters_of(std::string_view word, std::vector<int32_t>& letters) const;
  void merge(BpeScratch& scratch, std::vector<int32_t>& tokens) const;
  void find_joints(const std::vector<BpeMerge>& merges);

  BpeOptions options_;
  Vocabulary vocabulary_;
  std::array<int32_t, 256> byte_ids_{};  // letters, or the spelling <0x41>
  KeyTable letters_;                     // characters
  KeyTable merges_;
  // Pairs of neighbouring characters inside of merged tokens. Between two others every word may be cut, which makes long ones short.
  KeyTable joints_;
  bool has_joints_ = false;
};

// Memory of encoding, with the words that were seen lately. Of one Bpe.
class BpeScratch {
 public:
  BpeScratch();

 private:
  friend class Bpe;
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1: none
  };
  struct Word {
    uint64_t hash = 0;
    uint32_t key_begin = 0, tokens_begin = 0;
    uint32_t key_size = 0, num_tokens = 0;
  };

  std::vector<int32_t> letters_;
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> candidates_;  // a heap: rank, place
  std::vector<Word> words_;           // by the hash
  std::string keys_;
  std::vector<int32_t> cached_tokens_;
};

}  // namespace lamina
