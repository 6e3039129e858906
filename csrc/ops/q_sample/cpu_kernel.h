#pragma once

#include <stdint.h>

#include "common/schedule.h"
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/noise_source.h"

namespace vdiff {

struct QSample {
  DType dtype;
  const void* x0;
  void* out;
  NoiseSource noise;
  ScheduleTables schedule;
  int64_t channels, positions;
};

}  // namespace vdiff

// Positions [begin, end) of one sample, or of each of its frames if they are correlated, with all channels. channels is
// 1 if no noise is drawn.
VDIFF_DECLARE_KERNEL(q_sample, (const QSample& args, int64_t sample, int64_t begin, int64_t end))
