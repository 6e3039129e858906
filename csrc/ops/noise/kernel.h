#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/noise_source.h"

namespace vdiff {

// Frames z[f] = shared * s + own * n[f]; progressive: z[0] = n[0], z[f] = shared * z[f - 1] + own * n[f].
struct FrameCorrelation {
  int64_t frames, elements;
  float shared, own;
  bool progressive;
};

// The shared noise's stream: the same word with its top bit turned.
constexpr int64_t kSharedStream = 1ll << 31;

}  // namespace vdiff

// Elements [begin, end) of every frame of a sample, at most kTaskElements.
VDIFF_DECLARE_KERNEL(correlated_noise, (DType dtype, const NoiseSource& source, const FrameCorrelation& correlation,
                                        int64_t sample, void* y, int64_t begin, int64_t end))
// Elements [begin, end) of sample `sample` into y, which points at the sample's first element.
VDIFF_DECLARE_KERNEL(noise, (DType dtype, const NoiseSource& source, int64_t sample, void* y, int64_t elements,
                             int64_t begin, int64_t end))
