// Element types of the CUDA kernels: upcast at load, downcast at store.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/stable.h"

namespace vdiff {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

}  // namespace vdiff

// Runs the body with T bound to the CUDA type of a torch dtype.
#define VDIFF_CUDA_DISPATCH(scalar_type, T, ...)                              \
  switch (scalar_type) {                                                      \
    case ::vdiff::ScalarType::Float: {                                        \
      using T = float;                                                        \
      __VA_ARGS__;                                                            \
      break;                                                                  \
    }                                                                         \
    case ::vdiff::ScalarType::BFloat16: {                                     \
      using T = __nv_bfloat16;                                                \
      __VA_ARGS__;                                                            \
      break;                                                                  \
    }                                                                         \
    case ::vdiff::ScalarType::Half: {                                         \
      using T = __half;                                                       \
      __VA_ARGS__;                                                            \
      break;                                                                  \
    }                                                                         \
    default: STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16"); \
  }
