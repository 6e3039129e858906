// Kernels with one fault each, and their right twins: what the emulator must find, and what it must not. Every case is
// a function `case_<name>(bool right)` that launches one kernel and returns the runtime's answer.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

namespace cg = cooperative_groups;

namespace {

constexpr int kThreads = 128;

// n elements on the device, from `value` on.
struct Buffer {
  float* data = nullptr;

  explicit Buffer(int n, float value = 0) {
    std::vector<float> host(n);
    for (int i = 0; i < n; ++i) host[i] = value + static_cast<float>(i);
    cudaMalloc(&data, n * sizeof(float));
    cudaMemcpy(data, host.data(), n * sizeof(float), cudaMemcpyHostToDevice);
  }
  ~Buffer() { cudaFree(data); }
};

cudaError_t last() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? cudaDeviceSynchronize() : status;
}

// `kernel` in clusters of `size` blocks.
template <class... Parameters, class... Arguments>
cudaError_t in_clusters(unsigned size, unsigned blocks, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension, attribute.val.clusterDim = {size, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks), config.blockDim = dim3(kThreads), config.attrs = &attribute, config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  return last();
}

__global__ void add_one(float* y, const float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] + 1.0f;
}

__global__ void reverse(float* y, bool wait) {
  __shared__ float shared[kThreads];
  const int t = threadIdx.x;
  shared[t] = y[t];
  if (wait) __syncthreads();
  y[t] = shared[kThreads - 1 - t];
}

// Sixteen bytes a thread, read by the same thread.
__global__ void copy_async(float* y, const float* x, bool wait) {
  __shared__ __align__(16) float shared[4 * kThreads];
  const int t = threadIdx.x;
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared + 4 * t));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\ncp.async.commit_group;\n" ::"r"(to), "l"(x + 4 * t)
               : "memory");
  if (wait) asm volatile("cp.async.wait_group 0;\n" ::: "memory");
  for (int i = 0; i < 4; ++i) y[4 * t + i] = shared[4 * t + i];
}

// Every block reads its neighbour's shared memory.
__global__ void read_peer(float* y, bool before, bool after) {
#if __CUDA_ARCH__ >= 900
  __shared__ float shared[kThreads];
  const auto cluster = cg::this_cluster();
  const int t = threadIdx.x;
  shared[t] = static_cast<float>(t);
  before ? cluster.sync() : __syncthreads();
  y[blockIdx.x * kThreads + t] = cluster.map_shared_rank(shared, cluster.block_rank() ^ 1)[t];
  if (after) cluster.sync();
#endif
}

// Blocks that run at once pass one number each on; the counter must be zero at first.
__global__ void exchange(float* y, float* numbers, unsigned* counter, bool ordered) {
  if (threadIdx.x == 0) {
    numbers[blockIdx.x] = static_cast<float>(blockIdx.x);
    if (ordered) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    } else {
      asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    }
    unsigned seen;
    do {
      if (ordered) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      } else {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      }
    } while (seen < gridDim.x);
    y[blockIdx.x] = numbers[(blockIdx.x + 1) % gridDim.x];
  }
}

__global__ void whole_grid(float* y, float* numbers, bool wait) {
  if (threadIdx.x == 0) numbers[blockIdx.x] = 1.0f;
  if (wait) cg::this_grid().sync();
  if (threadIdx.x == 0) y[blockIdx.x] = numbers[(blockIdx.x + 1) % gridDim.x];
}

__global__ void load_four(float* y, const float* x) {
  const auto four = *reinterpret_cast<const float4*>(x);
  y[0] = four.x + four.y + four.z + four.w;
}

__global__ void dynamic_shared(float* y, int at) {
  extern __shared__ float memory[];
  memory[threadIdx.x] = 1.0f;
  if (threadIdx.x == 0) memory[at] = 2.0f;
  __syncthreads();
  y[threadIdx.x] = memory[threadIdx.x];
}

__global__ void uninitialised(float* y, int written) {
  __shared__ float shared[kThreads];
  if (static_cast<int>(threadIdx.x) < written) shared[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = shared[threadIdx.x];
}

__global__ void two_writers(float* y, int apart) {
  if (threadIdx.x == 0) y[blockIdx.x * apart] = static_cast<float>(blockIdx.x);
}

__global__ void wait_for(const unsigned* flag) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  } while (seen == 0);
}

__global__ void __launch_bounds__(64) bounded(float* y) { y[threadIdx.x] = 1.0f; }

}  // namespace

#define CASE(name) extern "C" __attribute__((visibility("default"))) int case_##name(bool right)

