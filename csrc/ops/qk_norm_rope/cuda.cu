#include "common/tokens.h"
#include "cuda/column_sums.cuh"
#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/store.cuh"

namespace {

using vdiff::MaybeTensor;
using vdiff::Tensor;
using vdiff::Tokens;

// A thread holds kPack neighbouring elements of a row, so the lanes that share a row are d / kPack of them, padded to a
// power of two for the shuffles.
constexpr int kThreads = 256, kPack = 8;
// Blocks of a backward for each of q and k: more of them mean more partial sums of the weights to write. Where this
// many would have a thread add more than kMostSummed rows one by one there are more all the same: it would cost
// accuracy.
constexpr int64_t kMaxBlocks = 1024, kMostSummed = 32;

struct Rows {
  Tokens x, dy, y;
  const float *weight, *cos, *sin;
  float* partial;  // backward: [blocks][d]
  int64_t frames, positions, rows;
  int heads, d;
  float eps;
};

template <class T>
struct alignas(16) Pack {
  T v[kPack];
};
template <>
struct alignas(16) Pack<float> {
  float v[kPack];
};

// Every stride is a multiple of 8 elements where this is chosen, so rows begin at whole packs.
template <class T>
__device__ __forceinline__ void read(const T* p, bool aligned, float (&x)[kPack]) {
  if (aligned) {
    const auto pack = *reinterpret_cast<const Pack<T>*>(p);
#pragma unroll
    for (int i = 0; i < kPack; ++i) x[i] = vdiff::to_float(pack.v[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) x[i] = vdiff::to_float(p[i]);
}

template <class T>
__device__ __forceinline__ void write(T* p, bool aligned, const float (&x)[kPack]) {
  if (aligned) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kPack; ++i) pack.v[i] = vdiff::from_float<T>(x[i]);
    vdiff::store_whole(p, pack);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) p[i] = vdiff::from_float<T>(x[i]);
}

template <int kShare>
__device__ __forceinline__ float sum_shared(float x) {
#pragma unroll
  for (int step = kShare / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// Turns pairs by the angles of the position; `sign` = -1 turns back.
__device__ __forceinline__ void rotate(const Rows& r, int64_t position, int c, float sign, float (&x)[kPack]) {
  const float *cos = r.cos + position * (r.d / 2) + c / 2, *sin = r.sin + position * (r.d / 2) + c / 2;
#pragma unroll
  for (int i = 0; i < kPack / 2; ++i) {
    const float even = x[2 * i], odd = x[2 * i + 1], co = cos[i], si = sign * sin[i];
    x[2 * i] = even * co - odd * si;
    x[2 * i + 1] = even * si + odd * co;
  }
}

struct Place {
  int64_t b, t, s;
  int h;
};

__device__ __forceinline__ Place locate(const Rows& r, int64_t row) {
  const int64_t token = row / r.heads, frame = token / r.positions, b = frame / r.frames;
  return {b, frame - b * r.frames, token - frame * r.positions, static_cast<int>(row - token * r.heads)};
}
__device__ __forceinline__ int64_t offset(const Tokens& x, const Place& p) {
  return p.b * x.b + p.t * x.t + p.s * x.s + p.h * x.h;
}

template <class T, int kShare>
__device__ __forceinline__ float inverse_rms(const float (&x)[kPack], const Rows& r) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPack; ++i) squares += x[i] * x[i];
  return 1.0f / sqrtf(sum_shared<kShare>(squares) / static_cast<float>(r.d) + r.eps);
}

// Rows of q, or from block q_blocks on of k.
template <class T, int kShare>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Rows q, const __grid_constant__ Rows k, int64_t q_blocks, bool aligned) {
  const bool second = blockIdx.x >= q_blocks;
  const Rows& r = second ? k : q;
  const int64_t block = second ? blockIdx.x - q_blocks : blockIdx.x;
  const int64_t row = block * (kThreads / kShare) + threadIdx.x / kShare;
  const int c = threadIdx.x % kShare * kPack;
  const bool inside = row < r.rows && c < r.d;
  const Place at = locate(r, row < r.rows ? row : 0);
  float x[kPack] = {};
  if (inside) read(static_cast<const T*>(r.x.data) + offset(r.x, at) + c, aligned, x);
  if (r.weight) {
    const float scale = inverse_rms<T, kShare>(x, r);
#pragma unroll
    for (int i = 0; i < kPack; ++i) x[i] *= inside ? scale * r.weight[c + i] : 0.0f;
  }
  if (!inside) return;
  if (r.cos) rotate(r, at.s, c, 1.0f, x);
  write(static_cast<T*>(r.y.data) + offset(r.y, at) + c, aligned, x);
}

