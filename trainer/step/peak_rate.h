// The peak rate of this rank: the denominator of the MFU (arXiv 2204.02311, appendix B) where no data sheet gives it.
#pragma once

#include <string>

#include "configs/schema/config.h"
#include "core/device/stream.h"
#include "core/ops/bf16_products.h"

namespace lamina {

// 10^9 operations per second of large matrix products in this precision: the quickest of those that fit into about 0.3 s. On a GPU of
// one; on the CPU the sum over this rank's threads, each with products of its own, multiplied the way that the run multiplies them, and
// timed by its own CPU time: what the rate would be if each had a core to itself. Other programs on the cores lengthen the
// measurement and don't change it.
double measure_peak_gflops(Precision precision, Stream& stream, const ops::Bf16Products& products);

// "MFU 41 %". More than 100 % can't be: then it says that the peak is too low, and whose fault that is.
std::string mfu_text(double mfu, bool is_measured);

}  // namespace lamina
