// h = residual + gate * branch; y = (normed(h) * weight + bias) * (1 + scale) + shift, and its backward: a row in the
// registers of one block, column sums over the rows that a block walks.
#pragma once

#include "cuda/rows.cuh"

namespace vdiff {

constexpr int kRowThreads = 256, kWalkThreads = 512, kWidest = 8192;

struct LayerNormShape {
  int64_t rows, width, length;
  __host__ __device__ int64_t runs() const { return rows / length; }
};

inline LayerNormShape layer_norm_shape(const Tensor& x, const Tensor& vectors) {
  STD_TORCH_CHECK(x.size(2) <= kWidest, "a row is wider than the 8192 that a block holds");
  const int64_t runs = vectors.size(1);
  return {x.size(0) * x.size(1), x.size(2), runs > 0 ? std::max<int64_t>(x.size(1) / runs, 1) : 1};
}

// Sum over the threads of one row (x of the block), the same in all of them. `shared` has a place for each warp; all
// threads of the block come here.
__device__ __forceinline__ float row_sum(float v, float* shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  const int warps = blockDim.x / 32;
  if (warps == 1) return v;
  float* const row = shared + threadIdx.y * warps;
  if (threadIdx.x % 32 == 0) row[threadIdx.x / 32] = v;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < warps; ++w) total += row[w];
  __syncthreads();
  return total;
}

template <class T>
struct ForwardRows {
  LayerNormShape shape;
  float eps;
  const T *residual, *branch;
  DeviceVectors gate, shift, scale;
  const float *weight, *bias;
  T *h, *y;
  float* statistics;
};

template <class T, int kChunks, bool kGated>
__global__ void __launch_bounds__(kRowThreads) layer_norm_forward_kernel(ForwardRows<T> a) {
  __shared__ float shared[kRowThreads / 32];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= a.shape.rows) return;  // only with one warp a row, so nobody waits
  const int width = static_cast<int>(a.shape.width);
  const int64_t run = row / a.shape.length, at = row * width;
  float x[kChunks][kChunk], sum = 0;
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int column = (threadIdx.x + k * blockDim.x) * kChunk;
    load_chunk(a.residual + at, column, width, x[k]);
    if constexpr (kGated) {
      float branch[kChunk], gate[kChunk];
      load_chunk(a.branch + at, column, width, branch);
      load_chunk(a.gate.template at<T>(run), column, width, gate);
      // The norm is that of h as it is stored.
#pragma unroll
      for (int j = 0; j < kChunk; ++j) x[k][j] = to_float(from_float<T>(fmaf(gate[j], branch[j], x[k][j])));
      store_chunk(a.h + at, column, width, x[k]);
    }
#pragma unroll
    for (int j = 0; j < kChunk; ++j) sum += x[k][j];
  }
  // The mean's rounding is taken out again: it counts where the mean is far above the deviation.
  const float high = row_sum(sum, shared) / width;
  float rest = 0, square = 0;
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int column = (threadIdx.x + k * blockDim.x) * kChunk;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      x[k][j] = column + j < width ? x[k][j] - high : 0.0f;
      rest += x[k][j], square = fmaf(x[k][j], x[k][j], square);
    }
  }
  const float low = row_sum(rest, shared) / width;
  const float variance = fmaxf(row_sum(square, shared) / width - low * low, 0.0f);
  const float rstd = 1.0f / sqrtf(variance + a.eps);
  if (threadIdx.x == 0) {
    a.statistics[row] = high, a.statistics[a.shape.rows + row] = low, a.statistics[2 * a.shape.rows + row] = rstd;
  }
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int column = (threadIdx.x + k * blockDim.x) * kChunk;
    float scale[kChunk], shift[kChunk], weight[kChunk], bias[kChunk];
    load_chunk(a.scale.template at<T>(run), column, width, scale);
    load_chunk(a.shift.template at<T>(run), column, width, shift);
    if (a.weight) load_chunk(a.weight, column, width, weight);
    if (a.bias) load_chunk(a.bias, column, width, bias);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      float z = (x[k][j] - low) * rstd;
      if (a.weight) z *= weight[j];
      if (a.bias) z += bias[j];
      x[k][j] = fmaf(z, 1.0f + scale[j], shift[j]);
    }
    store_chunk(a.y + at, column, width, x[k]);
  }
}

