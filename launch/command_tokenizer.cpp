#include <fmt/format.h>

#include <memory>

#include "data/tokenizer_training.h"
#include "launch/commands.h"
#include "launch/text_options.h"

namespace lamina {

void register_tokenizer(CLI::App& app) {
  auto options = std::make_shared<TokenizerTrainingOptions>();
  CLI::App* command = app.add_subcommand("tokenizer", "Train a SentencePiece tokenizer");
  command->footer(
      "Example:\n"
      "  lamina tokenizer --vocab-size 8192 --output bpe.model book1.txt crawl.jsonl.zst\n"
      "  lamina prepare --tokenizer sentencepiece:bpe.model --output data/books book1.txt");
  command->add_option("inputs", options->inputs, text_inputs_help)->required();
  command->add_option("--vocab-size", options->vocab_size, "Pieces, 256 bytes and 3 control pieces included")
      ->required();
  command->add_option("--output", options->output, "The model file to write")->required();
  command->add_option("--model-type", options->model_type, "bpe or unigram")
      ->check(CLI::IsMember({"bpe", "unigram"}))
      ->capture_default_str();
  add_text_options(*command, options->format);
  command->add_option("--max-sentences", options->max_sentences, "Lines sampled from the inputs; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--overwrite", options->overwrite, "Replace an existing file");
  command->callback([options] {
    const TokenizerTrainingReport report = train_tokenizer(*options);
    print_text_counts(report.text);
    fmt::print("{}: {} pieces from {} bytes of text, {:.1f} s\n", options->output, report.vocab_size, report.num_bytes,
               report.seconds);
  });
}

}  // namespace lamina
