// Token ids that other programs wrote, used where they lie: Megatron's .bin with the .idx beside it, one-dimensional NumPy arrays, and flat
// files, one or many. All little-endian.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lamina {

struct TokenInput {
  std::filesystem::path file;  // absolute
  int64_t file_bytes = 0;      // its length
  int64_t offset = 0;          // of the first id, in bytes
  int64_t token_bytes = 0;     // 1, 2 or 4
  int64_t num_tokens = 0;
  std::vector<int64_t> document_ends;  // behind each document's last token; empty: nobody says
};

// `token_type` is u8, u16 or u32 for a flat file, and empty for the others, which say it themselves. A Megatron data set may be named by
// either file. Throws Error for types that are no ids, and where the lengths contradict each other.
TokenInput open_token_input(const std::filesystem::path& path, const std::string& token_type);

struct TokenInputs {
  std::vector<TokenInput> files;         // in the order in which they stand one after the other
  std::vector<std::string> passed_over;  // entries of folders that are no token files
};

// Files as above, and folders, of which all .bin and .npy are taken by name, in the order of its bytes (shard-10 before shard-2). A data
// set named by both of its files counts once. Throws Error for a file that is empty, named twice, or of another width than the first.
TokenInputs open_token_inputs(const std::vector<std::string>& paths, const std::string& token_type);

}  // namespace lamina