template <class T, bool kGated>
void launch_forward(const ForwardRows<T>& a, cudaStream_t stream) {
  if (a.shape.rows * a.shape.width == 0) return;
  const int64_t chunks = ceil_div(a.shape.width, kChunk);
  const int per_thread = chunks <= 128 ? 1 : chunks <= 512 ? 2 : 4;
  const unsigned threads = static_cast<unsigned>(ceil_div(ceil_div(chunks, per_thread), 32) * 32);
  const unsigned together = threads == 32 ? 4 : 1;
  const auto kernel = per_thread == 1   ? layer_norm_forward_kernel<T, 1, kGated>
                      : per_thread == 2 ? layer_norm_forward_kernel<T, 2, kGated>
                                        : layer_norm_forward_kernel<T, 4, kGated>;
  kernel<<<ceil_div(a.shape.rows, together), dim3(threads, together), 0, stream>>>(a);
  check_launch();
}

template <class T>
struct BackwardRows {
  LayerNormShape shape;
  int64_t walk, parts;  // rows of a block, blocks of a run
  const T *dy, *dh, *h, *branch;
  DeviceVectors gate, scale;
  const float *weight, *bias, *statistics;
  T *dx, *dbranch, *dgate, *dshift, *dscale;
  float* partial;  // null where every token has vectors of its own and nothing else is summed
};

// Six activations in float32 do not fit in the registers: h is read again instead, from the cache, and a block has one
// row under way.
template <class T, bool kGated>
__host__ __device__ constexpr bool reloads(int64_t chunks) {
  return kGated && chunks > 1 && sizeof(T) == 4;
}

// Sums of dy, dy * normed and dh * branch over rows of one run; where every token has a vector of its own, whose
// gradient needs no sum, those of dz and dz * normed, z = normed * weight + bias. A block of (threads of a row, rows)
// threads has several rows under way, and writes one partial sum for all that it walks over.
template <class T, int kChunks, bool kGated, bool kPerToken>
__global__ void __launch_bounds__(kWalkThreads, 1) layer_norm_backward_kernel(BackwardRows<T> a) {
  __shared__ float shared[kWalkThreads / 32];
  constexpr bool kReload = reloads<T, kGated>(kChunks);
  const int width = static_cast<int>(a.shape.width);
  const int64_t block = blockIdx.x;
  const int64_t within = kPerToken ? 0 : block % a.parts * a.walk;
  const int64_t first = kPerToken ? block * a.walk : block / a.parts * a.shape.length + within;
  const int64_t left = kPerToken ? a.shape.rows - first : a.shape.length - within;
  const int rows = static_cast<int>(left < a.walk ? left : a.walk);
  float sum[kChunks][kChunk] = {}, sum_normed[kChunks][kChunk] = {}, sum_branch[kGated ? kChunks : 1][kChunk] = {};
  for (int step = 0; step < rows; step += blockDim.y) {
    // All threads are needed for the sums over a row: past the last one they have rows of no elements.
    const int mine = step + (kReload ? 0 : static_cast<int>(threadIdx.y)), filled = mine < rows ? width : 0;
    const int64_t row = first + (mine < rows ? mine : 0);
    // Found once for all rows, but where registers are short.
    const int64_t at = row * width, run = kPerToken ? row : kReload ? row / a.shape.length : block / a.parts;
    const float high = a.statistics[row], low = a.statistics[a.shape.rows + row];
    const float rstd = a.statistics[2 * a.shape.rows + row];
    float normed[kChunks][kChunk], dz[kChunks][kChunk], mean = 0, dot = 0;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int column = (threadIdx.x + k * blockDim.x) * kChunk;
      float scale[kChunk], weight[kChunk], bias[kChunk];
      load_chunk(a.h + at, column, filled, normed[k]);
      load_chunk(a.dy + at, column, filled, dz[k]);
      load_chunk(a.scale.template at<T>(run), column, width, scale);
      if (!kGated && a.weight) load_chunk(a.weight, column, width, weight);
      if (!kGated && kPerToken && a.bias) load_chunk(a.bias, column, width, bias);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        normed[k][j] = column + j < filled ? (normed[k][j] - high - low) * rstd : 0.0f;
        const float dy = dz[k][j];
        dz[k][j] *= 1.0f + scale[j];
        const float summed = kPerToken ? dz[k][j] : dy;
        sum[k][j] += summed, sum_normed[k][j] = fmaf(summed, normed[k][j], sum_normed[k][j]);
        if constexpr (kPerToken) {
          float z = normed[k][j];
          if (!kGated && a.weight) z *= weight[j];
          if (!kGated && a.bias) z += bias[j];
          scale[j] = dy * z, bias[j] = dy;
        }
        if (!kGated && a.weight) dz[k][j] *= weight[j];
        mean += dz[k][j], dot = fmaf(dz[k][j], normed[k][j], dot);
      }
      if constexpr (kPerToken) {
        store_chunk(a.dscale + at, column, filled, scale);
        store_chunk(a.dshift + at, column, filled, bias);
      }
    }
    mean = row_sum(mean, shared) / width, dot = row_sum(dot, shared) / width;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int column = (threadIdx.x + k * blockDim.x) * kChunk;
      if constexpr (kReload) {
        load_chunk(a.h + at, column, filled, normed[k]);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) normed[k][j] = (normed[k][j] - high - low) * rstd;
      }
