#include "parallel/comm/agreement.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <typeinfo>

#include "core/base/error.h"
#include "core/base/stop.h"
#include "core/device/cpu/parallel_for.h"
#include "core/device/stream.h"

namespace lamina::comm {
namespace {

constexpr int text_tag = 7301;
constexpr size_t message_bytes = 1024;

// Text travels as int32, padded with zeros.
std::vector<int32_t> packed(const std::string& text) {
  std::vector<int32_t> words((text.size() + 3) / 4);
  if (!text.empty()) std::memcpy(words.data(), text.data(), text.size());
  return words;
}

std::string unpacked(const std::vector<int32_t>& words, size_t num_bytes) {
  return std::string(reinterpret_cast<const char*>(words.data()), num_bytes);
}

TensorView view_of(std::vector<int32_t>& words) {
  return TensorView(words.data(), DType::i32, {static_cast<int64_t>(words.size())});
}

// A double holds any size below 2^53 exactly.
std::vector<double> gather_sizes(comm::Communicator& comm, size_t mine, Stream& stream) {
  std::vector<double> sizes(static_cast<size_t>(comm.size()));
  double size = static_cast<double>(mine);
  comm.all_gather(TensorView(&size, DType::f64, {1}), TensorView(sizes.data(), DType::f64, {comm.size()}), stream)
      .wait();
  return sizes;
}

std::string message_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown failure";
  }
}

// Not of a kind that callers tell apart.
bool is_plain_error(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    return typeid(error) == typeid(Error);
  } catch (...) {
    return false;
  }
}

}  // namespace

void agree(comm::Communicator& comm, const std::exception_ptr& failure) {
  if (comm.size() == 1) {
    if (failure) std::rethrow_exception(failure);
    return;
  }
  const comm::Patience patience(comm);
  Stream stream;
  double failed = failure ? 1 : 0;
  comm.all_reduce(TensorView(&failed, DType::f64, {1}), comm::ReduceOp::max, stream).wait();
  if (failed == 0) return;

  std::string message = failure ? message_of(failure) : "";
  message.resize(message_bytes, '\0');
  std::vector<int32_t> mine = packed(message);
  std::vector<int32_t> all(mine.size() * static_cast<size_t>(comm.size()));
  comm.all_gather(view_of(mine), view_of(all), stream).wait();
  const auto text_of = [&](int rank) {
    const char* text = reinterpret_cast<const char*>(all.data() + static_cast<size_t>(rank) * mine.size());
    return std::string(text, strnlen(text, message_bytes));
  };
  for (int rank = 0; rank < comm.size(); ++rank) {
    const std::string text = text_of(rank);
    if (text.empty() || rank == comm.rank()) continue;
    // What all ranks find alike, the first one tells.
    if (failure && (rank > comm.rank() || !is_plain_error(failure) || text != text_of(comm.rank()))) continue;
    throw ErrorElsewhere("rank {}: {}", rank, text);
  }
  if (failure) std::rethrow_exception(failure);
  LAMINA_CHECK(false, "a rank failed without a message");
}

bool stop_requested_anywhere(comm::Communicator& comm, bool* other) {
  Stream stream;
  std::array<int32_t, 2> asked = {stop::requested() ? 1 : 0, other && *other ? 1 : 0};
  comm.all_reduce(TensorView(asked.data(), DType::i32, {2}), comm::ReduceOp::max, stream).wait();
  if (other) *other = asked[1] != 0;
  return asked[0] != 0;
}

std::vector<std::string> gather_text(comm::Communicator& comm, const std::string& text) {
  Stream stream;
  const std::vector<double> sizes = gather_sizes(comm, text.size(), stream);
  std::vector<std::string> texts;
  if (comm.rank() != 0) {
    std::vector<int32_t> words = packed(text);
    if (!words.empty()) comm.send(view_of(words), 0, text_tag, stream).wait();
    return texts;
  }
  texts.push_back(text);
  for (int rank = 1; rank < comm.size(); ++rank) {
    const size_t num_bytes = static_cast<size_t>(sizes[static_cast<size_t>(rank)]);
    std::vector<int32_t> words((num_bytes + 3) / 4);
    if (!words.empty()) comm.recv(view_of(words), rank, text_tag, stream).wait();
    texts.push_back(unpacked(words, num_bytes));
  }
  return texts;
}

std::string threads_of_ranks(comm::Communicator& comm) {
  const std::vector<std::string> all = gather_text(comm, std::to_string(cpu::num_threads()));
  const bool equal = std::all_of(all.begin(), all.end(), [&](const std::string& each) { return each == all.front(); });
  return broadcast_text(comm, all.empty() ? "" : equal ? all.front() : fmt::format("{}", fmt::join(all, ", ")));
}

std::string broadcast_text(comm::Communicator& comm, const std::string& text) {
  if (comm.size() == 1) return text;
  Stream stream;
  double size = static_cast<double>(text.size());
  comm.broadcast(TensorView(&size, DType::f64, {1}), 0, stream).wait();
  const size_t num_bytes = static_cast<size_t>(size);
  if (num_bytes == 0) return "";
  std::vector<int32_t> words((num_bytes + 3) / 4);
  if (comm.rank() == 0) words = packed(text);
  comm.broadcast(view_of(words), 0, stream).wait();
  return unpacked(words, num_bytes);
}

}  // namespace lamina::comm
