// What this rank's threads could do at most: the denominator of the MFU (arXiv 2204.02311, appendix B) where no data sheet says it.
#pragma once

#include "configs/schema/config.h"
#include "core/device/stream.h"

namespace lamina {

// 10^9 operations per second of a large matrix product in this precision on the stream's device, the quickest of those that fit
// into about 0.3 s.
double measure_peak_gflops(Precision precision, Stream& stream);

}  // namespace lamina
