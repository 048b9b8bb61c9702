// Which instruction sets kernels are compiled for: AVX-512 (Highway's AVX3), AVX2, and the processor's baseline. SSE4 would gain little
// over the baseline where nothing is trained; sets beyond AVX3 (those of Ice Lake, Zen 4, Sapphire Rapids, AVX10.2: lower bits) add
// instructions that no kernel uses. Each set takes as long to compile as the others. Include before any header of Highway.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// The same source, but for the width of a vector, at up to ten times the compiler's work: the widest and the narrowest tell.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | (HWY_AVX3 - 1))
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | (HWY_AVX3 - 1))
#endif
