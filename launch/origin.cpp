#include "launch/origin.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/here.h"
#include "core/device/cuda_device.h"
#include "core/io/file.h"
#include "core/io/hdf5.h"
#include "core/ops/matmul/onednn_version.h"
#include "launch/program.h"
#ifdef LAMINA_HAVE_MPI
#include "parallel/comm/mpi/mpi_communicator.h"
#endif
#ifdef LAMINA_HAVE_NCCL
#include "parallel/comm/nccl/nccl_communicator.h"
#endif

namespace lamina {
namespace {

std::vector<std::string> command_words() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> words;
  for (size_t begin = 0; begin < text.size();) {
    words.emplace_back(text.c_str() + begin);
    begin += words.back().size() + 1;
  }
  return words;
}

std::string one_line(const std::string& text) {
  return text.substr(0, text.find_first_of("\r\n"));
}

std::string libraries_text() {
  std::string text;
  const auto add = [&](const std::string& name) { text += (text.empty() ? "" : "; ") + name; };
#ifdef LAMINA_HAVE_MPI
  add(one_line(comm::mpi_library_version()));
#else
  add("no MPI");
#endif
  add("HDF5 " + io::hdf5_library().version);
  add("oneDNN " + ops::onednn_version());
  if (cuda::is_built())
    add(fmt::format("CUDA {}.{}", cuda::runtime_version() / 1000, cuda::runtime_version() % 1000 / 10));
#ifdef LAMINA_HAVE_NCCL
  add("NCCL " + one_line(comm::nccl_loaded_version()));
#endif
#ifdef __clang__
  add("compiled by Clang " __clang_version__);
#else
  add("compiled by GCC " __VERSION__);
#endif
  return text;
}

}  // namespace

std::string quote_for_shell(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += ' ';
    const bool is_plain = !word.empty() && word.find_first_not_of(
                                               "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                               "_@%+=:,./-") == std::string::npos;
    if (is_plain) {
      text += word;
      continue;
    }
    text += '\'';
    for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    text += '\'';
  }
  return text;
}

std::string hosts_text(const std::vector<std::string>& hosts) {
  std::string text;
  for (size_t begin = 0; begin < hosts.size();) {
    size_t end = begin + 1;
    while (end < hosts.size() && hosts[end] == hosts[begin]) ++end;
    text += (text.empty() ? "" : ", ") + hosts[begin];
    if (end - begin > 1) text += fmt::format(" x {}", end - begin);
    begin = end;
  }
  return text;
}

Origin program_origin(const std::vector<std::string>& hosts) {
  Origin origin{
      {"command", quote_for_shell(command_words())}, {"hosts", hosts_text(hosts)}, {"libraries", libraries_text()}};
  if (const std::string commit = program_commit(); !commit.empty()) origin["commit"] = commit;
  return origin;
}

Origin program_origin() {
  return program_origin({host_name()});
}

std::string origin_file(const Origin& origin) {
  nlohmann::ordered_json document{{"program", program_name()}, {"time", utc_now()}};
  for (const auto& [key, value] : origin) document[key] = value;
  return document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string describe_origin(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::path(folder) / origin_name;
  if (!std::filesystem::exists(path)) return "";
  const auto document = nlohmann::ordered_json::parse(io::read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) throw Error("{}: found no JSON object; the file is damaged", path.string());
  std::string text;
  for (const auto& [key, value] : document.items()) {
    if (value.is_string()) text += fmt::format("{:<14} {}\n", key, value.get<std::string>());
    if (!value.is_object()) continue;
    text += key + "\n";
    for (const auto& [name, entry] : value.items())
      text += fmt::format("  {:<14} {}\n", name, entry.is_string() ? entry.get<std::string>() : entry.dump());
  }
  return text;
}

}  // namespace lamina
