#include <algorithm>

#include "cuda/column_sums.cuh"
#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "ops/temporal_attention/cuda_four_warps.h"
#include "ops/temporal_attention/cuda_one_warp.h"

namespace {

using vdiff::MaybeTensor;
using vdiff::ScalarType;
using vdiff::Tensor;
using vdiff::Tokens;
using vdiff::WarpProblem;

constexpr int kWarps = 4, kThreads = 32 * kWarps;
// Blocks of a backward that sums over positions, at most: each writes partial sums that are read again.
constexpr int64_t kMaxBlocks = 2048;
constexpr int kMaxOneWarpFrames = 32;

// The operations that cuda_tile.h is written with, for one lane of a warp on the device.
template <class T>
struct DeviceWarp {
  using F = float;
  using U = uint32_t;
  using B = bool;
  using I = int;
  using L = int64_t;
  static constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;

  static __device__ __forceinline__ int row() { return (threadIdx.x % 32) / 4; }
  static __device__ __forceinline__ int column() { return threadIdx.x % 4; }
  static __device__ __forceinline__ float splat(float x) { return x; }
  static __device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
  static __device__ __forceinline__ int64_t widen(int x) { return x; }
  static __device__ __forceinline__ float select(bool p, float a, float b) { return p ? a : b; }
  static __device__ __forceinline__ float max(float a, float b) { return fmaxf(a, b); }
  static __device__ __forceinline__ float exp(float x) { return __expf(x); }
  static __device__ __forceinline__ float inverse_sqrt(float x) { return rsqrtf(x); }
  static __device__ __forceinline__ float shuffle_xor(float x, int step) {
    return __shfl_xor_sync(0xffffffffu, x, step);
  }

  static __device__ __forceinline__ float low(uint32_t x) {
    if constexpr (kBf16) return __uint_as_float(x << 16);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(x)));
  }
  static __device__ __forceinline__ float high(uint32_t x) {
    if constexpr (kBf16) return __uint_as_float(x & 0xffff0000u);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(x >> 16)));
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    if constexpr (kBf16) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
      return *reinterpret_cast<const uint32_t*>(&pair);
    } else {
      const __half2 pair = __floats2half2_rn(low, high);
      return *reinterpret_cast<const uint32_t*>(&pair);
    }
  }

  static __device__ __forceinline__ void mma(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
    if constexpr (kBf16) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }
  static __device__ __forceinline__ uint32_t transpose(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
  }

  static __device__ __forceinline__ void load(const void* data, int64_t offset, bool inside, uint32_t (&pairs)[4]) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (inside) v = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(data) + offset);
    pairs[0] = v.x, pairs[1] = v.y, pairs[2] = v.z, pairs[3] = v.w;
  }
  static __device__ __forceinline__ void store(void* data, int64_t offset, bool inside, const uint32_t (&pairs)[4]) {
    if (!inside) return;
    // Written as PTX: the compiler splits a store of a uint4 into four.
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(static_cast<uint16_t*>(data) + offset), "r"(pairs[0]),
                 "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3]));
  }
  static __device__ __forceinline__ float read(const float* data, int index, bool inside) {
    return inside ? data[index] : 0.0f;
  }
  static __device__ __forceinline__ bool read_flag(const uint8_t* data, int index, bool inside) {
    return inside && data[index] != 0;
  }
  static __device__ __forceinline__ void write(float* data, int index, float value, bool inside) {
    if (inside) data[index] = value;
  }
  static __device__ __forceinline__ void add(float* sums, int first, float value) {
    sums[first + threadIdx.x % 32] += value;
  }
  static __device__ __forceinline__ void add_at(float* sums, int index, float value, bool inside) {
    if (inside) sums[index] += value;
  }
};

// The work of one head: an item is one position, or two that share a warp. `chunks` counts the blocks of a head.
struct WorkItems {
  int64_t per_sample, count, chunks;
};

