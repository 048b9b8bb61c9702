#include <cstdlib>

#include "core/device/buffer.h"
#include "core/device/cpu/parallel_for.h"
#include "core/device/cuda_device.h"
#include "core/ops/bf16_products.h"
#include "launch/doctor.h"
#include "launch/machine.h"
#include "trainer/step/bf16_choice.h"

namespace lamina::doctor {
namespace {

// Between the host's page-locked memory and a GPU, one way, GB per second.
double upload_gbps(Device device) {
  constexpr int64_t bytes = int64_t{64} << 20;
  const Buffer from = Buffer::staging(bytes, device, nullptr, "measurement");
  const Buffer to(bytes, device, nullptr, "measurement");
  Stream stream(device);
  const double seconds = best_seconds([&] {
    cuda::copy(to.data(), from.data(), bytes, stream);
    stream.synchronize();
  });
  return 1e-9 * static_cast<double>(bytes) / seconds;
}

}  // namespace

void measure_compute(Report& report, Device device) {
  const bool is_gpu = device.kind == DeviceKind::cuda;
  const std::string where =
      is_gpu ? "GPU" : fmt::format("{} thread{}", cpu::num_threads(), cpu::num_threads() == 1 ? "" : "s");
  const int64_t size = is_gpu ? 4096 : 512;
  for (const DType dtype : {DType::f32, DType::bf16})
    report.ok("matrix product",
              fmt::format("{}, {}: {:.0f} GFLOP/s", where, name_of(dtype), matmul_gflops(device, dtype, size)));
  report.ok("memory copy", fmt::format("{}: {:.1f} GB/s read and written", where, copy_gbps(device)));
  if (is_gpu) report.ok("host to GPU", fmt::format("{:.1f} GB/s", upload_gbps(device)));
}

void report_precision(Report& report, bool measure) {
  const std::string processor = ops::product_processor();
  if (!ops::has_native_bf16_products()) {
    const char* limit = std::getenv("DNNL_MAX_CPU_ISA");
    report.ok("bf16 products", fmt::format("through fp32: {}{}; native ones need avx512_core_bf16", processor,
                                           limit ? fmt::format(" (DNNL_MAX_CPU_ISA={})", limit) : ""));
  } else if (!measure) {
    report.ok("bf16 products", fmt::format("not measured (--quick); {} has native ones", processor));
    return;
  } else {
    const ops::Bf16Timings& timings = ops::bf16_timings();
    const ops::Bf16Products quicker = ops::quicker_products(timings);
    for (int i = 0; i < ops::num_product_classes; ++i) {
      const ops::Bf16Timing& timing = timings[static_cast<size_t>(i)];
      report.ok("bf16 products", fmt::format("{}: {}; native takes {:.2f} of the time through fp32",
                                             ops::name_of(static_cast<ops::ProductClass>(i)),
                                             quicker.native[static_cast<size_t>(i)] ? "native" : "through fp32",
                                             timing.native / timing.through_fp32));
    }
  }
  if (quicker_precision() == Precision::bf16) {
    report.ok("quicker precision", "bf16: its products are native");
  } else {
    report.ok("quicker precision",
              "fp32; bf16 takes half the memory for activations and a little more time, as its "
              "products go through fp32");
  }
}

}  // namespace lamina::doctor