// dx = rstd * (g w - n mean(g w n)) with n = x rstd and g = dy turned back.
template <class T, int kShare>
__device__ __forceinline__ void backward_row(const Rows& r, int64_t row, int c, bool aligned, float (&dweight)[kPack]) {
  const bool inside = row < r.rows && c < r.d;
  const Place at = locate(r, row < r.rows ? row : 0);
  float g[kPack] = {}, x[kPack] = {};
  if (inside) read(static_cast<const T*>(r.dy.data) + offset(r.dy, at) + c, aligned, g);
  if (inside && r.cos) rotate(r, at.s, c, -1.0f, g);
  if (r.weight) {
    if (inside) read(static_cast<const T*>(r.x.data) + offset(r.x, at) + c, aligned, x);
    // 1 / 0 outside where eps is 0, and all lanes need the shuffles.
    const float rstd = inverse_rms<T, kShare>(x, r), scale = inside ? rstd : 0.0f;
    float along = 0;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      x[i] *= scale;
      dweight[i] += g[i] * x[i];
      g[i] *= inside ? r.weight[c + i] : 0.0f;
      along += g[i] * x[i];
    }
    along = sum_shared<kShare>(along) / static_cast<float>(r.d);
#pragma unroll
    for (int i = 0; i < kPack; ++i) g[i] = scale * (g[i] - x[i] * along);
  }
  if (inside) write(static_cast<T*>(r.y.data) + offset(r.y, at) + c, aligned, g);
}

template <class T, int kShare>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Rows q, const __grid_constant__ Rows k, int64_t q_blocks, bool aligned) {
  constexpr int kRows = kThreads / kShare, kWarps = kThreads / 32;
  __shared__ float sums[kWarps][kShare * kPack];
  const bool second = blockIdx.x >= q_blocks;
  const Rows& r = second ? k : q;
  const int64_t block = second ? blockIdx.x - q_blocks : blockIdx.x, blocks = second ? gridDim.x - q_blocks : q_blocks;
  const int mine = threadIdx.x / kShare, c = threadIdx.x % kShare * kPack;
  float dweight[kPack] = {};
  // All lanes of a block stay in the loop together: the shuffles need them.
  for (int64_t first = block * kRows; first < r.rows; first += blocks * kRows) {
    backward_row<T, kShare>(r, first + mine, c, aligned, dweight);
  }
  if (!r.weight) return;
  // A tree over the rows of a warp: floats added one by one would lose as many roundings as there are rows.
#pragma unroll
  for (int step = kShare; step < 32; step *= 2) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) dweight[i] += __shfl_xor_sync(0xffffffffu, dweight[i], step);
  }
  if (threadIdx.x % 32 < kShare) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) sums[threadIdx.x / 32][c + i] = dweight[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < r.d; i += kThreads) {
    double total = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += sums[warp][i];
    r.partial[block * r.d + i] = static_cast<float>(total);
  }
}

