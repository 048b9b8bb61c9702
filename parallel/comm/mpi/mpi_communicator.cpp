#include "parallel/comm/mpi/mpi_communicator.h"

#include <mpi.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <limits>
#include <thread>
#include <utility>

#include "core/base/log.h"

namespace lamina::comm {

namespace {

// MPI errors leave nothing to go on with: they take the job down, naming the rank.
void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  MpiEnvironment::abort(fmt::format("{} failed: {}", call, text));
}

int rank_in(MPI_Comm comm) {
  int rank = 0;
  check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  return rank;
}

int size_of_group(MPI_Comm comm) {
  int size = 0;
  check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  return size;
}

class MpiCommunicator final : public P2PCommunicator {
 public:
  // Owns `comm`.
  MpiCommunicator(MPI_Comm comm, std::vector<int> world_ranks, std::shared_ptr<RankState> state)
      : P2PCommunicator(rank_in(comm), std::move(world_ranks), std::move(state)), comm_(comm) {
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    void* value = nullptr;
    int found = 0;
    check(MPI_Comm_get_attr(comm_, MPI_TAG_UB, &value, &found), "MPI_Comm_get_attr");
    // The standard guarantees 32767. One bit of the tag tells the two channels apart.
    const int upper_bound = found != 0 ? *static_cast<int*>(value) : 32767;
    max_tag_ = (static_cast<int64_t>(upper_bound) - 1) / 2;
  }
  ~MpiCommunicator() override {
    // Freeing is collective: not while this rank is on its way out alone.
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  [[noreturn]] void abort(const std::string& reason) override { MpiEnvironment::abort(reason); }

 protected:
  int start_send(const void* data, int64_t num_bytes, const Message& message) override {
    const int id = free_slot(num_bytes, message);
    check(MPI_Isend(data, mpi_count(num_bytes), MPI_BYTE, message.peer, mpi_tag(message), comm_,
                    &slots_[static_cast<size_t>(id)].request),
          "MPI_Isend");
    slots_[static_cast<size_t>(id)].is_recv = false;
    return id;
  }
  int start_recv(void* data, int64_t num_bytes, const Message& message) override {
    const int id = free_slot(num_bytes, message);
    check(MPI_Irecv(data, mpi_count(num_bytes), MPI_BYTE, message.peer, mpi_tag(message), comm_,
                    &slots_[static_cast<size_t>(id)].request),
          "MPI_Irecv");
    slots_[static_cast<size_t>(id)].is_recv = true;
    return id;
  }

  bool transfer_done(int id) override {
    Slot& slot = slots_[static_cast<size_t>(id)];
    int done = 0;
    MPI_Status status;
    const int code = MPI_Test(&slot.request, &done, &status);
    if (code != MPI_SUCCESS) {
      check(code, slot.is_recv ? fmt::format("receiving {} bytes from rank {} of the group with tag {}", slot.num_bytes,
                                             slot.message.peer, slot.message.tag)
                                     .c_str()
                               : "MPI_Test");
    }
    if (done == 0) return false;
    if (slot.is_recv) {
      int received = 0;
      check(MPI_Get_count(&status, MPI_BYTE, &received), "MPI_Get_count");
      LAMINA_CHECK(received == slot.num_bytes, "rank {} of the group sent {} bytes where rank {} expects {} (tag {})",
                   slot.message.peer, received, rank(), slot.num_bytes, slot.message.tag);
    }
    free_.push_back(id);
    return true;
  }

  // Called on the way out of a failed job. A send can't be called back; it only reads.
  void cancel_transfer(int id) noexcept override {
    Slot& slot = slots_[static_cast<size_t>(id)];
    if (slot.request != MPI_REQUEST_NULL) {
      if (slot.is_recv) MPI_Cancel(&slot.request);
      MPI_Request_free(&slot.request);
    }
    free_.push_back(id);
  }

  int64_t max_tag(Channel) const override { return max_tag_; }

  // Other ranks, or other programs, may need this core. MPI has nothing to sleep on until a message comes, so a wait is polled: at once
  // at first; then giving way, which the scheduler may ignore; then between naps that grow with the wait, so that none lengthens it by
  // more than a fiftieth. The longest is short enough for messages in pieces, which move on when they are looked at.
  void wait_for_event(uint64_t, double waited) override {
    constexpr double spin = 20e-6, yield = 200e-6, longest_nap = 70e-6;
    if (waited < spin) return;
    if (waited < yield) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::duration<double>(std::min(longest_nap, waited / 50)));
    }
  }

  std::unique_ptr<Communicator> make_subgroup(const std::vector<int>& members, int color_index) override {
    const auto self = std::find(members.begin(), members.end(), rank());
    MPI_Comm group = MPI_COMM_NULL;
    check(MPI_Comm_split(comm_, color_index, static_cast<int>(self - members.begin()), &group), "MPI_Comm_split");
    std::vector<int> ranks;
    for (int member : members) ranks.push_back(world_ranks()[static_cast<size_t>(member)]);
    return std::make_unique<MpiCommunicator>(group, std::move(ranks), state());
  }