template <class Attention>
__device__ __forceinline__ typename Attention::Tile tile_of(const WarpProblem& p, const WorkItems& items, int64_t index,
                                                            float* sums, int first) {
  const int64_t b = index / items.per_sample;
  return {p, b, (index - b * items.per_sample) * (p.packed() ? 2 : 1), blockIdx.x % p.heads, sums, first};
}

template <class T, int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 7 : 4)
    forward_kernel(const __grid_constant__ WarpProblem p, const __grid_constant__ WorkItems items) {
  using Attention = vdiff::WarpAttention<DeviceWarp<T>, kTiles>;
  const int64_t index = static_cast<int64_t>(blockIdx.x / p.heads) * kWarps + threadIdx.x / 32;
  if (index < items.count) Attention{tile_of<Attention>(p, items, index, nullptr, 0)}.forward();
}

// A block computes one position and head, each of its warps 16 frames.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    four_warp_forward_kernel(const __grid_constant__ WarpProblem p, const __grid_constant__ WorkItems items) {
  using Attention = vdiff::FourWarpAttention<DeviceWarp<T>>;
  __shared__ vdiff::SharedRows rows;
  const int first = threadIdx.x / 32 * 2;
  const Attention attention{tile_of<Attention>(p, items, blockIdx.x / p.heads, nullptr, first), rows};
  if (p.q_weight) {
    attention.write_norm_scales();
    __syncthreads();
  }
  attention.forward();
}

struct Partials {
  float *bias, *weights;  // [block][T][T] and [block][2][d], or nullptr

  __host__ __device__ bool any() const { return bias != nullptr || weights != nullptr; }
};

// The sums of this warp in shared memory, set to zero; nullptr if there is nothing to sum.
template <class Attention>
__device__ __forceinline__ float* warp_sums(float* shared, const Partials& partials) {
  if (!partials.any()) return nullptr;
  float* sums = shared + threadIdx.x / 32 * Attention::kSums;
  for (int i = threadIdx.x % 32; i < Attention::kSums; i += 32) sums[i] = 0.0f;
  __syncwarp();
  return sums;
}

// Adds the gradients of the norm weights over the warps, in the order of the warps.
template <class Attention>
__device__ __forceinline__ void write_weights(const WarpProblem& p, const float* shared, float* partial) {
  const int warps = blockDim.x / 32, weights = Attention::kSums - 2 * vdiff::kMaxWarpDim;
  for (int i = threadIdx.x; partial != nullptr && i < 2 * p.d; i += blockDim.x) {
    const int at = weights + (i < p.d ? i : vdiff::kMaxWarpDim + i - p.d);
    float total = 0.0f;
    for (int w = 0; w < warps; ++w) total += shared[w * Attention::kSums + at];
    partial[static_cast<int64_t>(blockIdx.x) * 2 * p.d + i] = total;
  }
}