Tokens tokens(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

bool is_aligned(const Tokens& x) {
  const int64_t strides = x.b | x.t | x.s | x.h;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && strides % kPack == 0;
}

Rows make_rows(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& cos, const MaybeTensor& sin, double eps) {
  Rows r{};
  r.weight = vdiff::data<float>(weight), r.cos = vdiff::data<float>(cos), r.sin = vdiff::data<float>(sin);
  r.eps = static_cast<float>(eps);
  r.frames = x.size(1), r.positions = x.size(2), r.heads = static_cast<int>(x.size(3)),
  r.d = static_cast<int>(x.size(4));
  r.rows = x.numel() == 0 ? 0 : x.size(0) * r.frames * r.positions * r.heads;
  return r;
}

Tensor output_like(const Tensor& x) {
  return torch::stable::new_empty(x, std::vector<int64_t>(x.sizes().begin(), x.sizes().end()));
}

// Runs the body with kShare bound to the lanes that share a row of d elements.
#define VDIFF_SHARE_DISPATCH(d, kShare, ...) \
  if (d <= 8) {                              \
    constexpr int kShare = 1;                \
    __VA_ARGS__;                             \
  } else if (d <= 16) {                      \
    constexpr int kShare = 2;                \
    __VA_ARGS__;                             \
  } else if (d <= 32) {                      \
    constexpr int kShare = 4;                \
    __VA_ARGS__;                             \
  } else if (d <= 64) {                      \
    constexpr int kShare = 8;                \
    __VA_ARGS__;                             \
  } else {                                   \
    constexpr int kShare = 16;               \
    __VA_ARGS__;                             \
  }

void run_forward(const Tensor& q, const Tensor& k, Rows& rq, Rows& rk) {
  if (rq.rows + rk.rows == 0) return;
  const bool aligned = is_aligned(rq.x) && is_aligned(rk.x) && is_aligned(rq.y) && is_aligned(rk.y);
  VDIFF_CUDA_DISPATCH(q.scalar_type(), T, {
    VDIFF_SHARE_DISPATCH(rq.d, kShare, {
      const int64_t q_blocks = vdiff::ceil_div(rq.rows, kThreads / kShare);
      const int64_t blocks = q_blocks + vdiff::ceil_div(rk.rows, kThreads / kShare);
      forward_kernel<T, kShare><<<blocks, kThreads, 0, vdiff::current_stream(q)>>>(rq, rk, q_blocks, aligned);
    });
  });
  vdiff::check_launch();
}

void run_into(const Tensor& q, const Tensor& k, const Tensor& q_out, const Tensor& k_out, const MaybeTensor& q_weight,
              const MaybeTensor& k_weight, const MaybeTensor& cos, const MaybeTensor& sin, double eps) {
  Rows rq = make_rows(q, q_weight, cos, sin, eps), rk = make_rows(k, k_weight, cos, sin, eps);
  rq.x = tokens(q), rk.x = tokens(k), rq.y = tokens(q_out), rk.y = tokens(k_out);
  run_forward(q, k, rq, rk);
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const MaybeTensor& q_weight,
                                   const MaybeTensor& k_weight, const MaybeTensor& cos, const MaybeTensor& sin,
                                   double eps) {
  Tensor q_out = output_like(q), k_out = output_like(k);
  run_into(q, k, q_out, k_out, q_weight, k_weight, cos, sin, eps);
  return {q_out, k_out};
}

void inplace(Tensor q, Tensor k, const MaybeTensor& q_weight, const MaybeTensor& k_weight, const MaybeTensor& cos,
             const MaybeTensor& sin, double eps) {
  run_into(q, k, q, k, q_weight, k_weight, cos, sin, eps);
}

// `turns`: blocks that would have one row for each thread.
int64_t backward_blocks(int64_t turns) {
  return std::max(std::min(kMaxBlocks, turns), vdiff::ceil_div(turns, kMostSummed));
}

void sum_partials(const Tensor& partial, const Tensor& to, cudaStream_t stream) {
  vdiff::sum_parts(vdiff::data<float>(partial), {vdiff::mutable_data<float>(to)}, 1, partial.size(0), to.numel(),
                   stream);
}

Tensor weight_like(const MaybeTensor& weight, const Tensor& x) {
  return torch::stable::new_empty(x, std::vector<int64_t>{weight.has_value() ? weight->numel() : 0},
                                  vdiff::ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dq, const Tensor& dk, const MaybeTensor& q,
                                                    const MaybeTensor& k, const MaybeTensor& q_weight,
                                                    const MaybeTensor& k_weight, const MaybeTensor& cos,
                                                    const MaybeTensor& sin, double eps) {
  Tensor q_out = output_like(dq), k_out = output_like(dk);
  Tensor dq_weight = weight_like(q_weight, dq), dk_weight = weight_like(k_weight, dk);
  Rows rq = make_rows(dq, q_weight, cos, sin, eps), rk = make_rows(dk, k_weight, cos, sin, eps);
  if (rq.rows + rk.rows == 0) {
    return {q_out, k_out, torch::stable::zero_(dq_weight), torch::stable::zero_(dk_weight)};
  }
  rq.dy = tokens(dq), rk.dy = tokens(dk), rq.y = tokens(q_out), rk.y = tokens(k_out);
  if (q.has_value()) rq.x = tokens(*q), rk.x = tokens(*k);
  const bool aligned = is_aligned(rq.dy) && is_aligned(rk.dy) && is_aligned(rq.x) && is_aligned(rk.x) &&
                       is_aligned(rq.y) && is_aligned(rk.y);
  const cudaStream_t stream = vdiff::current_stream(dq);
  VDIFF_CUDA_DISPATCH(dq.scalar_type(), T, {
    VDIFF_SHARE_DISPATCH(rq.d, kShare, {
      const int64_t q_blocks = backward_blocks(vdiff::ceil_div(rq.rows, kThreads / kShare));
      const int64_t k_blocks = backward_blocks(vdiff::ceil_div(rk.rows, kThreads / kShare));
      const auto like = [&](int64_t n, const Tensor& w) {
        return torch::stable::new_empty(dq, std::vector<int64_t>{n, w.numel()}, vdiff::ScalarType::Float);
      };
      const Tensor q_partial = like(q_blocks, dq_weight), k_partial = like(k_blocks, dk_weight);
      rq.partial = vdiff::mutable_data<float>(q_partial), rk.partial = vdiff::mutable_data<float>(k_partial);
      backward_kernel<T, kShare><<<q_blocks + k_blocks, kThreads, 0, stream>>>(rq, rk, q_blocks, aligned);
      sum_partials(q_partial, dq_weight, stream);
      sum_partials(k_partial, dk_weight, stream);
    });
  });
  vdiff::check_launch();
  return {q_out, k_out, dq_weight, dk_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("qk_norm_rope_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("qk_norm_rope_inplace", TORCH_BOX(&vdiff::OnDevice<&inplace>::call));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
