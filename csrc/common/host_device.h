// Macros of the functions that host and device share. VDIFF_HOST_DEVICE: called on both sides. VDIFF_DEVICE: called by
// kernels, and by tests that run the kernels on the host.
#pragma once

#if defined(__CUDACC__)
#define VDIFF_HOST_DEVICE __host__ __device__ __forceinline__
#define VDIFF_DEVICE __device__ __forceinline__
#else
// Always inlined: cpu_kernel.cpp files are compiled once per instruction set, and a function that they share must not
// be one that was compiled for a newer CPU.
#define VDIFF_HOST_DEVICE inline __attribute__((always_inline))
#define VDIFF_DEVICE inline
#endif
#define VDIFF_UNROLL _Pragma("unroll")
