#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/noise_source.h"
#include "ops/sampler_step/columns.h"

namespace vdiff {

// Null uncond, previous, previous2, scale or limit: there is none. x0 and x_prev are null where a pass does not write
// them.
struct SamplerStep {
  DType dtype, prediction_dtype;
  const void *x, *prediction, *uncond, *previous, *previous2;
  void *x_prev, *x0;
  NoiseSource noise;
  double row[sampler::kColumns];
  double clip;          // kFixed
  const double* scale;  // per sample: what guidance_rescale multiplies y by
  const double* limit;  // per sample: kDynamic's threshold
  int64_t channels, positions;
};

// Mean and sum of squared deviations of a task's elements, for the prediction and for y.
struct SpreadPart {
  double mean[2], squares[2], count;
};

}  // namespace vdiff

// Positions [begin, end) of one sample, or of its every frame where they are correlated, all channels; channels is 1
// where no noise is drawn.
VDIFF_DECLARE_KERNEL(sampler_update, (const SamplerStep& args, int64_t sample, int64_t begin, int64_t end))
// |x0| before clipping, (positions,) of one sample, as float (double for double x).
VDIFF_DECLARE_KERNEL(sampler_magnitude,
                     (const SamplerStep& args, int64_t sample, void* magnitude, int64_t begin, int64_t end))
VDIFF_DECLARE_KERNEL(sampler_spread,
                     (const SamplerStep& args, int64_t sample, SpreadPart* part, int64_t begin, int64_t end))
