#include "launch/process.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/log.h"
#include "core/device/cpu/parallel_for.h"
#include "launch/gpus.h"
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

// What a rank tells the others about the cores it may use.
struct Cores {
  static constexpr int max_cores = 1024;
  std::array<int32_t, 2> machine{};            // hash of the host's name
  std::array<int32_t, max_cores / 32> mask{};  // empty when the system has more cores than this
  bool has(int core) const {
    return ((static_cast<uint32_t>(mask[static_cast<size_t>(core / 32)]) >> (core % 32)) & 1u) != 0;
  }
  int count() const {
    int cores = 0;
    for (int core = 0; core < max_cores; ++core) cores += has(core);
    return cores;
  }
};
constexpr int64_t cores_words = 2 + Cores::max_cores / 32;
static_assert(sizeof(Cores) == cores_words * sizeof(int32_t));

Cores my_cores() {
  Cores cores;
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  const uint64_t hash = hash64(std::string_view(host.data()));
  cores.machine = {static_cast<int32_t>(hash & 0xffffffffu), static_cast<int32_t>(hash >> 32)};
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < std::min<int>(Cores::max_cores, CPU_SETSIZE); ++core) {
    if (!CPU_ISSET(core, &set)) continue;
    int32_t& word = cores.mask[static_cast<size_t>(core / 32)];
    word = static_cast<int32_t>(static_cast<uint32_t>(word) | (1u << (core % 32)));
  }
  return cores;
}

std::vector<Cores> gather_cores(comm::Communicator& comm) {
  Cores mine = my_cores();
  std::vector<Cores> all(static_cast<size_t>(comm.size()));
  Stream stream;
  comm.all_gather(TensorView(&mine, DType::i32, {cores_words}),
                  TensorView(all.data(), DType::i32, {comm.size(), cores_words}), stream)
      .wait();
  return all;
}

// Each core counts as one over the number of ranks of this machine that may use it: right for ranks that share all
// cores, for ranks bound to cores of their own, and for anything between.
int share_of_cores(const std::vector<Cores>& all, int rank) {
  const Cores& mine = all[static_cast<size_t>(rank)];
  double share = 0;
  for (int core = 0; core < Cores::max_cores; ++core) {
    if (!mine.has(core)) continue;
    int users = 0;
    for (const Cores& other : all) users += other.machine == mine.machine && other.has(core);
    share += 1.0 / users;
  }
  if (share == 0) {  // more cores than a mask holds, or no affinity on this system
    int local = 0;
    for (const Cores& other : all) local += other.machine == mine.machine;
    share = static_cast<double>(std::thread::hardware_concurrency()) / local;
  }
  return std::max(1, static_cast<int>(share + 1e-6));
}

// Open MPI binds each of one or two ranks to a single core unless told otherwise: on a large machine that is a surprise.
void warn_when_bound_to_few_cores(const std::vector<Cores>& all, int num_threads_requested) {
  if (num_threads_requested > 0 || !std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("SLURM_JOB_ID")) return;
  Cores used;
  int local = 0;
  for (const Cores& other : all) {
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
  const std::vector<Cores> all = gather_cores(*comm);
  const int rank = comm->rank(), size = comm->size();
  int local_rank = 0, local_size = 0;
  for (int other = 0; other < size; ++other) {
    if (all[static_cast<size_t>(other)].machine != all[static_cast<size_t>(rank)].machine) continue;
    local_rank += other < rank;
    ++local_size;
  }
  const int num_threads = run.num_threads > 0 ? run.num_threads : share_of_cores(all, rank);
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
  if (run.device == "cuda") prepare_gpu(ranks.size);
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
