#include "ops/gated_residual_norm_modulate/cpu_kernel.h"

#include "cpu/layer_norm.h"

namespace vdiff::VDIFF_ISA {

void gated_residual_norm_modulate_kernels(DType dtype, LayerNormKernels* table) {
  *table = layer_norm_table<true, false>(dtype);
}

}  // namespace vdiff::VDIFF_ISA
