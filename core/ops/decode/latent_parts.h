// A block's part of a sequence's context, for the kernels of attention over latents.
#pragma once

#include "core/ops/decode/kernels.h"
#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {

struct LatentPart {
  int sequence;
  int64_t begin, end;  // tokens
};

__device__ __forceinline__ LatentPart latent_part(const LatentParams& p, int part) {
  int sequence = 0;
  while (part >= p.first_part[sequence + 1]) ++sequence;
  const int64_t begin = (part - p.first_part[sequence]) * p.tokens_per_part[sequence];
  return {sequence, begin, min(begin + p.tokens_per_part[sequence], p.tokens[sequence])};
}

}  // namespace lamina::ops::cuda
