// Whole files and folders on disk: durable (fsync) and atomic (a reader sees the old content or the new one, never half).
// Every failure is an Error with the path and the system's reason; a full disk says "disk full".
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace lamina::io {

// Writes to a temporary name in the same folder, flushes it to the disk, renames it over `path`, and flushes the folder.
// On failure the temporary is removed and what stood at `path` before still stands.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);
void write_file_atomically(const std::filesystem::path& path, std::span<const uint8_t> content);

std::string read_file(const std::filesystem::path& path);

void fsync_file(const std::filesystem::path& path);
void fsync_directory(const std::filesystem::path& path);

// fsync of every regular file below `directory`, then of the folders, innermost first.
void fsync_tree(const std::filesystem::path& directory);

// Both in the same file system; the parent folders are flushed, so the new name survives a power cut.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

// The reason of an errno as messages show it: "disk full", "disk quota exceeded", or the system's own words.
std::string describe_errno(int error_number);

}  // namespace lamina::io
