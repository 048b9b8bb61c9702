#include "trainer/record/step_dump.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/device/stream.h"
#include "core/io/file.h"
#include "core/tensor/host_copy.h"
#include "parallel/comm/agreement.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

constexpr int piece_tag = 7302;

io::ElementType file_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return io::ElementType::f32;
    case DType::f64:
      return io::ElementType::f64;
    case DType::i32:
      return io::ElementType::i32;
    case DType::bf16:
      break;
  }
  LAMINA_CHECK(false, "dtype {} in a step dump", name_of(dtype));
  return io::ElementType::f32;
}

// A piece as the others know it, without its data.
struct Entry {
  int rank;
  size_t index;  // in that rank's list
  DType dtype;
  Shape shape;
  int64_t begin, end;
};

// Non-empty pieces by name. Every rank sends its own in this order, so rank 0 meets them in the order it asks for them.
std::vector<size_t> sending_order(std::span<const TensorPiece> pieces) {
  std::vector<size_t> order;
  for (size_t i = 0; i < pieces.size(); ++i)
    if (pieces[i].begin < pieces[i].end) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::tie(pieces[a].name, pieces[a].begin) < std::tie(pieces[b].name, pieces[b].begin);
  });
  return order;
}

std::string describe(std::span<const TensorPiece> pieces) {
  nlohmann::json list = nlohmann::json::array();
  for (size_t i : sending_order(pieces)) {
    const TensorPiece& piece = pieces[i];
    file_type(piece.data.dtype);  // refuses what has no file type
    LAMINA_CHECK(piece.data.is_contiguous() && piece.data.num_elements() == piece.end - piece.begin,
                 "{}: {} for [{}, {})", piece.name, piece.data.to_string(), piece.begin, piece.end);
    list.push_back({{"name", piece.name},
                    {"dtype", static_cast<int>(piece.data.dtype)},
                    {"shape", std::vector<int64_t>(piece.shape.begin(), piece.shape.end())},
                    {"begin", piece.begin},
                    {"end", piece.end},
                    {"index", i}});
  }
  return list.dump();
}

// By tensor name; the entries of one tensor by begin.
std::map<std::string, std::vector<Entry>> plan_of(const std::vector<std::string>& descriptions) {
  std::map<std::string, std::vector<Entry>> plan;
  for (size_t rank = 0; rank < descriptions.size(); ++rank) {
    for (const nlohmann::json& node : nlohmann::json::parse(descriptions[rank])) {
      Entry entry{.rank = static_cast<int>(rank),
                  .index = node.at("index"),
                  .dtype = static_cast<DType>(node.at("dtype").get<int>()),
                  .shape = {},
                  .begin = node.at("begin"),
                  .end = node.at("end")};
      for (const nlohmann::json& extent : node.at("shape")) entry.shape.push_back(extent);
      plan[node.at("name")].push_back(entry);
    }
  }
  for (auto& [name, entries] : plan) {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
    int64_t covered = 0;
    for (const Entry& entry : entries) {
      LAMINA_CHECK(entry.shape == entries[0].shape && entry.dtype == entries[0].dtype, "{} differs among the ranks",
                   name);
      LAMINA_CHECK(entry.begin == covered, "{}: piece [{}, {}) after element {}", name, entry.begin, entry.end,
                   covered);
      covered = entry.end;
    }
    LAMINA_CHECK(covered == entries[0].shape.num_elements(), "{}: {} of {} elements", name, covered,
                 entries[0].shape.num_elements());
  }
  return plan;
}

void assemble(std::span<const Entry> entries, std::span<const TensorPiece> mine, comm::Communicator& comm,
              char* whole) {
  Stream stream;
  Buffer staging;
  for (const Entry& entry : entries) {
    const int64_t size = size_of(entry.dtype);
    const TensorView target(whole + entry.begin * size, entry.dtype, {entry.end - entry.begin});
    if (entry.rank == 0) {
      const char* data = static_cast<const char*>(staged_values(mine[entry.index].data, staging).data);
      std::copy_n(data, target.num_bytes(), static_cast<char*>(target.data));
    } else {
      comm.recv(target, entry.rank, piece_tag, stream).wait();
    }
  }
}

}  // namespace

