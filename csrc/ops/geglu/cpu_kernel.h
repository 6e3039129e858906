#pragma once

#include "cpu/biased_rows.h"
#include "cpu/isa.h"

// Rows of x (M, 2H) and dy, y (M, H); the runs' width is 2H.
VDIFF_DECLARE_KERNEL(geglu_kernels, (DType dtype, BiasedRowsKernels* table))
