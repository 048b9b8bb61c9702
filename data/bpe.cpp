#include "data/bpe.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "core/base/hash.h"
#include "data/utf8.h"

namespace lamina {
namespace {

constexpr size_t num_cached_words = size_t{1} << 16;
constexpr size_t max_cached_bytes = size_t{8} << 20, max_cached_word = 128;

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// The character at `at`, which is moved behind it.
uint32_t next_character(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const uint32_t lead = byte(at);
  const size_t length = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  uint32_t code = length == 1 ? lead : lead & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) code = code << 6 | (byte(at + i) & 0x3F);
  at = std::min(at + length, text.size());
  return code;
}

std::string byte_name(unsigned byte) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  return {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
}

}  // namespace

void KeyTable::reserve(size_t num_keys) {
  size_t size = slots_.size();
  while (size < num_keys * 2) size *= 2;
  if (size == slots_.size()) return;
  std::vector<Slot> old(size);
  old.swap(slots_);
  mask_ = size - 1;
  size_ = 0;
  for (const Slot& slot : old)
    if (slot.key != none) put(slot.key, slot.value);
}

void KeyTable::put(uint64_t key, Value value) {
  if ((size_ + 1) * 2 > slots_.size()) reserve(slots_.size());
  size_t at = slot(key);
  while (slots_[at].key != none && slots_[at].key != key) at = (at + 1) & mask_;
  if (slots_[at].key == none) ++size_;
  slots_[at] = {key, value};
}

Bpe::Bpe(Vocabulary vocabulary, const std::vector<BpeMerge>& merges, const BpeOptions& options)
    : options_(options), vocabulary_(std::move(vocabulary)) {
  byte_ids_.fill(-1);
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::string name = options.letters_are_bytes ? std::string(1, static_cast<char>(byte)) : byte_name(byte);
    if (const auto found = vocabulary_.find(name); found != vocabulary_.end()) byte_ids_[byte] = found->second;
  }
  if (!options.letters_are_bytes)
    for (const auto& [text, id] : vocabulary_) {
      if (text.empty()) continue;
      size_t end = 0;
      const uint32_t code = next_character(text, end);
      if (end == text.size()) letters_.put(code, {0, id});
    }
  merges_.reserve(merges.size());
  for (const BpeMerge& merge : merges) merges_.put(pair_key(merge.left, merge.right), {merge.rank, merge.id});
  if (!options.letters_are_bytes) find_joints(merges);
}

// A merged token that reached over a cut would have the characters on both sides of it next to each other. That holds only if
// every letter is its own name, so names of bytes and of the unknown letter must not be merged.
void Bpe::find_joints(const std::vector<BpeMerge>& merges) {
  const bool has_all_bytes =
      options_.byte_fallback && std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end();
  if (options_.whole_words_first || (options_.unknown && !has_all_bytes)) return;
  std::set<int32_t> not_spelt;
  if (options_.byte_fallback) not_spelt.insert(byte_ids_.begin(), byte_ids_.end());
  not_spelt.erase(-1);
  if (options_.unknown) not_spelt.insert(*options_.unknown);
  std::set<int32_t> merged;
  for (const BpeMerge& merge : merges) {
    if (not_spelt.contains(merge.left) || not_spelt.contains(merge.right)) return;
    merged.insert(merge.id);
  }
  for (const auto& [text, id] : vocabulary_) {
    if (!merged.contains(id)) continue;
    size_t at = 0;
    for (uint32_t before = next_character(text, at); at < text.size();) {
      const uint32_t code = next_character(text, at);
      joints_.put(static_cast<uint64_t>(before) << 32 | code, {});
      before = code;
    }
  }
  has_joints_ = true;
}

void Bpe::encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& tokens) const {
  if (word.empty()) return;
  if (!has_joints_) return encode_cached(word, scratch, tokens);
  size_t begin = 0, at = 0;
  for (uint32_t before = next_character(word, at); at < word.size();) {
    const size_t cut = at;
    const uint32_t code = next_character(word, at);
    if (!joints_.find(static_cast<uint64_t>(before) << 32 | code)) {
      encode_cached(word.substr(begin, cut - begin), scratch, tokens);
      begin = cut;
    }
    before = code;
  }
  encode_cached(word.substr(begin), scratch, tokens);
}