#pragma unroll
      for (int j = 0; j < kChunk; ++j) dz[k][j] = (dz[k][j] - mean - normed[k][j] * dot) * rstd;
      if constexpr (kGated) {
        float other[kChunk];
        if (a.dh) {
          load_chunk(a.dh + at, column, filled, other);
#pragma unroll
          for (int j = 0; j < kChunk; ++j) dz[k][j] += other[j];
        }
        load_chunk(a.gate.template at<T>(run), column, width, other);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) other[j] *= dz[k][j];
        store_chunk(a.dbranch + at, column, filled, other);
        load_chunk(a.branch + at, column, filled, other);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) other[j] *= dz[k][j];
        if constexpr (kPerToken) {
          store_chunk(a.dgate + at, column, filled, other);
        } else {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) sum_branch[k][j] += other[j];
        }
      }
      store_chunk(a.dx + at, column, filled, dz[k]);
    }
  }
  if (a.partial == nullptr) return;
  constexpr int kSums = kGated ? 3 : 2;
  float* partial = a.partial + block * kSums * width;
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int column = (threadIdx.x + k * blockDim.x) * kChunk;
    sum_down<kWalkThreads>(sum[k]);
    sum_down<kWalkThreads>(sum_normed[k]);
    if constexpr (kGated) sum_down<kWalkThreads>(sum_branch[k]);
    if (threadIdx.y > 0) continue;
    store_chunk(partial, column, width, sum[k]);
    store_chunk(partial + width, column, width, sum_normed[k]);
    if constexpr (kGated) store_chunk(partial + 2 * width, column, width, sum_branch[k]);
  }
}

inline int64_t chunks_a_backward_thread(int64_t width) { return ceil_div(width, kChunk) <= 128 ? 1 : 2; }

// Threads of a row, and rows under way in a block.
template <class T, bool kGated>
dim3 backward_threads(const LayerNormShape& s) {
  const int64_t chunks = chunks_a_backward_thread(s.width);
  const auto row = static_cast<unsigned>(ceil_div(ceil_div(s.width, kChunk), chunks * 32) * 32);
  if (reloads<T, kGated>(chunks)) return dim3(row, 1);
  const int64_t summed = s.length == 1 ? s.rows : s.length;
  return dim3(row, static_cast<unsigned>(std::min<int64_t>(kWalkThreads / row, summed)));
}

// Blocks and partial sums of a backward; `walk` and `parts` are set in a. A multiprocessor's registers are enough for
// kWalkThreads threads, and the blocks take all rows in as few waves as leave no thread more than kMostSummed to add.
template <class T, bool kGated>
int64_t plan_backward(BackwardRows<T>& a) {
  int device = 0, multiprocessors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const bool per_token = a.shape.length == 1;
  const dim3 threads = backward_threads<T, kGated>(a.shape);
  const int64_t at_once = std::max<int64_t>(kWalkThreads / (threads.x * threads.y), 1) * multiprocessors;
  const int64_t steps = ceil_div(a.shape.rows, threads.y * at_once), waves = ceil_div(steps, kMostSummed);
  a.walk = std::min(per_token ? a.shape.rows : a.shape.length, threads.y * ceil_div(steps, waves));
  a.parts = per_token ? 1 : ceil_div(a.shape.length, a.walk);
  return per_token ? ceil_div(a.shape.rows, a.walk) : a.shape.runs() * a.parts;
}

template <class T, bool kGated>
void launch_backward(const BackwardRows<T>& a, int64_t blocks, cudaStream_t stream) {
  const bool per_token = a.shape.length == 1, one = chunks_a_backward_thread(a.shape.width) == 1;
  const auto kernel = one ? (per_token ? layer_norm_backward_kernel<T, 1, kGated, true>
                                       : layer_norm_backward_kernel<T, 1, kGated, false>)
                          : (per_token ? layer_norm_backward_kernel<T, 2, kGated, true>
                                       : layer_norm_backward_kernel<T, 2, kGated, false>);
  kernel<<<blocks, backward_threads<T, kGated>(a.shape), 0, stream>>>(a);
  check_launch();
}

}  // namespace vdiff
