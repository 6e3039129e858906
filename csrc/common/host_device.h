// One macro for the functions that host and device share.
#pragma once

#if defined(__CUDACC__)
#define VDIFF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VDIFF_HOST_DEVICE inline
#endif
