#include "launch/process.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/device/cpu/parallel_for.h"
#include "launch/gpus.h"
#include "parallel/comm/cores.h"
#include "parallel/comm/thread.h"
#ifdef LAMINA_HAVE_MPI
#include "parallel/comm/mpi/mpi_communicator.h"
#endif

namespace lamina {
namespace {

// A number that a launcher put into the environment; absent when the variable is not set or not a number.
std::optional<int> from_environment(const char* name) {
  const char* text = std::getenv(name);
  if (!text || !*text) return std::nullopt;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0' || value < 0) return std::nullopt;
  return static_cast<int>(value);
}

int whole_cores(double share) {
  return std::max(1, static_cast<int>(share + 1e-6));
}

// Open MPI binds each of one or two ranks to a single core unless told otherwise: on a large machine that is a surprise.
void warn_when_bound_to_few_cores(const std::vector<comm::Cores>& all, int num_threads_requested) {
  if (num_threads_requested > 0 || !std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("SLURM_JOB_ID")) return;
  comm::Cores used;
  int local = 0;
  for (const comm::Cores& other : all) {
    if (other.machine != all[0].machine) continue;
    ++local;
    for (size_t word = 0; word < used.mask.size(); ++word) used.mask[word] |= other.mask[word];
  }
  const int online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (used.count() > 0 && 2 * used.count() <= online)
    log::warning(
        "mpirun bound the {} rank{} of this machine to {} of its {} cores; mpirun --bind-to none lets them use all",
        local, local == 1 ? "" : "s", used.count(), online);
}

// For GPUs `comm` is wrapped into what also carries their memory.
World make_world(std::unique_ptr<comm::Communicator>& comm, const RunConfig& run, const ParallelConfig& parallel) {
  const std::vector<comm::Cores> all = comm::gather_cores(*comm);
  const int rank = comm->rank(), size = comm->size();
  int local_rank = 0, local_size = 0;
  for (int other = 0; other < size; ++other) {
    if (all[static_cast<size_t>(other)].machine != all[static_cast<size_t>(rank)].machine) continue;
    local_rank += other < rank;
    ++local_size;
  }
  const int num_threads = run.num_threads > 0 ? run.num_threads : whole_cores(comm::share_of_cores(all, rank));
  cpu::set_num_threads(num_threads);
  if (rank == 0) warn_when_bound_to_few_cores(all, run.num_threads);
  Device device;
  if (run.device == "cuda") {
    const GpuPlacement placement = place_on_gpu(*comm, local_rank);
    comm = connect_gpus(std::move(comm), placement, parallel.gpu_transport, parallel.timeout_seconds);
    device = placement.device;
  }
  return {*comm, rank, size, local_rank, local_size, num_threads, device};
}

#ifdef LAMINA_HAVE_MPI
// Nothing may be unwound past this point: a communicator's destructor would wait for ranks that don't come.
void run_with_mpi(const RunConfig& run, const std::function<void(World&)>& body, const ParallelConfig& parallel) {
  comm::MpiEnvironment environment;
  log::configure({environment.rank(), environment.size(), log::Level::info});
  comm::CommunicatorOptions options;
  options.timeout_seconds = parallel.timeout_seconds;
  options.hosts = environment.hosts();
  std::unique_ptr<comm::Communicator> comm = comm::make_mpi_world(options);
  try {
    World world = make_world(comm, run, parallel);
    body(world);
    comm->barrier();  // a rank that is done waits here, so that another's failure still ends the whole job
  } catch (const ErrorElsewhere& failure) {
    std::this_thread::sleep_for(std::chrono::seconds(2));  // in which the rank that failed ends the job
    comm::MpiEnvironment::abort(fmt::format("error: {}", failure.what()));
  } catch (const Error& failure) {
    comm::MpiEnvironment::abort(fmt::format("error: {}", failure.what()));
  } catch (const InternalError& failure) {
    comm::MpiEnvironment::abort(fmt::format("internal error: {}", failure.what()));
  } catch (const std::bad_alloc&) {
    comm::MpiEnvironment::abort("error: out of memory");
  } catch (const std::exception& failure) {
    comm::MpiEnvironment::abort(fmt::format("error: {}", failure.what()));
  }
}
#endif

}  // namespace

LauncherRanks launcher_ranks() {
  // Open MPI, then the hydra launchers (MPICH, Intel MPI), then srun. A batch script has SLURM_PROCID too, but no step.
  static constexpr const char* names[][3] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", nullptr},
                                             {"PMI_RANK", "PMI_SIZE", nullptr},
                                             {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"}};
  for (const auto& [rank_name, size_name, needed] : names) {
    const std::optional<int> rank = from_environment(rank_name), size = from_environment(size_name);
    if (rank && size && (!needed || std::getenv(needed))) return {*rank, *size, true};
  }
  if (const std::optional<int> rank = from_environment("PMIX_RANK")) return {*rank, 1, true};
  return {};
}

void run_in_world(const RunConfig& run, const std::function<void(World&)>& body, const ParallelConfig& parallel) {
  const LauncherRanks ranks = launcher_ranks();
  if (run.device == "cuda") require_gpu();
  if (ranks.launched) {
#ifdef LAMINA_HAVE_MPI
    run_with_mpi(run, body, parallel);
    return;
#else
    if (ranks.size > 1) throw Error("found {} ranks, but this build has no MPI; expected one process", ranks.size);
#endif
  }
  log::configure({});
  std::unique_ptr<comm::Communicator> comm = comm::make_self_communicator();
  World world = make_world(comm, run, parallel);
  body(world);
}

}  // namespace lamina
