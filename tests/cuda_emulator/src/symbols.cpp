#include "symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>

namespace lamina_emulator {
namespace {

struct Symbols {
  std::map<uint64_t, std::string> functions;  // by address
  struct Variable {
    uint64_t offset, num_bytes;  // in the thread's memory
  };
  std::map<std::string, Variable> of_threads;  // thread_local variables, by mangled name
  uint64_t tls_size = 0;                       // of the program's part of a thread's memory, rounded to its alignment
};

template <class T>
const T* at(const std::vector<char>& file, uint64_t offset, uint64_t count) {
  const bool fits = offset <= file.size() && count <= (file.size() - offset) / sizeof(T);
  return fits ? reinterpret_cast<const T*>(file.data() + offset) : nullptr;
}

uint64_t address_of_program() {
  uint64_t base = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* result) {  // the program comes first
        *static_cast<uint64_t*>(result) = info->dlpi_addr;
        return 1;
      },
      &base);
  return base;
}

Symbols read_symbols() {
  Symbols result;
  std::ifstream stream("/proc/self/exe", std::ios::binary);
  const std::vector<char> file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const auto* const header = at<Elf64_Ehdr>(file, 0, 1);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return result;
  const auto* const segments = at<Elf64_Phdr>(file, header->e_phoff, header->e_phnum);
  const auto* const sections = at<Elf64_Shdr>(file, header->e_shoff, header->e_shnum);
  if (segments == nullptr || sections == nullptr) return result;
  for (int i = 0; i < header->e_phnum; ++i)
    if (segments[i].p_type == PT_TLS) {
      const uint64_t align = segments[i].p_align == 0 ? 1 : segments[i].p_align;
      result.tls_size = (segments[i].p_memsz + align - 1) / align * align;
    }
  const uint64_t base = address_of_program();
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB || sections[s].sh_link >= header->e_shnum) continue;
    const uint64_t count = sections[s].sh_size / sizeof(Elf64_Sym), names = sections[sections[s].sh_link].sh_offset;
    const auto* const symbols = at<Elf64_Sym>(file, sections[s].sh_offset, count);
    for (uint64_t i = 0; symbols != nullptr && i < count; ++i) {
      if (symbols[i].st_shndx == SHN_UNDEF || names + symbols[i].st_name >= file.size()) continue;
      const char* const name = file.data() + names + symbols[i].st_name;
      if (ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC) result.functions.emplace(base + symbols[i].st_value, name);
      if (ELF64_ST_TYPE(symbols[i].st_info) == STT_TLS)
        result.of_threads[name] = {symbols[i].st_value, symbols[i].st_size};
    }
  }
  return result;
}

const Symbols& symbols() {
  static const Symbols& all = *new Symbols(read_symbols());
  return all;
}

}  // namespace

std::string kernel_name(const void* kernel) {
  const auto found = symbols().functions.find(reinterpret_cast<uint64_t>(kernel));
  if (found == symbols().functions.end()) return "a kernel";
  int status = 0;
  char* const readable = abi::__cxa_demangle(found->second.c_str(), nullptr, nullptr, &status);
  const std::string name = status == 0 ? readable : found->second;
  std::free(readable);
  return "kernel " + name;
}

std::vector<SharedVariable> shared_variables(const void* kernel) {
  const auto found = symbols().functions.find(reinterpret_cast<uint64_t>(kernel));
  if (found == symbols().functions.end() || found->second.rfind("_Z", 0) != 0) return {};
  // _Z f is the function, _ZZ f E name a variable in it. On x86-64 the program's variables end where the thread's pointer points.
  const std::string prefix = "_ZZ" + found->second.substr(2) + "E";
  auto* const end = static_cast<std::byte*>(__builtin_thread_pointer());
  std::vector<SharedVariable> result;
  for (auto variable = symbols().of_threads.lower_bound(prefix);
       variable != symbols().of_threads.end() && variable->first.rfind(prefix, 0) == 0; ++variable)
    result.push_back({end - symbols().tls_size + variable->second.offset, variable->second.num_bytes});
  return result;
}

}  // namespace lamina_emulator