// Without the minimum of blocks per SM ptxas takes 80 registers for one tile and spills 16 bytes; with it, 96 and none.
template <class T, int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 5 : 3)
    backward_kernel(const __grid_constant__ WarpProblem p, const __grid_constant__ WorkItems items, Partials partials) {
  using Attention = vdiff::WarpAttention<DeviceWarp<T>, kTiles>;
  extern __shared__ float shared[];
  float* sums = warp_sums<Attention>(shared, partials);
  const int64_t first = static_cast<int64_t>(blockIdx.x / p.heads) * kWarps + threadIdx.x / 32;
  for (int64_t index = first; index < items.count; index += items.chunks * kWarps) {
    Attention{tile_of<Attention>(p, items, index, sums, 0)}.backward();
  }
  if (!partials.any()) return;
  __syncthreads();
  const int square = p.frames * p.frames;
  for (int i = threadIdx.x; partials.bias != nullptr && i < square; i += kThreads) {
    float total = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      const float* sums = shared + w * Attention::kSums;
      total += vdiff::bias_sum(sums, Attention::kOctets, p.packed(), i / p.frames, i % p.frames);
    }
    partials.bias[static_cast<int64_t>(blockIdx.x) * square + i] = total;
  }
  write_weights<Attention>(p, shared, partials.weights);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    four_warp_backward_kernel(const __grid_constant__ WarpProblem p, const __grid_constant__ WorkItems items,
                              Partials partials) {
  using Attention = vdiff::FourWarpAttention<DeviceWarp<T>>;
  extern __shared__ float shared[];
  __shared__ vdiff::SharedRows rows;
  float* sums = warp_sums<Attention>(shared, partials);
  for (int64_t index = blockIdx.x / p.heads; index < items.count; index += items.chunks) {
    const Attention attention{tile_of<Attention>(p, items, index, sums, threadIdx.x / 32 * 2), rows};
    if (p.q_weight) {
      attention.write_norm_scales();
      __syncthreads();
    }
    attention.backward_queries();
    __syncthreads();
    attention.backward_keys();
    __syncthreads();
  }
  if (!partials.any()) return;
  const int square = p.frames * p.frames;
  for (int i = threadIdx.x; partials.bias != nullptr && i < square; i += blockDim.x) {
    const int t = i / p.frames, u = i % p.frames;
    const float* sums = shared + t / vdiff::kWarpRows * Attention::kSums;
    partials.bias[static_cast<int64_t>(blockIdx.x) * square + i] =
        vdiff::bias_sum(sums, vdiff::kKeyOctets, false, t % vdiff::kWarpRows, u);
  }
  write_weights<Attention>(p, shared, partials.weights);
}

struct Options {
  const MaybeTensor &bias, &mask, &q_weight, &k_weight, &cos, &sin;
  bool causal;
  double scale, eps;
};

std::vector<int64_t> shape_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }

// x if all its rows are aligned to 16 bytes, else a copy of it.
Tensor aligned_rows(const Tensor& x) {
  bool aligned = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) aligned = aligned && x.stride(i) % vdiff::kLaneColumns == 0;
  if (aligned) return x;
  Tensor copy = torch::stable::new_empty(x, shape_of(x));
  torch::stable::copy_(copy, x);
  return copy;
}

