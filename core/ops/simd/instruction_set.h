// Which instruction set the kernels use. Chosen by the processor; tests run the others too.
#pragma once

namespace lamina::ops::cpu {

enum class InstructionSet { best, avx2, portable };

// From now on the kernels of this process use nothing better. For tests only: call it before other threads run kernels.
void limit_instruction_set(InstructionSet limit);

// The name of what is in use: "AVX3" (AVX-512), "AVX2"; "SCALAR", "EMU128" or "SSE2" for the baseline, as Highway's version has it.
const char* instruction_set_name();

}  // namespace lamina::ops::cpu
