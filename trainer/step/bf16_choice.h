// How a run multiplies bf16 matrices on CPUs (core/ops/bf16_products.h): the same on all its ranks, and after a resume on the same kind
// of processor, because the two ways add in other orders. Rank 0 measures, all follow, checkpoints record it.
#pragma once

#include <string>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/step/engine.h"

namespace lamina {

// Collective. From now on the engine multiplies as train.bf16_products says; with auto as `saved` recorded it (null: there is none)
// where that was on this kind of processor, else as rank 0 measures. Where any rank's processor has no native products all go
// through fp32. Error on every rank where the configuration wants native ones then. Returns a line for the log, empty where there
// is nothing to choose: other precisions, GPUs.
std::string choose_bf16_products(Engine& engine, const CheckpointInfo* saved);

// What the engine uses, for a checkpoint. Nothing where there was nothing to choose.
void store_bf16_products(CheckpointInfo& info, const Engine& engine);

// The run's precision that takes less time on this processor: bf16 where its dense products and weight gradients are native.
Precision quicker_precision();

}  // namespace lamina
