#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"

// Rows [begin, end) of x (rows, 2H) -> y (rows, H).
VDIFF_DECLARE_KERNEL(geglu_forward, (DType dtype, const void* x, void* y, int64_t width, int64_t begin, int64_t end))
VDIFF_DECLARE_KERNEL(geglu_backward,
                     (DType dtype, const void* dy, const void* x, void* dx, int64_t width, int64_t begin, int64_t end))
