// Text files to a token folder, in one pass and in constant memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/text_input.h"
#include "data/tokenizer.h"

namespace lamina {

struct PrepareOptions {
  std::string tokenizer = "bytes";  // as make_tokenizer takes it
  TokenizerOptions tokenizer_options;
  std::string output;  // the folder to write
  std::vector<std::string> inputs;
  TextFormat format;
  // The inputs hold the tokenizer's tokens already (data/token_input.h) and are only described.
  bool in_place = false;
  std::string token_type;     // of a flat file used in place: u8, u16 or u32
  std::string origin;         // what origin.json beside tokens.h5 says of this process; empty: there is none
  bool overwrite = false;     // replace a token folder that stands at `output`
  int num_threads = 0;        // 0: all cores. The result doesn't depend on it.
  bool show_progress = true;  // on stderr
};

struct PrepareReport {
  int64_t num_tokens = 0;  // with one end-of-document token per document
  int64_t num_documents = 0;
  int64_t num_bytes = 0;  // of text
  int64_t vocab_size = 0;
  int64_t num_changed_documents = 0;  // that don't come back from their tokens as they were
  TextCounts text;
  std::vector<std::string> files_in_place;  // one after the other
  std::vector<std::string> passed_over;     // entries of folders that are no token files
  double seconds = 0;
};

// Writes to <output>.tmp-<pid> and renames when all is on the disk. On failure, and on SIGINT, SIGTERM or SIGHUP,
// nothing stays behind. Throws Error.
PrepareReport prepare(const PrepareOptions& options);

}  // namespace lamina
