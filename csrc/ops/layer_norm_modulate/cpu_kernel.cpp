#include "ops/layer_norm_modulate/cpu_kernel.h"

#include "cpu/layer_norm.h"

namespace vdiff::VDIFF_ISA {

void layer_norm_modulate_kernels(DType dtype, bool affine, LayerNormKernels* table) {
  *table = affine ? layer_norm_table<false, true>(dtype) : layer_norm_table<false, false>(dtype);
}

}  // namespace vdiff::VDIFF_ISA
