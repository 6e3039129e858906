#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/noise_source.h"
#include "ops/sampler_step/columns.h"

namespace vdiff {

// uncond, previous, previous2, scale and limit may be null; x0 and x_prev are null if a kernel does not write them.
struct SamplerStep {
  DType dtype, prediction_dtype;
  const void *x, *prediction, *uncond, *previous, *previous2;
  void *x_prev, *x0;
  NoiseSource noise;
  double row[sampler::kColumns];
  double clip;          // kFixed
  const double* scale;  // per sample: the factor of y by guidance_rescale
  const double* limit;  // per sample: the threshold of kDynamic
  int64_t channels, positions;
};

// The mean and the sum of squared deviations of a task's elements: [0] of the prediction, [1] of y.
struct SpreadPart {
  double mean[2], squares[2], count;
};

}  // namespace vdiff

// Positions [begin, end) of one sample, or of each of its frames if they are correlated, with all channels. channels is
// 1 if no noise is drawn.
VDIFF_DECLARE_KERNEL(sampler_update, (const SamplerStep& args, int64_t sample, int64_t begin, int64_t end))
// |x0| before clipping for the positions [begin, end) of one sample, as float, or as double for a double x.
VDIFF_DECLARE_KERNEL(sampler_magnitude,
                     (const SamplerStep& args, int64_t sample, void* magnitude, int64_t begin, int64_t end))
VDIFF_DECLARE_KERNEL(sampler_spread,
                     (const SamplerStep& args, int64_t sample, SpreadPart* part, int64_t begin, int64_t end))