void Bpe::encode_cached(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& tokens) const {
  if (word.size() > max_cached_word) return encode_now(word, scratch, tokens);
  const uint64_t hash = hash64(word);
  BpeScratch::Word& cached = scratch.words_[hash & (num_cached_words - 1)];
  if (cached.hash == hash && word == std::string_view(scratch.keys_).substr(cached.key_begin, cached.key_size)) {
    const auto begin = scratch.cached_tokens_.begin() + cached.tokens_begin;
    tokens.insert(tokens.end(), begin, begin + cached.num_tokens);
    return;
  }
  const size_t num_before = tokens.size();
  encode_now(word, scratch, tokens);
  if (scratch.keys_.size() > max_cached_bytes) {  // replaced ones leave their keys and tokens
    scratch.keys_.clear();
    scratch.cached_tokens_.clear();
    std::fill(scratch.words_.begin(), scratch.words_.end(), BpeScratch::Word{});
  }
  cached = {hash, static_cast<uint32_t>(scratch.keys_.size()), static_cast<uint32_t>(scratch.cached_tokens_.size()),
            static_cast<uint32_t>(word.size()), static_cast<uint32_t>(tokens.size() - num_before)};
  scratch.keys_ += word;
  scratch.cached_tokens_.insert(scratch.cached_tokens_.end(), tokens.begin() + static_cast<std::ptrdiff_t>(num_before),
                                tokens.end());
}

void Bpe::encode_now(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& tokens) const {
  if (options_.whole_words_first)
    if (const auto found = vocabulary_.find(word); found != vocabulary_.end()) {
      tokens.push_back(found->second);
      return;
    }
  letters_of(word, scratch.letters_);
  merge(scratch, tokens);
}

// An unknown letter waits for the next known one or the next unknown one, as in `tokenizers`: bytes go before it.
void Bpe::letters_of(std::string_view word, std::vector<int32_t>& letters) const {
  letters.clear();
  bool has_unknown = false;
  for (size_t at = 0; at < word.size();) {
    const size_t begin = at;
    int32_t id = -1;
    if (options_.letters_are_bytes) {
      id = byte_ids_[static_cast<unsigned char>(word[at++])];
    } else if (const KeyTable::Value* letter = letters_.find(next_character(word, at))) {
      id = letter->id;
    }
    if (id >= 0) {
      if (std::exchange(has_unknown, false)) letters.push_back(*options_.unknown);
      letters.push_back(id);
      continue;
    }
    if (options_.byte_fallback && !options_.letters_are_bytes) {
      const size_t num_before = letters.size();
      for (size_t i = begin; i < at; ++i) letters.push_back(byte_ids_[static_cast<unsigned char>(word[i])]);
      if (std::find(letters.begin() + static_cast<std::ptrdiff_t>(num_before), letters.end(), -1) == letters.end())
        continue;
      letters.resize(num_before);
    }
    if (!options_.unknown) continue;
    if (has_unknown && !options_.fuse_unknown) letters.push_back(*options_.unknown);
    has_unknown = true;
  }
  if (has_unknown) letters.push_back(*options_.unknown);
}

void Bpe::merge(BpeScratch& scratch, std::vector<int32_t>& tokens) const {
  std::vector<BpeScratch::Symbol>& symbols = scratch.symbols_;
  std::vector<uint64_t>& heap = scratch.candidates_;
  const auto count = static_cast<int32_t>(scratch.letters_.size());
  symbols.clear();
  heap.clear();
  for (int32_t i = 0; i < count; ++i)
    symbols.push_back({scratch.letters_[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
  const auto at = [&](int32_t place) -> BpeScratch::Symbol& { return symbols[static_cast<size_t>(place)]; };
  const auto merge_at = [&](int32_t place) -> const KeyTable::Value* {
    const BpeScratch::Symbol& left = at(place);
    return left.next < 0 ? nullptr : merges_.find(pair_key(left.id, at(left.next).id));
  };
  const auto candidate = [](uint32_t rank, int32_t place) {
    return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(place);
  };
  for (int32_t i = 0; i + 1 < count; ++i)
    if (const KeyTable::Value* merge = merge_at(i)) heap.push_back(candidate(merge->rank, i));
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto offer = [&](int32_t place) {
    const KeyTable::Value* merge = merge_at(place);
    if (!merge) return;
    heap.push_back(candidate(merge->rank, place));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const auto place = static_cast<int32_t>(heap.front() & 0xFFFFFFFFu);
    const auto rank = static_cast<uint32_t>(heap.front() >> 32);
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    BpeScratch::Symbol& left = at(place);
    const KeyTable::Value* merge = left.id < 0 ? nullptr : merge_at(place);
    if (!merge || merge->rank != rank) continue;  // one of the two has become another
    BpeScratch::Symbol& right = at(left.next);
    left.id = merge->id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = place;
    if (left.previous >= 0) offer(left.previous);
    offer(place);
  }
  for (const BpeScratch::Symbol& symbol : symbols)
    if (symbol.id >= 0) tokens.push_back(symbol.id);
}

BpeScratch::BpeScratch() : words_(num_cached_words) {}

}  // namespace lamina
