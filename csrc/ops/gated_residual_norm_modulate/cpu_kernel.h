#pragma once

#include "cpu/isa.h"
#include "cpu/layer_norm_rows.h"

VDIFF_DECLARE_KERNEL(gated_residual_norm_modulate_kernels, (DType dtype, LayerNormKernels* table))
