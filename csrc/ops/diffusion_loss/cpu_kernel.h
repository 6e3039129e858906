#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/noise_source.h"
#include "ops/diffusion_loss/math.h"

namespace vdiff {

// prediction has type `dtype`. x0 and a given noise have one dtype, which is prediction's or float32. What the target
// does not need is null.
struct DiffusionLoss {
  DType dtype;
  bool other_is_float;
  const void* prediction;
  const void* x0;
  NoiseSource noise;
  ScheduleTables schedule;
  LossOptions options;
  int64_t channels, positions;
};

// The outputs: task_sum or gradient may be null. The gradient is scaled by upstream[sample * upstream_stride], or by 1
// if upstream is null, and by `share`.
struct LossOutput {
  double* task_sum;
  void* gradient;
  const void* upstream;
  int64_t upstream_stride;
  double share;
};

}  // namespace vdiff

// Positions [begin, end) of one sample, or of each of its frames if they are correlated, with all channels. task_sum
// receives weight * the sum of the elements' losses.
VDIFF_DECLARE_KERNEL(diffusion_loss,
                     (const DiffusionLoss& args, const LossOutput& out, int64_t sample, int64_t begin, int64_t end))
