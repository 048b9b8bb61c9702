// Ranks as processes. Callers see no mpi.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/p2p.h"

namespace lamina::comm {

// MPI_Init_thread and MPI_Finalize (MPI_THREAD_FUNNELED: only the thread that made it may communicate). At most one per
// process; it outlives every communicator. When destroyed by an exception it kills the job instead of finalizing, which
// would wait for ranks that don't come.
class MpiEnvironment {
 public:
  MpiEnvironment();
  ~MpiEnvironment();
  MpiEnvironment(MpiEnvironment&& other) noexcept;
  MpiEnvironment& operator=(MpiEnvironment&&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this machine
  int local_size() const { return local_size_; }
  const std::vector<std::string>& hosts() const { return hosts_; }  // of all ranks: the names they have there

  [[noreturn]] static void abort(const std::string& reason);  // of the whole job

 private:
  bool owns_ = false;
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  std::vector<std::string> hosts_;
};

// "Open MPI v4.1.2 ..."; also before MPI is up.
std::string mpi_library_version();

// All ranks of the job. Collective. Needs a living MpiEnvironment.
std::unique_ptr<Communicator> make_mpi_world(const CommunicatorOptions& options = {});

}  // namespace lamina::comm
