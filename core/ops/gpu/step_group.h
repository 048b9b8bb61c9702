// How many places of memory, scattered as they may be, a launch takes among its parameters: a table in the device's memory would have to
// be brought there for every call.
#pragma once

namespace lamina::ops::cuda {

constexpr int step_group = 32;  // sequences, or pairs of matrices, of one launch

}  // namespace lamina::ops::cuda