Tokens tokens(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

// Part i (q, k or v) of packed (B, T, S, 3, heads, d), two bytes per element.
Tokens part(const Tensor& x, int64_t i) {
  return {static_cast<char*>(x.data_ptr()) + i * x.stride(3) * 2, x.stride(0), x.stride(1), x.stride(2), x.stride(4)};
}

WarpProblem make_problem(const Tensor& q, const Options& o) {
  WarpProblem p{};
  p.bias = vdiff::data<float>(o.bias), p.mask = vdiff::data<uint8_t>(o.mask);
  p.q_weight = vdiff::data<float>(o.q_weight), p.k_weight = vdiff::data<float>(o.k_weight);
  p.cos = vdiff::data<float>(o.cos), p.sin = vdiff::data<float>(o.sin);
  p.scale = static_cast<float>(o.scale), p.eps = static_cast<float>(o.eps), p.causal = o.causal;
  p.batch = q.size(0), p.positions = q.size(2);
  p.frames = static_cast<int>(q.size(1));
  p.heads = static_cast<int>(q.size(q.dim() - 2)), p.d = static_cast<int>(q.size(q.dim() - 1));
  STD_TORCH_CHECK(p.frames <= vdiff::kMaxFrames && p.d <= vdiff::kMaxWarpDim, "more frames or a wider head than fit");
  return p;
}

bool four_warps(const WarpProblem& p) { return p.frames > kMaxOneWarpFrames; }

int block_threads(const WarpProblem& p) {
  return four_warps(p) ? 32 * static_cast<int>(vdiff::ceil_div(p.frames, vdiff::kWarpRows)) : kThreads;
}

WorkItems make_work_items(const WarpProblem& p) {
  const int64_t per_sample = vdiff::ceil_div(p.positions, p.frames <= 8 ? 2 : 1);
  return {per_sample, p.batch * per_sample, vdiff::ceil_div(p.batch * per_sample, four_warps(p) ? 1 : kWarps)};
}

template <class T>
void launch_forward(const WarpProblem& p, cudaStream_t stream) {
  const WorkItems items = make_work_items(p);
  const auto kernel = four_warps(p)    ? four_warp_forward_kernel<T>
                      : p.frames <= 16 ? forward_kernel<T, 1>
                                       : forward_kernel<T, 2>;
  kernel<<<items.chunks * p.heads, block_threads(p), 0, stream>>>(p, items);
}

template <class T>
void launch_backward(const WarpProblem& p, const WorkItems& items, const Partials& partials, cudaStream_t stream) {
  using Whole1 = vdiff::WarpAttention<DeviceWarp<T>, 1>;
  using Whole2 = vdiff::WarpAttention<DeviceWarp<T>, 2>;
  using FourWarps = vdiff::FourWarpAttention<DeviceWarp<T>>;
  const auto kernel = four_warps(p)    ? four_warp_backward_kernel<T>
                      : p.frames <= 16 ? backward_kernel<T, 1>
                                       : backward_kernel<T, 2>;
  const int sums = four_warps(p) ? FourWarps::kSums : p.frames <= 16 ? Whole1::kSums : Whole2::kSums;
  const int threads = block_threads(p);
  const int bytes = partials.any() ? threads / 32 * sums * static_cast<int>(sizeof(float)) : 0;
  kernel<<<items.chunks * p.heads, threads, bytes, stream>>>(p, items, partials);
}

// Runs the body with T as the element type of x.
#define VDIFF_HALF_DISPATCH(x, ...)                                                       \
  if (x.scalar_type() == ScalarType::BFloat16) {                                          \
    using T = __nv_bfloat16;                                                              \
    __VA_ARGS__;                                                                          \
  } else {                                                                                \
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Half, "expected bfloat16 or float16"); \
    using T = __half;                                                                     \
    __VA_ARGS__;                                                                          \
  }

Tensor forward(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const MaybeTensor& bias,
               const MaybeTensor& mask, const MaybeTensor& q_weight, const MaybeTensor& k_weight,
               const MaybeTensor& cos, const MaybeTensor& sin, bool causal, double scale, double eps) {
  Tensor out = torch::stable::new_empty(q_in, shape_of(q_in));
  if (out.numel() == 0) return out;
  const Tensor q = aligned_rows(q_in), k = aligned_rows(k_in), v = aligned_rows(v_in);
  WarpProblem p = make_problem(q, {bias, mask, q_weight, k_weight, cos, sin, causal, scale, eps});
  p.q = tokens(q), p.k = tokens(k), p.v = tokens(v), p.out = tokens(out);
  VDIFF_HALF_DISPATCH(q, launch_forward<T>(p, vdiff::current_stream(q)));
  vdiff::check_launch();
  return out;
}

struct ParameterGradients {
  Tensor bias, weights;
};

Tensor floats(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, shape, ScalarType::Float);
}

void sum_rows(const Tensor& partial, int64_t rows, const Tensor& to, cudaStream_t stream) {
  vdiff::sum_parts(vdiff::data<float>(partial), {vdiff::mutable_data<float>(to)}, 1, rows, to.numel(), stream);
}

