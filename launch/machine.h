// What the machine at hand has and does: for the commands that tell what a run would need and take here.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "core/base/dtype.h"
#include "core/device/device.h"
#include "model/plan.h"

namespace lamina {

// "MemTotal" and the like of /proc/meminfo, in bytes; absent where the system doesn't say.
std::optional<double> meminfo(const std::string& key);

// The best of what fits into about half a second, after one that warms up; `work` ends when its result is there.
double best_seconds(const std::function<void()>& work);
// 10^9 operations per second of a product of square matrices, a multiply-add counted as two; with all of the process's threads.
double matmul_gflops(Device device, DType dtype, int64_t size);
// Bytes read and written per second by a copy in memory, 10^9.
double copy_gbps(Device device);

// One of `num_ranks` ranks that share this machine's processor, measured in about a second.
model::PlanDevice measure_processor(DType dtype, int num_ranks);

}  // namespace lamina
