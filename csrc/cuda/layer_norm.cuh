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

// Sum over the threads of one row (x of the block), the same in all of them.
__device__ __forceinline__ float row_sum(float v, float* shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  const int warps = blockDim.x / 32;
  if (warps == 1) return v;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < warps; ++w) total += shared[w];
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
  int64_t walk, parts;  // rows a block walks over, blocks a run
  const T *dy, *dh, *h, *branch;
  DeviceVectors gate, scale;
  const float *weight, *bias, *statistics;
  T *dx, *dbranch, *dgate, *dshift, *dscale;
  float* partial;
};

// Sums of dy, dy * normed and dh * branch over rows of one run; where every token has a vector of its own, whose
// gradient needs no sum, those of dz and dz * normed, z = normed * weight + bias.
template <class T, int kChunks, bool kGated, bool kPerToken>
__global__ void __launch_bounds__(kChunks == 1 ? kWalkThreads / 4 : kWalkThreads, 1)
    layer_norm_backward_kernel(BackwardRows<T> a) {
  __shared__ float shared[kWalkThreads / 32];
  // Six activations in float32 do not fit: h is read again instead, from the cache.
  constexpr bool kReload = kGated && kChunks > 1 && sizeof(T) == 4;
  const int width = static_cast<int>(a.shape.width);
  const int64_t block = blockIdx.x;
  const int64_t within = kPerToken ? 0 : block % a.parts * a.walk;
  const int64_t first = kPerToken ? block * a.walk : block / a.parts * a.shape.length + within;
  const int64_t left = kPerToken ? a.shape.rows - first : a.shape.length - within;
  const int64_t last = first + (left < a.walk ? left : a.walk);
  float sum[kChunks][kChunk] = {}, sum_normed[kChunks][kChunk] = {}, sum_branch[kGated ? kChunks : 1][kChunk] = {};
  for (int64_t row = first; row < last; ++row) {
    // Found once for all rows, but where registers are short.
    const int64_t at = row * width, run = kPerToken ? row : kReload ? row / a.shape.length : block / a.parts;
    const float high = a.statistics[row], low = a.statistics[a.shape.rows + row];
    const float rstd = a.statistics[2 * a.shape.rows + row];
    float normed[kChunks][kChunk], dz[kChunks][kChunk], mean = 0, dot = 0;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int column = (threadIdx.x + k * blockDim.x) * kChunk;
      float scale[kChunk], weight[kChunk], bias[kChunk];
      load_chunk(a.h + at, column, width, normed[k]);
      load_chunk(a.dy + at, column, width, dz[k]);
      load_chunk(a.scale.template at<T>(run), column, width, scale);
      if (!kGated && a.weight) load_chunk(a.weight, column, width, weight);
      if (!kGated && kPerToken && a.bias) load_chunk(a.bias, column, width, bias);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        normed[k][j] = column + j < width ? (normed[k][j] - high - low) * rstd : 0.0f;
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
        store_chunk(a.dscale + at, column, width, scale);
        store_chunk(a.dshift + at, column, width, bias);
      }
    }
    mean = row_sum(mean, shared) / width, dot = row_sum(dot, shared) / width;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int column = (threadIdx.x + k * blockDim.x) * kChunk;
      if constexpr (kReload) {
        load_chunk(a.h + at, column, width, normed[k]);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) normed[k][j] = (normed[k][j] - high - low) * rstd;
      }
#pragma unroll
      for (int j = 0; j < kChunk; ++j) dz[k][j] = (dz[k][j] - mean - normed[k][j] * dot) * rstd;
      if constexpr (kGated) {
        float other[kChunk];
        if (a.dh) {
          load_chunk(a.dh + at, column, width, other);
#pragma unroll
          for (int j = 0; j < kChunk; ++j) dz[k][j] += other[j];
        }
        load_chunk(a.gate.template at<T>(run), column, width, other);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) other[j] *= dz[k][j];
        store_chunk(a.dbranch + at, column, width, other);
        load_chunk(a.branch + at, column, width, other);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) other[j] *= dz[k][j];
        if constexpr (kPerToken) {
          store_chunk(a.dgate + at, column, width, other);
        } else {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) sum_branch[k][j] += other[j];
        }
      }
      store_chunk(a.dx + at, column, width, dz[k]);
    }
  }
  if (kPerToken && kGated) return;
  constexpr int kSums = kGated ? 3 : 2;
  float* partial = a.partial + block * kSums * width;
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int column = (threadIdx.x + k * blockDim.x) * kChunk;
    store_chunk(partial, column, width, sum[k]);
    store_chunk(partial + width, column, width, sum_normed[k]);
    if constexpr (kGated) store_chunk(partial + 2 * width, column, width, sum_branch[k]);
  }
}

inline int64_t chunks_a_backward_thread(int64_t width) { return ceil_div(width, kChunk) <= 128 ? 1 : 2; }

inline int64_t backward_threads(int64_t width) {
  return ceil_div(ceil_div(width, kChunk), chunks_a_backward_thread(width) * 32) * 32;
}

// Blocks and partial sums of a backward; `walk` and `parts` are set in a.
template <class T>
int64_t plan_backward(BackwardRows<T>& a) {
  const bool per_token = a.shape.length == 1;
  a.walk = walk_rows(a.shape.rows, per_token ? a.shape.rows : a.shape.length, backward_threads(a.shape.width));
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
  kernel<<<blocks, static_cast<unsigned>(backward_threads(a.shape.width)), 0, stream>>>(a);
  check_launch();
}

}  // namespace vdiff
