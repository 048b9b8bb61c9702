#include "trainer/text_model.h"

#include "data/token_file.h"
#include "parallel/comm/thread.h"
#include "trainer/identity.h"

namespace lamina {
namespace {

// The checkpoint's own, unless another place was named or it has none.
std::unique_ptr<Tokenizer> tokenizer_for(const Restored& restored, const std::string& data_path) {
  const std::string checkpoint = restored.checkpoint.string();
  std::string place = checkpoint;
  auto tokenizer = data_path.empty() ? make_tokenizer(restored.info, checkpoint) : nullptr;
  if (!tokenizer) {
    place = data_path.empty() ? restored.config.data.train.front().path : data_path;
    tokenizer = TokenFile::open(place).make_tokenizer();
    check_tokenizer(restored.info, checkpoint, tokenizer->hash(), place);
  }
  if (tokenizer->vocab_size() > restored.config.model.vocab_size)
    throw Error("{}: found a tokenizer of {} tokens, expected at most the model's {}", place, tokenizer->vocab_size(),
                restored.config.model.vocab_size);
  return tokenizer;
}

}  // namespace

TextModel::TextModel(const std::filesystem::path& checkpoint, const std::string& data_path)
    : comm_(comm::make_self_communicator()),
      restored_(restore_parameters(checkpoint, *comm_, EngineUse::inference,
                                   [](Config& config) {
                                     config.train.micro_batch_size = config.train.global_batch_size = 1;
                                     config.parallel = {};
                                     config.run.device = "cpu";
                                   })),
      tokenizer_(tokenizer_for(restored_, data_path)) {
  inference::DecoderOptions options;
  options.bf16_products = restored_.engine->context().bf16_products;
  options.backend = restored_.engine->context().backend;
  if (config().data.document_mask) options.document_end = tokenizer_->end_of_document();
  decoder_ = std::make_unique<inference::Decoder>(config().model, restored_.engine->parameters(), options);
}

std::vector<int32_t> TextModel::tokens_of(std::string_view prompt) const {
  std::vector<int32_t> tokens = {tokenizer_->end_of_document()};
  tokenizer_->encode(prompt, tokens);
  return tokens;
}

}  // namespace lamina