 private:
  struct Slot {
    MPI_Request request = MPI_REQUEST_NULL;
    bool is_recv = false;
    int64_t num_bytes = 0;
    Message message{0, Channel::user, 0};
  };

  static int mpi_count(int64_t num_bytes) {
    LAMINA_CHECK(num_bytes >= 0 && num_bytes <= std::numeric_limits<int>::max(), "{} bytes", num_bytes);
    return static_cast<int>(num_bytes);
  }
  static int mpi_tag(const Message& message) {
    return static_cast<int>(2 * message.tag + (message.channel == Channel::user ? 0 : 1));
  }
  int free_slot(int64_t num_bytes, const Message& message) {
    if (free_.empty()) {
      slots_.emplace_back();
      free_.push_back(static_cast<int>(slots_.size()) - 1);
    }
    const int id = free_.back();
    free_.pop_back();
    slots_[static_cast<size_t>(id)] = {MPI_REQUEST_NULL, false, num_bytes, message};
    return id;
  }

  MPI_Comm comm_;
  int64_t max_tag_ = 0;
  std::vector<Slot> slots_;
  std::vector<int> free_;
};

// Collective.
std::vector<std::string> gather_hosts(int num_ranks) {
  using Name = std::array<char, MPI_MAX_PROCESSOR_NAME + 1>;
  Name mine{};
  int length = 0;
  check(MPI_Get_processor_name(mine.data(), &length), "MPI_Get_processor_name");
  std::vector<Name> all(static_cast<size_t>(num_ranks));
  check(MPI_Allgather(mine.data(), sizeof(Name), MPI_CHAR, all.data(), sizeof(Name), MPI_CHAR, MPI_COMM_WORLD),
        "MPI_Allgather");
  std::vector<std::string> hosts;
  for (const Name& name : all) hosts.emplace_back(name.data());
  return hosts;
}

// For a message on the way out: of this rank, known without asking another.
std::string my_host() {
  std::array<char, MPI_MAX_PROCESSOR_NAME + 1> name{};
  int length = 0;
  return MPI_Get_processor_name(name.data(), &length) == MPI_SUCCESS ? std::string(name.data()) : std::string();
}

}  // namespace

MpiEnvironment::MpiEnvironment() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  LAMINA_CHECK(initialized == 0, "MPI is up already: a process has one MpiEnvironment");
  int provided = MPI_THREAD_SINGLE;
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  if (code != MPI_SUCCESS) throw Error("MPI_Init_thread failed with code {}", code);
  owns_ = true;
  prctl(PR_SET_TIMERSLACK, 1000UL);  // ns: naps between polls end when they should, not 50 us later
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_FUNNELED)
    abort(fmt::format("this MPI provides thread level {}, and threads next to MPI need MPI_THREAD_FUNNELED", provided));
  rank_ = rank_in(MPI_COMM_WORLD);
  size_ = size_of_group(MPI_COMM_WORLD);
  MPI_Comm node = MPI_COMM_NULL;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
  local_rank_ = rank_in(node);
  local_size_ = size_of_group(node);
  check(MPI_Comm_free(&node), "MPI_Comm_free");
  hosts_ = gather_hosts(size_);
}

MpiEnvironment::MpiEnvironment(MpiEnvironment&& other) noexcept
    : owns_(std::exchange(other.owns_, false)),
      rank_(other.rank_),
      size_(other.size_),
      local_rank_(other.local_rank_),
      local_size_(other.local_size_),
      hosts_(std::move(other.hosts_)) {}

MpiEnvironment::~MpiEnvironment() {
  if (!owns_) return;
  if (size_ > 1 && std::uncaught_exceptions() > 0) abort("an exception ended the rank");
  MPI_Finalize();
}

void MpiEnvironment::abort(const std::string& reason) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  // In the words of the test scripts and of people who search logs: "rank 3 (node-b) aborted the job: ...".
  const std::string host = my_host();
  log::error("rank {}{} aborted the job: {}", rank, host.empty() ? "" : " (" + host + ")", reason);
  log::flush();
  MPI_Abort(MPI_COMM_WORLD, 1);
  std::_Exit(1);
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "unknown";
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of("\n\r,"));  // what follows are its builder's words
}

std::unique_ptr<Communicator> make_mpi_world(const CommunicatorOptions& options) {
  // A communicator of our own: its messages can't meet those of a library.
  MPI_Comm comm = MPI_COMM_NULL;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  std::vector<int> ranks;
  for (int r = 0; r < size_of_group(comm); ++r) ranks.push_back(r);
  return std::make_unique<MpiCommunicator>(comm, std::move(ranks), std::make_shared<RankState>(options));
}

}  // namespace lamina::comm
