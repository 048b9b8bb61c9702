// Text to token ids and back. Immutable after construction; every method may be called from several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual void encode(std::string_view text,
                      std::vector<int32_t>& tokens) const = 0;  // appends; a document from its beginning
  // The same for what goes on after safe_cut().
  virtual void encode_more(std::string_view text, std::vector<int32_t>& tokens) const { encode(text, tokens); }

  // What a token adds to the text after `previous`: bytes, maybe of half a character; nothing for control tokens. Throws Error for an id
  // that isn't in the vocabulary.
  virtual std::string_view text_of(int32_t token, int32_t previous) const = 0;
  std::string decode(std::span<const int32_t> tokens) const;  // documents from their beginnings
  virtual int64_t vocab_size() const = 0;
  virtual int32_t end_of_document() const = 0;
  // The token that fills up batches elsewhere, where the tokenizer has one; training never sees it.
  virtual std::optional<int32_t> padding() const { return std::nullopt; }

  // Bytes of text that a token stands for; 0 for control tokens. Loss per byte needs it.
  int64_t num_bytes(int32_t token, int32_t previous) const {
    return static_cast<int64_t>(text_of(token, previous).size());
  }

  // Two tokenizers are the same when their hashes are: of the model's bytes, or of the name "bytes". Of other programs' files: of the
  // file and what was chosen beside it, such as the token that ends a document.
  virtual const std::string& hash() const = 0;
  virtual const std::string& name() const = 0;   // "bytes", "sentencepiece", "huggingface" or "tiktoken"
  virtual const std::string& model() const = 0;  // what a token file keeps of it; empty for bytes

  // Where a long document may be cut without changing its tokens: the largest such length in [1, text.size()].
  virtual size_t safe_cut(std::string_view text) const = 0;
};

// What a file of another program doesn't say.
struct TokenizerOptions {
  std::string end_of_document;  // the name of the special token that ends a document
  std::string pattern;          // tiktoken: what cuts a text into words, or a preset's name: cl100k, o200k, kimi
  std::vector<std::string> special_tokens;  // tiktoken: NAME=ID
};

// "bytes", "sentencepiece:FILE", "huggingface:FILE" (a tokenizer.json, or the folder that has one) or "tiktoken:FILE". Throws Error for any
// other text, for a file that isn't of this kind, and for options that it has no use for.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& spec, const TokenizerOptions& options = {});

// From what a token file keeps: name and model; `origin` stands for the file in messages.
std::unique_ptr<Tokenizer> make_stored_tokenizer(const std::string& name, const std::string& model,
                                                 const std::string& origin);

}  // namespace lamina
