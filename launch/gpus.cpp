#include "launch/gpus.h"

#include <unistd.h>

#include <array>
#include <vector>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/here.h"
#include "core/base/log.h"
#include "core/device/cuda_device.h"
#include "parallel/comm/staged.h"
#ifdef LAMINA_HAVE_NCCL
#include "parallel/comm/nccl/nccl_communicator.h"
#endif

namespace lamina {

bool has_nccl() {
#ifdef LAMINA_HAVE_NCCL
  return true;
#else
  return false;
#endif
}

void require_gpu() {
  if (cuda::num_devices() == 0)
    throw Error("run.device: found cuda, but {}; `lamina doctor` tells more, run.device=cpu runs without a GPU",
                cuda::why_none());
}

void add_device_option(CLI::App& command, std::string& device) {
  device = "auto";
  command.add_option("--device", device, "Where to compute: cpu, cuda, or auto: on a GPU where one is usable")
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}))
      ->capture_default_str();
}

std::string usable_device(const std::string& given) {
  if (given == "cpu" || cuda::num_devices() > 0) return given;
  if (given == "cuda")
    throw Error("--device: found cuda, but {}; `lamina doctor` tells more, --device cpu runs without a GPU",
                cuda::why_none());
  return "cpu";
}

GpuPlacement place_on_gpu(comm::Communicator& comm, int local_rank) {
  GpuPlacement placement{{DeviceKind::cuda, local_rank % cuda::num_devices()}, ""};
  const std::string bus_id = cuda::device_info(placement.device.index).bus_id;
  // By its place on the bus: a launcher may have shown each rank a different GPU as the first.
  const uint64_t hash =
      hash64(fmt::format("{} {}", host_name(), bus_id.empty() ? fmt::format("{}", placement.device.index) : bus_id));
  std::array<int32_t, 2> mine{static_cast<int32_t>(hash & 0xffffffffu), static_cast<int32_t>(hash >> 32)};
  std::vector<std::array<int32_t, 2>> all(static_cast<size_t>(comm.size()));
  Stream stream;
  comm.all_gather(TensorView(mine.data(), DType::i32, {2}), TensorView(all.data(), DType::i32, {comm.size(), 2}),
                  stream)
      .wait();
  for (size_t b = 0; b < all.size(); ++b)
    for (size_t a = 0; a < b && placement.sharing.empty(); ++a)
      if (all[a] == all[b]) placement.sharing = fmt::format("ranks {} and {} share a GPU", a, b);
  return placement;
}

std::unique_ptr<comm::Communicator> connect_gpus(std::unique_ptr<comm::Communicator> host,
                                                 const GpuPlacement& placement, GpuTransport transport,
                                                 [[maybe_unused]] double timeout_seconds) {  // NCCL's
  const bool is_first = host->rank() == 0;
  if (transport == GpuTransport::nccl && !has_nccl())
    throw Error(
        "parallel.gpu_transport: found nccl, but this build has no NCCL; expected host or auto, or a build where "
        "NCCL's "
        "header and library are installed");
  if (transport == GpuTransport::nccl && !placement.sharing.empty())
    throw Error("parallel.gpu_transport: found nccl, but {}; expected a GPU for each rank, or host", placement.sharing);
  if (is_first && transport == GpuTransport::automatic && host->size() > 1) {
    if (!placement.sharing.empty()) {
      log::warning("{}: their memory travels through the host's, slowly; one rank per GPU is fast", placement.sharing);
    } else if (!has_nccl()) {
      log::warning("this build has no NCCL: the GPUs' memory travels through the hosts', slowly");
    }
  }
#ifdef LAMINA_HAVE_NCCL
  if (host->size() > 1 && transport != GpuTransport::host && placement.sharing.empty())
    return comm::make_nccl_communicator(std::move(host), placement.device, {.timeout_seconds = timeout_seconds});
#endif
  return comm::make_staged_communicator(std::move(host), nullptr);
}

}  // namespace lamina