StepDump::StepDump(const fs::path& path, const std::string& config_yaml, int64_t step, comm::Communicator& comm)
    : path_(path), comm_(&comm) {
  run_and_agree(comm, [&] {
    if (comm.rank() != 0) return;
    std::error_code error;
    if (path.has_parent_path()) fs::create_directories(path.parent_path(), error);
    if (error) throw Error("{}: can't create: {}", path.parent_path().string(), error.message());
    temporary_ = path;
    temporary_ += fmt::format(".tmp-{}", ::getpid());
    try {
      file_ = io::Hdf5File::create(temporary_);
      file_->write_attribute("/", "config", config_yaml);
      file_->write_attribute("/", "step", step);
    } catch (...) {
      discard();
      throw;
    }
  });
}

StepDump::~StepDump() {
  discard();
}

StepDump::StepDump(StepDump&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      file_(std::exchange(other.file_, std::nullopt)),
      comm_(std::exchange(other.comm_, nullptr)) {}

StepDump& StepDump::operator=(StepDump&& other) noexcept {
  if (this != &other) {
    discard();
    path_ = std::move(other.path_);
    temporary_ = std::exchange(other.temporary_, {});
    file_ = std::exchange(other.file_, std::nullopt);
    comm_ = std::exchange(other.comm_, nullptr);
  }
  return *this;
}

void StepDump::discard() noexcept {
  file_.reset();
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove(temporary_, ignored);
  temporary_.clear();
}

void StepDump::add(std::span<const TensorPiece> mine) {
  const comm::Patience patience(*comm_);  // rank 0 writes between two messages
  LAMINA_CHECK(comm_ != nullptr, "the dump was moved from");
  std::string description;
  run_and_agree(*comm_, [&] { description = describe(mine); });
  const std::vector<std::string> descriptions = gather_text(*comm_, description);
  std::map<std::string, std::vector<Entry>> plan;
  run_and_agree(*comm_, [&] {
    if (comm_->rank() == 0) plan = plan_of(descriptions);
  });
  if (comm_->rank() != 0) {
    Stream stream;
    Buffer staging;
    for (size_t i : sending_order(mine)) {
      const TensorView values = staged_values(mine[i].data, staging);
      comm_->send(values.reshaped({values.num_elements()}), 0, piece_tag, stream).wait();
    }
  }
  // After a failed write rank 0 goes on receiving: the others are sending, and learn of it at the end.
  std::exception_ptr failure;
  std::vector<char> whole;
  for (const auto& [name, entries] : plan) {
    whole.resize(static_cast<size_t>(entries[0].shape.num_elements() * size_of(entries[0].dtype)));
    assemble(entries, mine, *comm_, whole.data());
    if (failure) continue;
    try {
      const std::vector<int64_t> shape(entries[0].shape.begin(), entries[0].shape.end());
      file_->write("/" + name, file_type(entries[0].dtype), shape, whole.data());
    } catch (...) {
      failure = std::current_exception();
    }
  }
  agree(*comm_, failure);
}

void StepDump::add_scalar(const std::string& name, double value, DType dtype) {
  LAMINA_CHECK(comm_ != nullptr, "the dump was moved from");
  run_and_agree(*comm_, [&] {
    if (comm_->rank() != 0) return;
    const float single = static_cast<float>(value);
    const void* data = dtype == DType::f64 ? static_cast<const void*>(&value) : &single;
    LAMINA_CHECK(dtype == DType::f32 || dtype == DType::f64, "{} as {}", name, name_of(dtype));
    file_->write("/" + name, file_type(dtype), {}, data);
  });
}

void StepDump::finish() {
  LAMINA_CHECK(comm_ != nullptr, "the dump was moved from");
  run_and_agree(*comm_, [&] {
    if (comm_->rank() != 0) return;
    try {
      file_->close();
      io::fsync_file(temporary_);
      io::rename_durably(temporary_, path_);
      temporary_.clear();
    } catch (...) {
      discard();
      throw;
    }
    file_.reset();
  });
}

}  // namespace lamina
