#include "data/text_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <utility>

#include "core/base/error.h"

namespace lamina {
namespace {

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

PCRE2_SPTR units(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

}  // namespace

struct PatternScratch::Memory {
  static constexpr size_t stack_bytes = size_t{32} << 10, max_stack_bytes = size_t{256} << 20;
  // Without a compiler for this machine the library interprets, with memory in kibibytes.
  static constexpr uint32_t max_heap = 1u << 20;

  Memory() : match(pcre2_match_data_create(1, nullptr)), context(pcre2_match_context_create(nullptr)) {
    if (!match || !context) throw std::bad_alloc();
    pcre2_set_heap_limit(context, max_heap);
    pcre2_set_match_limit(context, 1u << 30);
    stack = pcre2_jit_stack_create(stack_bytes, max_stack_bytes, nullptr);
    if (stack) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Memory() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  pcre2_match_data* match;
  pcre2_match_context* context;
  pcre2_jit_stack* stack = nullptr;
};

PatternScratch::PatternScratch() : memory_(std::make_unique<Memory>()) {}
PatternScratch::~PatternScratch() = default;
PatternScratch::PatternScratch(PatternScratch&&) noexcept = default;
PatternScratch& PatternScratch::operator=(PatternScratch&&) noexcept = default;

struct TextPattern::Code {
  explicit Code(pcre2_code* compiled_code) : compiled(compiled_code) {}
  ~Code() { pcre2_code_free(compiled); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  pcre2_code* compiled;
  bool is_machine_code = false;
};

TextPattern::TextPattern(std::string_view pattern, PatternDialect dialect, const std::string& origin)
    : TextPattern(pcre2_pattern(pattern, dialect, origin), origin) {}

TextPattern TextPattern::literal(std::string_view text, const std::string& origin) {
  std::string quoted;
  for (const char c : text) {
    const bool is_plain = (c & 0x80) != 0 || c == ' ' || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
    if (is_plain)
      quoted += c;
    else
      quoted += fmt::format("\\x{{{:X}}}", static_cast<unsigned char>(c));
  }
  return {quoted, origin};
}

TextPattern::TextPattern(const std::string& pcre2, const std::string& origin) : origin_(origin) {
  int error = 0;
  PCRE2_SIZE place = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_code* compiled = pcre2_compile(units(pcre2), pcre2.size(), PCRE2_UTF | PCRE2_UCP, &error, &place, context);
  pcre2_compile_context_free(context);
  if (!compiled) throw Error("{}: pattern {}: at byte {}: {}", origin_, pcre2, place, message_of(error));
  auto code = std::make_shared<Code>(compiled);
  code->is_machine_code = pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE) == 0;
  code_ = std::move(code);
}

bool TextPattern::find(std::string_view text, size_t from, PatternScratch& scratch, TextSpan& match) const {
  const PatternScratch::Memory& memory = *scratch.memory_;
  int result = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code_->is_machine_code && memory.stack)
    result = pcre2_jit_match(code_->compiled, units(text), text.size(), from, 0, memory.match, memory.context);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT)
    result = pcre2_match(code_->compiled, units(text), text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         memory.match, memory.context);
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0)
    throw Error("{}: the pattern can't be searched for in {} bytes of text: {}", origin_, text.size() - from,
                message_of(result));
  const PCRE2_SIZE* places = pcre2_get_ovector_pointer(memory.match);
  match = {places[0], places[1]};
  return true;
}

}  // namespace lamina
