#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>

#include "core/base/error.h"
#include "core/base/here.h"
#include "core/device/cuda_device.h"
#include "core/io/file.h"
#include "core/io/hdf5.h"
#include "core/ops/simd/instruction_set.h"
#include "launch/doctor.h"
#include "launch/gpus.h"
#include "launch/machine.h"
#include "trainer/checkpoint/version.h"
#ifdef LAMINA_HAVE_MPI
#include "parallel/comm/mpi/mpi_communicator.h"
#endif
#ifdef LAMINA_HAVE_NCCL
#include "parallel/comm/nccl/nccl_communicator.h"
#endif

namespace lamina::doctor {
namespace {

namespace fs = std::filesystem;
constexpr double gib = 1024.0 * 1024 * 1024;

// The first line of a file of /proc or /sys; empty when there is none.
std::string first_line(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

std::string limit_text(rlim_t limit) {
  return limit == RLIM_INFINITY ? "unlimited" : fmt::format("{}", limit);
}

std::string cuda_version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

std::string bytes_text(double bytes) {
  if (bytes < 1024 * 1024) return fmt::format("{:.0f} KiB", bytes / 1024);
  if (bytes < gib) return fmt::format("{:.1f} MiB", bytes / (1024 * 1024));
  return fmt::format("{:.1f} GiB", bytes / gib);
}

void report_build(Report& report) {
  std::string sanitizers;
#if defined(__SANITIZE_ADDRESS__)
  sanitizers = "address";
#elif defined(__SANITIZE_THREAD__)
  sanitizers = "thread";
#endif
#ifdef LAMINA_HAVE_MPI
  const char* mpi = "MPI";
#else
  const char* mpi = "no MPI";
#endif
#ifdef NDEBUG
  const char* checks = "optimised";
#else
  const char* checks = "with assertions";
#endif
  const std::string text = fmt::format("lamina {}, {}, {}, {}, {}", program_version, checks, mpi,
                                       cuda::is_built() ? "CUDA" : "no CUDA", has_nccl() ? "NCCL" : "no NCCL");
  if (sanitizers.empty()) {
    report.ok("build", text);
  } else {
    report.note("build", fmt::format("{}, {} sanitizer: slow", text, sanitizers), "train with the preset cpu-release");
  }
}

void report_processor(Report& report) {
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  cpu_set_t set;
  CPU_ZERO(&set);
  const int usable = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(online);
  const std::string text = fmt::format("{}, {} of {} cores for this process", processor_name(), usable, online);
  if (usable < online) {
    report.note("processor", text, "mpirun --bind-to none, or cores for the job, if the others are meant to be used");
  } else {
    report.ok("processor", text);
  }
  const std::string set_name = ops::cpu::instruction_set_name();
  if (set_name.starts_with("AVX") || set_name.starts_with("NEON") || set_name.starts_with("SVE")) {
    report.ok("instructions", set_name);
  } else {
    report.note("instructions", set_name + ": slow on this processor");
  }
  const std::string throttled = first_line("/sys/fs/cgroup/cpu.max");
  if (!throttled.empty() && !throttled.starts_with("max")) {
    std::istringstream in(throttled);
    double quota = 0, period = 1;
    in >> quota >> period;
    const double cores = quota / period;
    if (cores < usable)
      report.note("processor share", fmt::format("the container may use {:.1f} cores", cores),
                  fmt::format("run.num_threads={} at most", std::max(1, static_cast<int>(cores))));
  }
}

void report_memory(Report& report) {
  const double total = meminfo("MemTotal").value_or(0), available = meminfo("MemAvailable").value_or(0);
  const std::string text = fmt::format("{}, {} of it available", bytes_text(total), bytes_text(available));
  if (available < 0.5 * gib) {
    report.problem("memory", text, "end what uses it; `lamina plan` tells what a run needs");
  } else {
    report.ok("memory", text);
  }
  const std::string limit = first_line("/sys/fs/cgroup/memory.max");
  const std::string used = first_line("/sys/fs/cgroup/memory.current");
  if (!limit.empty() && limit != "max") {
    const double bytes = std::strtod(limit.c_str(), nullptr), current = std::strtod(used.c_str(), nullptr);
    report.note("memory limit", fmt::format("the container may use {}, of which {} are in use (files it has read "
                                            "included)",
                                            bytes_text(bytes), bytes_text(current)));
  }
  const std::string pages = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  if (pages.find("[never]") != std::string::npos) {
    report.note("huge pages", "never", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
  } else if (!pages.empty()) {
    report.ok("huge pages", pages.substr(pages.find('[') + 1, pages.find(']') - pages.find('[') - 1));
  }
}

void report_gpus(Report& report) {
  if (!cuda::is_built()) {
    report.note("GPUs", "this build has no CUDA",
                "build with the preset cuda-release where the CUDA toolkit is installed");
    return;
  }
  const std::string versions =
      fmt::format("toolkit {}, driver {}", cuda_version_text(cuda::runtime_version()),
                  cuda::driver_version() == 0 ? "none" : "for up to " + cuda_version_text(cuda::driver_version()));
  if (cuda::num_devices() == 0) {
    report.note("GPUs", fmt::format("{} ({}): run.device: cuda can't run here", cuda::why_none(), versions),
                "nvidia-smi shows what the driver sees; CUDA_VISIBLE_DEVICES must not hide it");
    return;
  }
  report.ok("CUDA", versions);
  for (int index = 0; index < cuda::num_devices(); ++index) {
    const cuda::DeviceInfo info = cuda::device_info(index);
    const std::string text =
        fmt::format("{}, capability {}.{}, {} multiprocessors, {}, {} of it free, at {}", info.name, info.major,
                    info.minor, info.num_multiprocessors, bytes_text(static_cast<double>(info.total_bytes)),
                    bytes_text(static_cast<double>(info.free_bytes)), info.bus_id);
    const std::string topic = fmt::format("GPU {}", index);
    if (info.major < 8) {
      report.problem(topic, text, "it lacks bf16 tensor cores: use one of capability 8.0 or newer");
    } else if (10 * info.free_bytes < 9 * info.total_bytes) {
      report.note(topic, text, "something else uses it: nvidia-smi tells what");
    } else {
      report.ok(topic, text);
    }
  }
}

void report_libraries(Report& report) {
#ifdef LAMINA_HAVE_MPI
  report.ok("MPI", comm::mpi_library_version());
#else
  report.note("MPI", "this build has none: one process only", "install Open MPI or MPICH and build again");
#endif
#ifdef LAMINA_HAVE_NCCL
  const std::string built = comm::nccl_built_version(), loaded = comm::nccl_loaded_version();
  if (built == loaded) {
    report.ok("NCCL", loaded);
  } else {
    report.note("NCCL", fmt::format("{}, built with {}", loaded, built));
  }
#else
  if (cuda::is_built())
    report.note("NCCL", "this build has none: between GPUs memory travels through the hosts'",
                "install libnccl-dev and build again");
#endif
  const io::Hdf5Library hdf5 = io::hdf5_library();
  const char* locking = std::getenv("HDF5_USE_FILE_LOCKING");
  report.ok("HDF5", fmt::format("{}, {}, files are locked with flock{}", hdf5.version,
                                hdf5.is_threadsafe ? "thread-safe" : "not thread-safe (calls are serialised)",
                                locking ? fmt::format(", HDF5_USE_FILE_LOCKING={}", locking) : ""));
}

void report_limits(Report& report) {
  rlimit locked{}, files{}, core{};
  getrlimit(RLIMIT_MEMLOCK, &locked);
  getrlimit(RLIMIT_NOFILE, &files);
  getrlimit(RLIMIT_CORE, &core);
  const std::string locked_text =
      locked.rlim_cur == RLIM_INFINITY ? "unlimited" : bytes_text(static_cast<double>(locked.rlim_cur));
  if (locked.rlim_cur != RLIM_INFINITY && locked.rlim_cur < (rlim_t{64} << 20)) {
    report.note("locked memory", locked_text, "ulimit -l unlimited: InfiniBand needs it");
  } else {
    report.ok("locked memory", locked_text);
  }
  if (files.rlim_cur != RLIM_INFINITY && files.rlim_cur < 256) {
    report.problem("open files", limit_text(files.rlim_cur), "ulimit -n 4096: a run opens its data, logs and sockets");
  } else {
    report.ok("open files", limit_text(files.rlim_cur));
  }
  report.ok("core dumps", core.rlim_cur == 0 ? "off" : limit_text(core.rlim_cur));
  // The clock's resolution, as a difference that it shows.
  using Clock = std::chrono::steady_clock;
  double finest = 1;
  for (int i = 0; i < 1000; ++i) {
    const auto before = Clock::now();
    auto after = Clock::now();
    while (after == before) after = Clock::now();
    finest = std::min(finest, std::chrono::duration<double>(after - before).count());
  }
  if (finest > 1e-5) {
    report.note("clock", fmt::format("resolution {:.1f} us: short times are measured badly", finest * 1e6));
  } else {
    report.ok("clock", fmt::format("resolution {:.0f} ns", finest * 1e9));
  }
}

void report_folder(Report& report, const std::string& topic, const fs::path& folder, bool measure) {
  std::error_code error;
  fs::path existing = fs::absolute(folder).lexically_normal();
  while (!fs::exists(existing, error) && existing.has_relative_path()) existing = existing.parent_path();
  const std::string remedy =
      fmt::format("choose a folder that can be written, or its permissions (now {})", existing.string());
  if (!fs::is_directory(existing, error)) {
    report.problem(topic, fmt::format("{} is not a folder", existing.string()), remedy);
    return;
  }
  std::string name = (existing / "lamina-doctor-XXXXXX").string();
  const int file = mkstemp(name.data());
  if (file < 0) {
    report.problem(topic, fmt::format("{}: can't write: {}", existing.string(), io::describe_errno(errno)), remedy);
    return;
  }
  unlink(name.c_str());
  const double free_bytes = static_cast<double>(fs::space(existing, error).available);
  std::string rate;
  if (measure) {
    const std::vector<char> block(4 << 20, 'x');
    const auto start = std::chrono::steady_clock::now();
    int64_t written = 0;
    constexpr int64_t wanted = int64_t{64} << 20;
    ssize_t count = 1;
    while (written < wanted && (count = write(file, block.data(), block.size())) > 0) written += count;
    const bool whole = count > 0 && fsync(file) == 0;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!whole) {
      report.problem(topic, fmt::format("{}: writing 64 MiB: {}", existing.string(), io::describe_errno(errno)),
                     remedy);
      close(file);
      return;
    }
    rate = fmt::format(", {:.0f} MiB/s to the disk", 64 / seconds);
  }
  close(file);
  const std::string text = fmt::format("{}: {} free{}", existing.string(), bytes_text(free_bytes), rate);
  if (free_bytes < gib) {
    report.problem(topic, text, "free some space, or choose another folder: checkpoints need it");
  } else {
    report.ok(topic, text);
  }
}

}  // namespace lamina::doctor
