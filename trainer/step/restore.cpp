#include "trainer/step/restore.h"

#include <set>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/log.h"
#include "core/ops/elementwise/elementwise.h"
#include "model/parameters.h"
#include "parallel/comm/agreement.h"
#include "trainer/record/identity.h"
#include "trainer/step/bf16_choice.h"

namespace lamina {

std::filesystem::path resolve_checkpoint(const std::filesystem::path& path, comm::Communicator& comm) {
  if (!std::filesystem::exists(path))
    throw Error("{}: no such folder, expected a checkpoint or a run folder", path.string());
  if (!std::filesystem::is_directory(path / "checkpoints")) return path;
  const auto newest = find_checkpoint(path / "checkpoints", comm);
  if (!newest) throw Error("{}: holds no checkpoint yet", (path / "checkpoints").string());
  return *newest;
}

namespace {

// The checkpoint and the configuration have the same model, and every parameter of the one is a parameter of the other.
void check_model(const std::filesystem::path& checkpoint, const CheckpointReader& reader, const ModelConfig& model) {
  const std::string name = checkpoint.string();
  check_same_model(name, parse_config(reader.info().config_yaml, name).model, model);
  check_parameters(name, reader.tensors(), model::parameter_specs(model));
}

void load_masters(CheckpointReader& reader, Engine& engine, const std::set<std::string>& added = {}) {
  for (const TensorPiece& piece : engine.optimizer().state())
    if (piece.name.starts_with("parameters/") && !added.contains(piece.name)) reader.load(piece);
}

// The parameters that this rank owns, without masters beside them: one at a time in the accumulation dtype, and rounded.
void load_values(CheckpointReader& reader, Engine& engine) {
  ops::OpContext& ctx = engine.context();
  for (const model::Group which : {model::Group::matrices, model::Group::experts, model::Group::vectors}) {
    const model::ParameterGroup& group = engine.parameters().group(which);
    const DType acc = accumulation_dtype(group.dtype);
    for (const zero::OwnedPart& part : engine.owned_parts(which)) {
      const auto index = static_cast<size_t>(group.spec_of[static_cast<size_t>(part.parameter)]);
      const model::ParameterSpec& spec = engine.parameters().specs()[index];
      const int64_t count = part.end - part.begin;
      const TensorView value = group.all_values().slice(0, part.flat_offset, part.flat_offset + count);
      Buffer room;
      TensorView master = value;
      if (group.dtype != acc) {
        room = Buffer(count * size_of(acc), value.device, nullptr, "a parameter of the checkpoint");
        master = TensorView(room.data(), acc, {count}, value.device);
      }
      reader.load({"parameters/" + spec.name, spec.shape, part.begin, part.end, master});
      if (group.dtype != acc) ops::cast(ctx, {master, value});
      ctx.stream.synchronize();
    }
  }
}

std::vector<model::ParameterSpec> check_start(const std::filesystem::path& checkpoint, const CheckpointReader& reader,
                                              const Config& config, const Sampler& sampler) {
  const ModelConfig stored = parse_config(reader.info().config_yaml, checkpoint.string()).model;
  auto added = check_model_to_start_from(checkpoint.string(), stored, config.model);
  check_parameters(checkpoint.string(), reader.tensors(), model::parameter_specs(stored));
  check_tokenizer(reader.info(), checkpoint.string(), sampler.tokenizer().hash(), config.data.train.front().path);
  const std::optional<DataIdentity> trained = stored_data(reader.info());
  if (const int64_t seen = trained ? sampler.num_trained_validation_sequences(*trained) : 0; seen > 0)
    log::info("{} was trained on {} of the {} validation sequences: their loss says little", checkpoint.string(), seen,
              sampler.num_validation_sequences());
  return added;
}

}  // namespace

size_t check_start(const std::filesystem::path& checkpoint, const Config& config, const Sampler& sampler) {
  return check_start(checkpoint, CheckpointReader(checkpoint), config, sampler).size();
}

size_t load_parameters(const std::filesystem::path& path, Engine& engine, const Sampler& sampler,
                       comm::Communicator& comm) {
  const std::filesystem::path checkpoint = resolve_checkpoint(path, comm);
  std::set<std::string> added;
  run_and_agree(comm, [&] {
    CheckpointReader reader(checkpoint);
    for (const model::ParameterSpec& spec : check_start(checkpoint, reader, engine.config(), sampler))
      added.insert("parameters/" + spec.name);
    if (!added.empty()) engine.initialise();
    load_masters(reader, engine, added);
  });
  engine.publish();
  return added.size();
}

Restored restore_parameters(const std::filesystem::path& path, comm::Communicator& comm, EngineUse use,
                            const std::function<void(Config&)>& adjust, int device_index) {
  Restored restored;
  restored.checkpoint = resolve_checkpoint(path, comm);
  run_and_agree(comm, [&] {
    CheckpointReader reader(restored.checkpoint);
    restored.info = reader.info();
    restored.config = trained_config(restored.info, restored.checkpoint.string());
    if (adjust) adjust(restored.config);
    check_model(restored.checkpoint, reader, restored.config.model);
    restored.engine = std::make_unique<Engine>(restored.config, comm, nullptr, device_index, use);
    if (use == EngineUse::training)
      load_masters(reader, *restored.engine);
    else
      load_values(reader, *restored.engine);
  });
  restored.engine->publish();
  choose_bf16_products(*restored.engine, &restored.info);
  return restored;
}

}  // namespace lamina
