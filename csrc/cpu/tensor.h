// Host-side glue of the CPU ops: torch's dtype to the kernels' code.
#pragma once

#include "common/stable.h"
#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace vdiff {

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    case ScalarType::Double: return DType::f64;
    default: STD_TORCH_CHECK(false, "expected float32, bfloat16, float16 or float64");
  }
}

}  // namespace vdiff
