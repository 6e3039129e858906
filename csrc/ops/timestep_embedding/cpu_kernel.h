#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"

// Rows [begin, end) of y (rows, dim); scratch has 2 * (dim / 2) floats.
VDIFF_DECLARE_KERNEL(timestep_embedding, (DType dtype, const double* times, const double* frequencies, int64_t dim,
                                          bool flip, float* scratch, void* y, int64_t begin, int64_t end))
