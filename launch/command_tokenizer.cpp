#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "data/tokenizer_training.h"
#include "data/utf8.h"
#include "launch/commands.h"
#include "launch/text_options.h"

namespace lamina {
namespace {

struct TokenizerArguments {
  TokenizerTrainingOptions training;
  std::string inspect, text;
  TokenizerOptions inspected;
};

// As JSON writes it: one line, and bytes of half a character as U+FFFD.
std::string as_json(std::string_view text) {
  int64_t num_replaced = 0;
  return nlohmann::json(repair_utf8(text, num_replaced)).dump();
}

void inspect(const TokenizerArguments& options) {
  const auto tokenizer = make_tokenizer(options.inspect, options.inspected);
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<18}{}\n", name, value); };
  row("kind", tokenizer->name());
  row("vocabulary", std::to_string(tokenizer->vocab_size()));
  row("end of document", std::to_string(tokenizer->end_of_document()));
  row("padding", tokenizer->padding() ? std::to_string(*tokenizer->padding()) : "none");
  row("hash", tokenizer->hash());
  if (options.text.empty()) return;
  std::vector<int32_t> tokens;
  tokenizer->encode(options.text, tokens);
  row("text's bytes", std::to_string(options.text.size()));
  row("text's tokens", std::to_string(tokens.size()));
  int32_t previous = tokenizer->end_of_document();
  for (const int32_t token : tokens)
    fmt::print("{:>8}  {}\n", token, as_json(tokenizer->text_of(token, std::exchange(previous, token))));
  row("comes back", tokenizer->decode(tokens) == options.text ? "as it was" : as_json(tokenizer->decode(tokens)));
}

void train(const TokenizerArguments& options) {
  const TokenizerTrainingReport report = train_tokenizer(options.training);
  print_text_counts(report.text);
  fmt::print("{}: {} pieces from {} bytes of text, {:.1f} s\n", options.training.output, report.vocab_size,
             report.num_bytes, report.seconds);
}

}  // namespace

void register_tokenizer(CLI::App& app) {
  auto options = std::make_shared<TokenizerArguments>();
  TokenizerTrainingOptions& training = options->training;
  CLI::App* command = app.add_subcommand("tokenizer", "Train a SentencePiece tokenizer, or look at any");
  command->footer(
      "Examples:\n"
      "  lamina tokenizer --vocab-size 8192 --output bpe.model book1.txt crawl.jsonl.zst\n"
      "  lamina prepare --tokenizer sentencepiece:bpe.model --output data/books book1.txt\n"
      "  lamina tokenizer --inspect huggingface:tokenizer.json --text 'The sea is 12 m deep.'");
  CLI::Option* inputs = command->add_option("inputs", training.inputs, text_inputs_help);
  CLI::Option* size =
      command->add_option("--vocab-size", training.vocab_size, "Pieces, 256 bytes and 3 control pieces included");
  CLI::Option* output = command->add_option("--output", training.output, "The model file to write");
  command->add_option("--model-type", training.model_type, "bpe or unigram")
      ->check(CLI::IsMember({"bpe", "unigram"}))
      ->capture_default_str();
  add_text_options(*command, training.format);
  command->add_option("--max-sentences", training.max_sentences, "Lines sampled from the inputs; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--overwrite", training.overwrite, "Replace an existing file");
  CLI::Option* inspected = command->add_option("--inspect", options->inspect, tokenizer_help)
                               ->type_name("TOKENIZER")
                               ->excludes(inputs)
                               ->excludes(size)
                               ->excludes(output);
  for (const char* of_training : {"--model-type", "--format", "--text-key", "--invalid-utf8", "--skip-bad-records",
                                  "--max-sentences", "--overwrite"})
    inspected->excludes(command->get_option(of_training));
  command->add_option("--text", options->text, "With --inspect: show this text's tokens")->needs(inspected);
  add_tokenizer_options(*command, options->inspected);
  for (const char* of_inspected : {"--end-of-document", "--pattern", "--special-tokens"})
    command->get_option(of_inspected)->needs(inspected);
  command->callback([=] {
    if (inspected->count() > 0) return inspect(*options);
    for (const CLI::Option* needed : {inputs, size, output})
      if (needed->count() == 0) throw CLI::RequiredError(needed->get_name());
    train(*options);
  });
}

}  // namespace lamina
