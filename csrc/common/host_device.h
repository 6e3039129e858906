// Macros of the functions that host and device share: VDIFF_HOST_DEVICE where the CUDA library calls it on both sides,
// VDIFF_DEVICE where only kernels do and tests play them on the host.
#pragma once

#if defined(__CUDACC__)
#define VDIFF_HOST_DEVICE __host__ __device__ __forceinline__
#define VDIFF_DEVICE __device__ __forceinline__
#else
#define VDIFF_HOST_DEVICE inline
#define VDIFF_DEVICE inline
#endif
#define VDIFF_UNROLL _Pragma("unroll")