// The gradients of the bias (heads, T, T) and of the two norm weights (2, d); empty where there is no such parameter.
ParameterGradients run_backward(const Tensor& like, const WarpProblem& p, const Options& o) {
  ParameterGradients g{floats(like, o.bias ? shape_of(*o.bias) : std::vector<int64_t>{0}),
                       floats(like, {o.q_weight ? 2 : 0, p.d})};
  WorkItems items = make_work_items(p);
  if (items.count * p.heads == 0) return {torch::stable::zero_(g.bias), torch::stable::zero_(g.weights)};
  if (o.bias || o.q_weight) items.chunks = std::min(items.chunks, std::max<int64_t>(1, kMaxBlocks / p.heads));
  const int64_t blocks = items.chunks * p.heads;
  const Tensor partial_bias = floats(like, {o.bias ? blocks : 0, p.frames, p.frames});
  const Tensor partial_weights = floats(like, {o.q_weight ? blocks : 0, 2, p.d});
  const cudaStream_t stream = vdiff::current_stream(like);
  const Partials partials{o.bias ? vdiff::mutable_data<float>(partial_bias) : nullptr,
                          o.q_weight ? vdiff::mutable_data<float>(partial_weights) : nullptr};
  VDIFF_HALF_DISPATCH(like, launch_backward<T>(p, items, partials, stream));
  // Block i belongs to head i % heads, so consecutive `heads` blocks are one row of the sum.
  if (o.bias) sum_rows(partial_bias, items.chunks, g.bias, stream);
  if (o.q_weight) sum_rows(partial_weights, blocks, g.weights, stream);
  vdiff::check_launch();
  return g;
}

Tensor weight_gradient(const ParameterGradients& g, int64_t which) {
  if (g.weights.numel() == 0) return floats(g.weights, {0});
  Tensor row = torch::stable::select(g.weights, 0, which), copy = floats(g.weights, {g.weights.size(1)});
  torch::stable::copy_(copy, row);
  return copy;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dout_in, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const MaybeTensor& bias,
    const MaybeTensor& mask, const MaybeTensor& q_weight, const MaybeTensor& k_weight, const MaybeTensor& cos,
    const MaybeTensor& sin, bool causal, double scale, double eps) {
  const Tensor dout = aligned_rows(dout_in), q = aligned_rows(q_in), k = aligned_rows(k_in), v = aligned_rows(v_in);
  Tensor dq = torch::stable::new_empty(q, shape_of(q)), dk = torch::stable::new_empty(q, shape_of(q));
  Tensor dv = torch::stable::new_empty(q, shape_of(q));
  const Options options{bias, mask, q_weight, k_weight, cos, sin, causal, scale, eps};
  WarpProblem p = make_problem(q, options);
  p.q = tokens(q), p.k = tokens(k), p.v = tokens(v), p.dout = tokens(dout);
  p.dq = tokens(dq), p.dk = tokens(dk), p.dv = tokens(dv);
  const ParameterGradients g = run_backward(q, p, options);
  return {dq, dk, dv, g.bias, weight_gradient(g, 0), weight_gradient(g, 1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_packed(const Tensor& dout_in, const Tensor& qkv_in,
                                                           const MaybeTensor& bias, const MaybeTensor& mask,
                                                           const MaybeTensor& q_weight, const MaybeTensor& k_weight,
                                                           const MaybeTensor& cos, const MaybeTensor& sin, bool causal,
                                                           double scale, double eps) {
  const Tensor dout = aligned_rows(dout_in), qkv = aligned_rows(qkv_in);
  Tensor dqkv = torch::stable::new_empty(qkv, shape_of(qkv));
  const Options options{bias, mask, q_weight, k_weight, cos, sin, causal, scale, eps};
  WarpProblem p = make_problem(qkv, options);
  p.q = part(qkv, 0), p.k = part(qkv, 1), p.v = part(qkv, 2), p.dout = tokens(dout);
  p.dq = part(dqkv, 0), p.dk = part(dqkv, 1), p.dv = part(dqkv, 2);
  const ParameterGradients g = run_backward(qkv, p, options);
  return {dqkv, g.bias, weight_gradient(g, 0), weight_gradient(g, 1)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("temporal_attention_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("temporal_attention_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
  m.impl("temporal_attention_backward_packed", TORCH_BOX(&vdiff::OnDevice<&backward_packed>::call));
}
