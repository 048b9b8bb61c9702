// What this rank's processor could do: the base of the model FLOPs utilisation (MFU).
#pragma once

#include "configs/schema/config.h"

namespace lamina {

// GFLOP/s of one large matrix product on this rank's threads, the best of a few runs. Takes about a third of a second.
double measure_peak_gflops(Precision precision);

}  // namespace lamina
