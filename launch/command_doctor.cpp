#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "core/base/error.h"
#include "core/base/here.h"
#include "core/base/log.h"
#include "core/device/cuda_device.h"
#include "launch/commands.h"
#include "launch/doctor.h"
#include "launch/gpus.h"
#include "launch/process.h"
#include "trainer/step/bf16_choice.h"

namespace lamina {
namespace {

using doctor::Finding;
using doctor::Report;
using doctor::Status;

struct DoctorOptions {
  std::string output = ".";
  bool json = false, quick = false, precision = false;
};

void report_machine(Report& report, const DoctorOptions& options) {
  doctor::report_build(report);
  doctor::report_processor(report);
  doctor::report_precision(report, !options.quick);
  doctor::report_memory(report);
  doctor::report_gpus(report);
  doctor::report_libraries(report);
  const LauncherRanks ranks = launcher_ranks();
  report.ok("launcher", ranks.launched ? fmt::format("started as one of {} ranks", ranks.size)
                                       : "none: one process (mpirun or srun start several)");
  doctor::report_limits(report);
  doctor::report_folder(report, "temporary folder", std::filesystem::temp_directory_path(), false);
  doctor::report_folder(report, "output folder", options.output, !options.quick);
}

// Everything of the first rank; of each other machine what is not well.
void add_other_machines(Report& report, World& world, const Report& own) {
  const std::vector<std::string> all = doctor::gather_texts(world.comm, world.local_rank == 0 ? own.json() : "");
  const std::vector<std::string> hosts = doctor::gather_texts(world.comm, host_name());
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r].empty()) continue;
    for (Finding finding : Report::parse(all[r])) {
      if (finding.status == Status::ok) continue;
      finding.topic = fmt::format("{}: {}", hosts[r], finding.topic);
      report.add(std::move(finding));
    }
  }
}

bool on_all_ranks(comm::Communicator& comm, bool value) {
  int32_t all = value ? 1 : 0;
  Stream stream;
  comm.all_reduce(TensorView(&all, DType::i32, {1}), comm::ReduceOp::min, stream).wait();
  return all == 1;
}

void examine(World& world, const DoctorOptions& options) {
  Report report;
  if (world.local_rank == 0) report_machine(report, options);
  add_other_machines(report, world, Report(report));
  std::unique_ptr<comm::Communicator> gpus;
  GpuPlacement placement;
  if (on_all_ranks(world.comm, cuda::num_devices() > 0)) {
    placement = place_on_gpu(world.comm, world.local_rank);
    gpus = connect_gpus(world.comm.split(0, world.rank), placement, GpuTransport::automatic,
                        ParallelConfig{}.timeout_seconds);
    if (!placement.sharing.empty())
      report.note("GPUs", placement.sharing + ": their memory travels through the host's", "start one rank per GPU");
  }
  doctor::report_ranks(report, world, gpus.get(), placement.device);
  if (!options.quick) {
    if (world.rank == 0) {
      doctor::measure_compute(report, Device{});
      if (gpus) doctor::measure_compute(report, placement.device);
    }
    world.comm.barrier();
    if (world.size > 1) doctor::measure_ranks(report, world, world.comm, Device{});
    if (world.size > 1 && gpus) doctor::measure_ranks(report, world, *gpus, placement.device);
  }
  if (world.rank == 0) {
    std::fputs((options.json ? report.json() + "\n" : report.text()).c_str(), stdout);
    std::fflush(stdout);
    if (const int problems = report.num_problems(); problems > 0)
      throw Error("found {} problem{}", problems, problems == 1 ? "" : "s");
  }
}

}  // namespace

void register_doctor(CLI::App& app) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* command = app.add_subcommand(
      "doctor", "Tell what this machine, its GPUs, libraries and ranks are, what is wrong, and how to mend it");
  command->footer(
      "Examples:\n"
      "  lamina doctor --output runs\n"
      "  mpirun -n 4 lamina doctor --json > doctor.json\n"
      "Each line is ok, a note, or a problem; a problem ends it with 1.");
  command->add_option("--output", options->output, "Folder that runs will be written to")->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object instead of lines");
  command->add_flag("--quick", options->quick, "Measure nothing");
  command->add_flag("--precision", options->precision,
                    "Only print the precision that trains quicker on this machine's CPU, bf16 or fp32: for scripts, as "
                    "train.precision=$(lamina doctor --precision)");
  command->callback([options] {
    if (options->precision) {
      std::puts(quicker_precision() == Precision::bf16 ? "bf16" : "fp32");
      return;
    }
    // As on the CPU: the GPUs are looked at inside, where a machine without one is no failure.
    cuda::prepare();
    run_in_world(RunConfig{}, [&](World& world) { examine(world, *options); });
  });
}

}  // namespace lamina
