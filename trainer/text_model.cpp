#include "trainer/text_model.h"

#include "core/base/log.h"
#include "core/device/cuda_device.h"
#include "data/token_file.h"
#include "parallel/comm/staged.h"
#include "parallel/comm/thread.h"
#include "trainer/record/identity.h"

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

// What run.device becomes.
std::string device_for(const std::string& asked, Precision precision, const std::filesystem::path& checkpoint) {
  const bool can_use_gpu = precision != Precision::fp64;
  if (asked == "cuda" && !can_use_gpu)
    throw Error(
        "{}: found train.precision: fp64, which runs on the CPU only, with --device cuda; expected --device cpu",
        checkpoint.string());
  return asked == "auto" ? (can_use_gpu ? "cuda" : "cpu") : asked;
}

}  // namespace

TextModel::TextModel(const std::filesystem::path& checkpoint, const std::string& data_path, const std::string& device)
    : comm_(comm::make_staged_communicator(comm::make_self_communicator(), nullptr)),
      restored_(restore_parameters(checkpoint, *comm_, EngineUse::inference,
                                   [&](Config& config) {
                                     config.train.micro_batch_size = config.train.global_batch_size = 1;
                                     config.parallel = {};
                                     config.run.device = device_for(device, config.train.precision, checkpoint);
                                   })),
      tokenizer_(tokenizer_for(restored_, data_path)) {
  if (config().run.device == "cuda") log::info("computes on a GPU: {}", cuda::device_info(0).name);
  if (device == "auto" && config().run.device == "cpu") log::info("computes on the CPU: the model is in fp64");
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
