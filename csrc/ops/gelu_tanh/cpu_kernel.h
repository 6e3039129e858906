#pragma once

#include "cpu/biased_rows.h"
#include "cpu/isa.h"

VDIFF_DECLARE_KERNEL(gelu_tanh_kernels, (DType dtype, BiasedRowsKernels* table))
