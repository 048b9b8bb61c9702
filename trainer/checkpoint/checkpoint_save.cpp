#include <optional>
#include <system_error>
#include <utility>

#include "parallel/comm/agreement.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_files.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/checkpoint_manifest.h"

namespace lamina {

namespace fs = std::filesystem;

std::string checkpoint_folder_name(int64_t step) {
  LAMINA_CHECK(step >= 0, "step {}", step);
  return fmt::format("step-{:08d}", step);
}

namespace {

void make_temporary(const fs::path& checkpoints_dir, const fs::path& temporary) {
  std::error_code error;
  fs::create_directories(checkpoints_dir, error);
  if (error) throw Error("{}: can't create: {}", checkpoints_dir.string(), error.message());
  clean_leftovers(checkpoints_dir);
  fs::create_directory(temporary, error);
  if (error) throw Error("{}: can't create: {}", temporary.string(), error.message());
}

// A rank that meets a value that is not finite tells all: they have to end in the same way.
ShardFile write_finite_shard(const fs::path& temporary, std::span<const TensorPiece> mine, comm::Communicator& comm) {
  ShardFile shard;
  std::string fault;
  run_and_agree(comm, [&] {
    try {
      shard = write_shard(temporary, comm.rank(), mine);
    } catch (const NotFinite& found) {
      fault = comm.size() == 1 ? found.what() : fmt::format("{} (rank {})", found.what(), comm.rank());
    }
  });
  std::string first;
  for (const std::string& found : gather_text(comm, fault))
    if (first.empty()) first = found;
  if (first = broadcast_text(comm, first); !first.empty()) throw NotFinite("{}", first);
  return shard;
}

}  // namespace

void save_checkpoint(const fs::path& checkpoints_dir, const CheckpointInfo& info, std::span<const TensorPiece> mine,
                     comm::Communicator& comm, int64_t keep) {
  const bool is_root = comm.rank() == 0;
  const fs::path final_path = checkpoints_dir / checkpoint_folder_name(info.step);
  fs::path temporary = final_path;
  temporary += ".tmp";

  run_and_agree(comm, [&] {
    if (is_root) make_temporary(checkpoints_dir, temporary);
  });
  try {
    const ShardFile shard = write_finite_shard(temporary, mine, comm);
    const std::vector<std::string> shards = gather_text(comm, to_text(shard));
    run_and_agree(comm, [&] {
      if (!is_root) return;
      Manifest manifest{.info = info, .shards = {}};
      manifest.info.world_size = comm.size();
      for (const std::string& text : shards) manifest.shards.push_back(parse_shard(text));
      publish(temporary, final_path, write_index(temporary, manifest));
    });
  } catch (...) {
    std::error_code ignored;
    if (is_root) fs::remove_all(temporary, ignored);
    throw;
  }
  run_and_agree(comm, [&] {
    if (is_root) remove_older(checkpoints_dir, info.step, keep);
  });
}

struct CheckpointWriter::State {
  State(const fs::path& final_path, CheckpointInfo info)
      : path(final_path), temporary(final_path), manifest{.info = std::move(info), .shards = {}} {
    temporary += ".lamina-tmp";
    if (fs::exists(path)) throw Error("{}: exists, expected a new folder", path.string());
    std::error_code error;
    fs::remove_all(temporary, error);  // of a process that was killed
    if (!error) fs::create_directories(temporary, error);
    if (error) throw Error("{}: can't create: {}", temporary.string(), error.message());
    manifest.info.world_size = 1;
    try {
      writer.emplace(temporary, 0);
    } catch (...) {
      fs::remove_all(temporary, error);
      throw;
    }
  }
  ~State() {
    writer.reset();
    std::error_code ignored;
    if (!published) fs::remove_all(temporary, ignored);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  fs::path path, temporary;
  Manifest manifest;
  std::optional<ShardWriter> writer;
  bool published = false;
};

CheckpointWriter::CheckpointWriter(const fs::path& checkpoint, const CheckpointInfo& info)
    : state_(std::make_unique<State>(checkpoint, info)) {}
CheckpointWriter::~CheckpointWriter() = default;
CheckpointWriter::CheckpointWriter(CheckpointWriter&&) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(CheckpointWriter&&) noexcept = default;

void CheckpointWriter::write(const TensorPiece& piece) {
  LAMINA_CHECK(state_ && state_->writer, "{} after commit", piece.name);
  state_->writer->write(piece);
}

void CheckpointWriter::commit() {
  LAMINA_CHECK(state_ && state_->writer, "committed twice");
  State& state = *state_;
  state.manifest.shards.push_back(state.writer->finish());
  state.writer.reset();
  publish(state.temporary, state.path, write_index(state.temporary, state.manifest));
  state.published = true;
}

}  // namespace lamina
