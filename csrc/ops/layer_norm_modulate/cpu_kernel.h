#pragma once

#include "cpu/isa.h"
#include "cpu/layer_norm_rows.h"

VDIFF_DECLARE_KERNEL(layer_norm_modulate_kernels, (DType dtype, bool affine, LayerNormKernels* table))
