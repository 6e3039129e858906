#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/noise_source.h"

// Writes elements [begin, end) of sample `sample`, or of each of its frames if they are correlated. y is the sample's
// first element.
VDIFF_DECLARE_KERNEL(noise, (DType dtype, const NoiseSource& source, int64_t sample, void* y, int64_t elements,
                             int64_t begin, int64_t end))