CASE(read_past_the_end) {
  const Buffer x(right ? 1000 : 999), y(1000);
  add_one<<<8, kThreads>>>(y.data, x.data, 1000);
  return last();
}
CASE(write_past_the_end) {
  const Buffer x(1000), y(right ? 1000 : 999);
  add_one<<<8, kThreads>>>(y.data, x.data, 1000);
  return last();
}
CASE(use_after_free) {
  const Buffer y(1000);
  float* x = nullptr;
  {
    const Buffer gone(1000);
    x = gone.data;
    if (right) add_one<<<8, kThreads>>>(y.data, x, 1000);
  }
  if (!right) add_one<<<8, kThreads>>>(y.data, x, 1000);
  return last();
}
CASE(missing_syncthreads) {
  const Buffer y(kThreads);
  reverse<<<1, kThreads>>>(y.data, right);
  return last();
}
CASE(missing_cp_async_wait) {
  const Buffer x(4 * kThreads), y(4 * kThreads);
  copy_async<<<1, kThreads>>>(y.data, x.data, right);
  return last();
}
CASE(missing_cluster_sync_before_the_exit) {
  const Buffer y(4 * kThreads);
  return in_clusters(2, 4, read_peer, y.data, true, right);
}
CASE(missing_cluster_sync_before_the_read) {
  const Buffer y(4 * kThreads);
  return in_clusters(2, 4, read_peer, y.data, right, true);
}

namespace {
int run_exchange(bool reset, bool ordered) {
  const Buffer y(6), numbers(6);
  unsigned* counter = nullptr;
  cudaMalloc(&counter, sizeof(unsigned));
  cudaMemset(counter, 0, sizeof(unsigned));
  float *to = y.data, *of = numbers.data;
  void* arguments[] = {&to, &of, &counter, &ordered};
  const auto kernel = reinterpret_cast<const void*>(&exchange);
  for (int launch = 0; launch < 2; ++launch) {
    if (reset) cudaMemset(counter, 0, sizeof(unsigned));
    cudaLaunchCooperativeKernel(kernel, dim3(6), dim3(32), arguments, 0, nullptr);
  }
  cudaFree(counter);
  return last();
}
}  // namespace
CASE(counter_not_reset) { return run_exchange(right, true); }
CASE(relaxed_counter) { return run_exchange(true, right); }

CASE(missing_grid_sync) {
  const Buffer y(6), numbers(6);
  float *to = y.data, *of = numbers.data;
  void* arguments[] = {&to, &of, &right};
  cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(&whole_grid), dim3(6), dim3(32), arguments, 0, nullptr);
  return last();
}
CASE(misaligned_vector) {
  const Buffer x(8), y(1);
  load_four<<<1, 1>>>(y.data, x.data + (right ? 4 : 1));
  return last();
}
CASE(past_the_dynamic_shared_memory) {
  const Buffer y(kThreads);
  dynamic_shared<<<1, kThreads, (kThreads + 1) * sizeof(float)>>>(y.data, kThreads + (right ? 0 : 1));
  return last();
}
CASE(uninitialised_shared_memory) {
  const Buffer y(kThreads);
  uninitialised<<<1, kThreads>>>(y.data, kThreads - (right ? 0 : 1));
  return last();
}
CASE(blocks_write_the_same_element) {
  const Buffer y(8);
  two_writers<<<8, 32>>>(y.data, right ? 1 : 0);
  return last();
}
CASE(endless_wait) {
  unsigned* flag = nullptr;
  cudaMalloc(&flag, sizeof(unsigned));
  cudaMemset(flag, right ? 1 : 0, sizeof(unsigned));
  wait_for<<<1, 32>>>(flag);
  cudaFree(flag);
  return last();
}

// --- what a driver refuses -------------------------------------------------------------------------------------------

CASE(grid_of_no_blocks) {
  const Buffer x(1), y(1);
  add_one<<<right ? 1 : 0, kThreads>>>(y.data, x.data, 1);
  return last();
}
CASE(too_many_threads) {
  const Buffer x(1), y(1);
  add_one<<<1, right ? 1024 : 1056>>>(y.data, x.data, 1);
  return last();
}
CASE(more_threads_than_the_bounds) {
  const Buffer y(128);
  bounded<<<1, right ? 64 : 128>>>(y.data);
  return last();
}
CASE(too_many_blocks_in_y) {
  const Buffer x(1), y(1);
  add_one<<<dim3(1, right ? 2 : 65536), 1>>>(y.data, x.data, 0);
  return last();
}
CASE(shared_memory_without_the_attribute) {
  const Buffer y(kThreads);
  const int bytes = 60000;
  cudaFuncSetAttribute(dynamic_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, right ? bytes : 0);
  dynamic_shared<<<1, kThreads, bytes>>>(y.data, kThreads);
  return last();
}
CASE(more_shared_memory_than_there_is) {
  const Buffer y(kThreads);
  const int bytes = right ? 200000 : 233000;
  const cudaError_t status = cudaFuncSetAttribute(dynamic_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return status == cudaSuccess ? last() : status;
}
CASE(grid_not_made_of_clusters) {
  const Buffer y(4 * kThreads);
  return in_clusters(2, right ? 4 : 3, read_peer, y.data, true, true);
}

CASE(cluster_of_sixteen) {
  const Buffer x(1), y(1);
  const unsigned blocks = right ? 8 : 16;
  return in_clusters(blocks, blocks, add_one, y.data, x.data, 1);
}

CASE(cooperative_grid_too_large) {
  int device = 0, multiprocessors = 0, blocks = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, whole_grid, 1024, 0);
  const int grid = blocks * multiprocessors + (right ? 0 : 1);
  const Buffer y(grid), numbers(grid);
  float *to = y.data, *of = numbers.data;
  bool wait = true;
  void* arguments[] = {&to, &of, &wait};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(&whole_grid), dim3(grid), dim3(1024), arguments, 0,
                                     nullptr);
}
