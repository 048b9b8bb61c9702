// What an input is, by its first bytes.
#pragma once

#include <filesystem>
#include <string_view>

namespace lamina {

enum class Content { text, json_lines, json_array };

constexpr size_t content_head_bytes = size_t{1} << 16;  // enough to tell

// `head` are the first bytes, decompressed; all of them where there are fewer than content_head_bytes. `format` is auto, text, jsonl or
// json: told, not found out; what is known to be no text is refused all the same. Error naming the file, what was found in it, and
// what helps. A name that promises JSON (.json, .jsonl, .ndjson) must keep it.
Content identify_content(const std::filesystem::path& path, std::string_view head, std::string_view format);

// Error unless one of auto, text, jsonl and json.
void check_content_format(std::string_view format);

}  // namespace lamina
