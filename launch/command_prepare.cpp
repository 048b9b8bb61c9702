#include <fmt/ranges.h>

#include <memory>

#include "data/prepare.h"
#include "launch/commands.h"
#include "launch/origin.h"
#include "launch/text_options.h"

namespace lamina {

namespace {

// "\n" and the like, as one types them in a shell; a backslash stands for itself when it is doubled.
std::string unescape(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      result.push_back(text[i]);
      continue;
    }
    switch (text[++i]) {
      case 'n':
        result.push_back('\n');
        break;
      case 't':
        result.push_back('\t');
        break;
      case 'r':
        result.push_back('\r');
        break;
      case '\\':
        result.push_back('\\');
        break;
      default:
        result.push_back('\\');
        result.push_back(text[i]);
    }
  }
  return result;
}

std::string shorten(const std::vector<std::string>& names) {
  if (names.size() <= 4) return fmt::format("{}", fmt::join(names, ", "));
  return fmt::format("{}, {}, .., {}", names[0], names[1], names.back());
}

}  // namespace

void register_prepare(CLI::App& app) {
  auto options = std::make_shared<PrepareOptions>();
  CLI::App* command = app.add_subcommand("prepare", "Turn text files into a token folder");
  command->footer(
      "Examples:\n"
      "  lamina prepare --tokenizer bytes --output data/english book1.txt book2.txt.gz\n"
      "  lamina prepare --tokenizer sentencepiece:bpe.model --output data/web crawl-*.jsonl.zst\n"
      "  lamina prepare --tokenizer huggingface:Llama-3.1-8B --output data/web crawl-*.jsonl.zst\n"
      "  lamina prepare --tokenizer tiktoken:Kimi-K2/tiktoken.model --pattern kimi --output data/web crawl.jsonl\n"
      "  jq -c .page crawl.json | lamina prepare --text-key body.text --output data/web -\n"
      "  lamina prepare --tokenizer sentencepiece:llama.model --in-place --output data/pile pile_text_document.bin\n"
      "  lamina prepare --tokenizer huggingface:gpt2 --in-place --token-type u16 --output data/web shards/\n"
      "  lamina prepare --output data/stories --document-separator '\\n\\n\\n' stories.txt");
  command->add_option("inputs", options->inputs, text_inputs_help)->required();
  command->add_option("--tokenizer", options->tokenizer, tokenizer_help)->capture_default_str();
  add_tokenizer_options(*command, options->tokenizer_options);
  command->add_option("--output", options->output, "The folder to write")->required();
  add_text_options(*command, options->format);
  command->add_option("--document-separator", options->format.document_separator,
                      "Cut plain text into documents at this text (\\n, \\t, \\r and \\\\ are understood)");
  command->add_option("--threads", options->num_threads, "Threads that tokenize; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  CLI::Option* in_place = command->add_flag("--in-place", options->in_place,
                                            "The inputs are files of the tokenizer's tokens (Megatron's .bin, NumPy or "
                                            "flat) or folders of them, used where they "
                                            "lie, one after the other");
  command->add_option("--token-type", options->token_type, "Of flat files used in place: u8, u16 or u32")
      ->check(CLI::IsMember({"u8", "u16", "u32"}))
      ->needs(in_place);
  for (const char* of_text :
       {"--format", "--text-key", "--invalid-utf8", "--skip-bad-records", "--document-separator", "--threads"})
    in_place->excludes(command->get_option(of_text));
  command->add_flag("--overwrite", options->overwrite, "Replace an existing token folder");
  command->callback([options] {
    options->format.document_separator = unescape(options->format.document_separator);
    options->origin = origin_file(program_origin());
    const PrepareReport report = prepare(*options);
    print_text_counts(report.text);
    if (!report.passed_over.empty())
      fmt::print("passed over: {} (neither .bin nor .npy)\n", shorten(report.passed_over));
    if (report.files_in_place.size() > 1)
      fmt::print("{} files, one after the other: {}\n", report.files_in_place.size(), shorten(report.files_in_place));
    if (report.num_changed_documents > 0)
      fmt::print(
          "changed by the tokenizer: {} documents don't come back from their tokens as they were; bits per byte will "
          "count what comes back\n",
          report.num_changed_documents);
    fmt::print("{}: {} tokens in {} documents, {} bytes of text ({:.3f} bytes per token), vocabulary {}, {:.1f} s\n",
               options->output, report.num_tokens, report.num_documents, report.num_bytes,
               static_cast<double>(report.num_bytes) / static_cast<double>(report.num_tokens), report.vocab_size,
               report.seconds);
  });
}

}  // namespace lamina
