#include "trainer/restore.h"

#include "configs/schema/decode.h"
#include "trainer/checkpoint_comm.h"

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

void load_masters(const std::filesystem::path& checkpoint, Engine& engine) {
  std::vector<TensorPiece> wanted;
  for (TensorPiece& piece : engine.optimizer().state())
    if (piece.name.starts_with("parameters/")) wanted.push_back(std::move(piece));
  load_checkpoint(checkpoint, wanted);
}

}  // namespace

void load_parameters(const std::filesystem::path& path, Engine& engine, comm::Communicator& comm) {
  const std::filesystem::path checkpoint = resolve_checkpoint(path, comm);
  run_and_agree(comm, [&] { load_masters(checkpoint, engine); });
  engine.publish();
}

Restored restore_parameters(const std::filesystem::path& path, comm::Communicator& comm,
                            const std::function<void(Config&)>& adjust, int device_index) {
  const std::filesystem::path checkpoint = resolve_checkpoint(path, comm);
  Restored restored;
  run_and_agree(comm, [&] {
    restored.info = read_checkpoint_info(checkpoint);
    restored.config = parse_config(restored.info.config_yaml, checkpoint.string());
    if (adjust) adjust(restored.config);
    restored.engine = std::make_unique<Engine>(restored.config, comm, nullptr, device_index);
    load_masters(checkpoint, *restored.engine);
  });
  restored.engine->publish();
  return restored;
}

}  // namespace lamina
