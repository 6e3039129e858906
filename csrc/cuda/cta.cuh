// A block of threads, and the cluster it may belong to, as kernels written once for device and host see it. The host's
// counterpart is tests/native/host_cta.h.
#pragma once

#include <cooperative_groups.h>

#include "cuda/dtype.cuh"
#include "cuda/store.cuh"

namespace vdiff {

struct DeviceCta {
  // Calls f(thread) on every thread. `threads` then waits for all threads of the block, `each` does not.
  template <class F>
  static __device__ __forceinline__ void each(F f) {
    f(static_cast<int>(threadIdx.x));
  }
  template <class F>
  static __device__ __forceinline__ void threads(F f) {
    each(f);
    __syncthreads();
  }

  // A variable per thread that lives across several calls of `each`.
  template <class V>
  struct Local {
    V v;
    __device__ __forceinline__ explicit Local(const DeviceCta&) {}
    __device__ __forceinline__ V& operator[](int) { return v; }
  };

  // Combines of(thread) over every `width` neighbouring lanes by a tree of take(a, b); the first lane calls
  // done(thread, result).
  template <class V, class Of, class Take, class Done>
  static __device__ __forceinline__ void reduce_lanes(int width, Of of, Take take, Done done) {
    const int t = static_cast<int>(threadIdx.x);
    V v = of(t);
    for (int d = width / 2; d > 0; d /= 2) take(v, shuffle_down(v, d, width));
    if (t % width == 0) done(t, v);
  }

  // Copies 16 bytes to shared memory asynchronously. commit() closes a group of copies; wait(n) returns once at most n
  // groups of this thread are under way.
  static __device__ __forceinline__ void copy(void* shared, const void* from) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from) : "memory");
  }
  static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
  static __device__ __forceinline__ void wait(int groups) {
    switch (groups) {
      case 3: asm volatile("cp.async.wait_group 3;\n" ::: "memory"); break;
      case 2: asm volatile("cp.async.wait_group 2;\n" ::: "memory"); break;
      case 1: asm volatile("cp.async.wait_group 1;\n" ::: "memory"); break;
      default: asm volatile("cp.async.wait_group 0;\n" ::: "memory"); break;
    }
  }
  template <class P>
  static __device__ __forceinline__ void store(void* to, const P& vector) {
    store_whole(to, vector);
  }

  // Waits for all blocks of the cluster; peer() is the same address in the shared memory of another block of it.
  static __device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    cooperative_groups::this_cluster().sync();
#endif
  }
  template <class P>
  static __device__ __forceinline__ P* peer(P* shared, int rank) {
#if __CUDA_ARCH__ >= 900
    return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
#else
    return shared;
#endif
  }

  // A barrier of blocks that all run at once, through a counter that is zero before. What a block wrote before it
  // arrived is visible to every block that has awaited it.
  static __device__ __forceinline__ void arrive(unsigned* counter) {
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(counter) : "memory");
  }
  static __device__ __forceinline__ void await(const unsigned* counter, unsigned blocks) {
    if (threadIdx.x == 0) {
      unsigned arrived;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(arrived) : "l"(counter) : "memory");
      } while (arrived < blocks);
    }
    __syncthreads();
  }

  template <class T>
  static __device__ __forceinline__ float to_float(T x) {
    return vdiff::to_float(x);
  }
  template <class T>
  static __device__ __forceinline__ T from_float(float x) {
    return vdiff::from_float<T>(x);
  }
  static __device__ __forceinline__ float quotient(float a, float b) { return __fdividef(a, b); }
  static __device__ __forceinline__ float exp(float x) { return expf(x); }

 private:
  template <class V>
  static __device__ __forceinline__ V shuffle_down(V v, int step, int width) {
    static_assert(sizeof(V) % sizeof(unsigned) == 0, "a value of whole words");
    unsigned words[sizeof(V) / sizeof(unsigned)];
    memcpy(words, &v, sizeof(V));
#pragma unroll
    for (unsigned& word : words) word = __shfl_down_sync(~0u, word, step, width);
    memcpy(&v, words, sizeof(V));
    return v;
  }
};

}  // namespace vdiff
