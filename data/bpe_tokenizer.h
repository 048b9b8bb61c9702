// A tokenizer made of the parts that other programs' files describe: added tokens, a normalizer, a pre-tokenizer, byte-pair encoding.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/added_tokens.h"
#include "data/bpe.h"
#include "data/text_steps.h"
#include "data/tokenizer.h"

namespace lamina {

struct BpeTokenizerParts {
  std::string name, model, hash;  // as Tokenizer's
  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::optional<Bpe> bpe;
  std::vector<std::string> texts;  // what each token adds to the text; nothing for controls
  std::vector<int32_t> begin;      // before a document
  int32_t end_of_document = 0;
  std::optional<int32_t> padding;
  bool begins_with_space = false;  // the text of a document's first token, without being part of the document
};

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeTokenizerParts parts);
  ~BpeTokenizer() override;

  void encode(std::string_view text, std::vector<int32_t>& tokens) const override;
  void encode_more(std::string_view text, std::vector<int32_t>& tokens) const override;
  std::string_view text_of(int32_t token, int32_t previous) const override;
  int64_t vocab_size() const override { return static_cast<int64_t>(parts_.texts.size()); }
  int32_t end_of_document() const override { return parts_.end_of_document; }
  std::optional<int32_t> padding() const override { return parts_.padding; }
  const std::string& hash() const override { return parts_.hash; }
  const std::string& name() const override { return parts_.name; }
  const std::string& model() const override { return parts_.model; }
  size_t safe_cut(std::string_view text) const override;

 private:
  using Place = PreTokenizer::Place;
  struct Scratch;
  class Lease;
  void encode_from(std::string_view text, Place place, std::vector<int32_t>& tokens) const;
  void encode_section(std::string_view text, Place place, Scratch& scratch, std::vector<int32_t>& tokens) const;
  bool may_cut(std::string_view text, size_t at) const;

  BpeTokenizerParts parts_;
  AddedTokenFinder raw_tokens_, normalized_tokens_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> idle_;  // one for each thread that was ever at work
};

}  // namespace lamina
