// Names of kernels, from the program's own table of symbols.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "block.h"

namespace lamina_emulator {
namespace {

template <class T>
const T* at(const std::vector<char>& file, uint64_t offset, uint64_t count = 1) {
  return offset <= file.size() && count <= (file.size() - offset) / sizeof(T)
             ? reinterpret_cast<const T*>(file.data() + offset)
             : nullptr;
}

std::string symbol_at(const std::vector<char>& file, uint64_t base, uint64_t address) {
  const auto* const header = at<Elf64_Ehdr>(file, 0);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return {};
  if (header->e_type != ET_EXEC) address -= base;
  const auto* const sections = at<Elf64_Shdr>(file, header->e_shoff, header->e_shnum);
  if (sections == nullptr) return {};
  for (const Elf64_Shdr* table = sections; table != sections + header->e_shnum; ++table) {
    if (table->sh_type != SHT_SYMTAB || table->sh_link >= header->e_shnum) continue;
    const uint64_t count = table->sh_size / sizeof(Elf64_Sym);
    const auto* const symbols = at<Elf64_Sym>(file, table->sh_offset, count);
    const uint64_t names = sections[table->sh_link].sh_offset;
    for (uint64_t i = 0; symbols != nullptr && i < count; ++i)
      if (symbols[i].st_value == address && ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC &&
          names + symbols[i].st_name < file.size())
        return file.data() + names + symbols[i].st_name;
  }
  return {};
}

}  // namespace

std::string kernel_name(const void* kernel) {
  Dl_info info{};
  if (dladdr(const_cast<void*>(kernel), &info) == 0 || info.dli_fname == nullptr) return "a kernel";
  std::string mangled = info.dli_saddr == kernel && info.dli_sname != nullptr ? info.dli_sname : "";
  if (mangled.empty()) {
    std::ifstream stream("/proc/self/exe", std::ios::binary);
    const std::vector<char> file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    mangled = symbol_at(file, reinterpret_cast<uint64_t>(info.dli_fbase), reinterpret_cast<uint64_t>(kernel));
  }
  if (mangled.empty()) return "a kernel";
  int status = 0;
  char* const readable = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  const std::string name = status == 0 ? readable : mangled;
  std::free(readable);
  return "kernel " + name;
}

}  // namespace lamina_emulator
