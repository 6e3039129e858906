// y = f(z), z = x + bias, over rows, and its backward with the bias's gradient: a thread takes a chunk of a row's
// columns, in the backward of all rows that it walks over.
//
// `Op` has kParts, the parts of a row that one output is made of; value(z), z[part]; and gradient(g, z), which turns z
// into dz.
#pragma once

#include "cuda/column_sums.cuh"
#include "cuda/rows.cuh"

namespace vdiff::biased_rows {

constexpr int kThreads = 256;

struct Shape {
  int64_t rows, width;  // width: of a part, and of the output
};

// z of one chunk, [part][column].
template <class Op, class T>
__device__ __forceinline__ void load_parts(const T* row, const float* bias, int64_t column, int64_t width,
                                           float (&z)[Op::kParts][kChunk]) {
#pragma unroll
  for (int part = 0; part < Op::kParts; ++part) {
    load_chunk(row + part * width, column, width, z[part]);
    if (!bias) continue;
    float b[kChunk];
    load_chunk(bias + part * width, column, width, b);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) z[part][j] += b[j];
  }
}

template <class Op, class T>
static __global__ void __launch_bounds__(kThreads) forward_kernel(const T* x, const float* bias, T* y, Shape s) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, chunks = (s.width + kChunk - 1) / kChunk;
  const int64_t row = i / chunks, column = (i - row * chunks) * kChunk;
  if (row >= s.rows) return;
  float z[Op::kParts][kChunk], out[kChunk];
  load_parts<Op>(x + row * Op::kParts * s.width, bias, column, s.width, z);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    float one[Op::kParts];
#pragma unroll
    for (int part = 0; part < Op::kParts; ++part) one[part] = z[part][j];
    out[j] = Op::value(one);
  }
  store_chunk(y + row * s.width, column, s.width, out);
}

// dx, and where `partial` is given its sums over the rows of each block.
template <class Op, class T>
static __global__ void __launch_bounds__(ColumnBlocks::kThreads)
    backward_kernel(const T* dy, const T* x, const float* bias, T* dx, float* partial, Shape s, ColumnBlocks blocks) {
  constexpr int kParts = Op::kParts;
  const int64_t part = blocks.part(), column = blocks.column(), first = part * blocks.rows;
  const int64_t last = first + blocks.rows < s.rows ? first + blocks.rows : s.rows;
  float sum[kParts][kChunk] = {};
  for (int64_t row = first + threadIdx.y; row < last && column < s.width; row += blockDim.y) {
    float z[kParts][kChunk], g[kChunk];
    load_parts<Op>(x + row * kParts * s.width, bias, column, s.width, z);
    load_chunk(dy + row * s.width, column, s.width, g);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      float one[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part) one[part] = z[part][j];
      Op::gradient(g[j], one);
#pragma unroll
      for (int part = 0; part < kParts; ++part) z[part][j] = one[part], sum[part][j] += one[part];
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      store_chunk(dx + (row * kParts + part) * s.width, column, s.width, z[part]);
    }
  }
  if (!partial) return;
#pragma unroll
  for (int k = 0; k < kParts; ++k) {
    sum_down<ColumnBlocks::kThreads>(sum[k]);
    if (threadIdx.y == 0 && column < s.width) {
      store_chunk(partial + (part * kParts + k) * s.width, column, s.width, sum[k]);
    }
  }
}

template <class Op>
Tensor forward(const Tensor& x, const MaybeTensor& bias) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() /= Op::kParts;
  Tensor y = torch::stable::new_empty(x, shape);
  if (y.numel() == 0) return y;
  const int64_t width = shape.back(), rows = y.numel() / width, threads = rows * ceil_div(width, kChunk);
  const cudaStream_t stream = current_stream(x);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    forward_kernel<Op, T><<<ceil_div(threads, kThreads), kThreads, 0, stream>>>(data<T>(x), data<float>(bias),
                                                                                mutable_data<T>(y), Shape{rows, width});
  });
  check_launch();
  return y;
}

template <class Op>
std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const MaybeTensor& bias) {
  Tensor dx = torch::stable::empty_like(x);
  Tensor dbias =
      bias.has_value() ? torch::stable::empty_like(*bias) : torch::stable::new_empty(x, std::vector<int64_t>{0});
  if (x.numel() == 0) return {dx, torch::stable::zero_(dbias)};
  const int64_t in = x.size(x.dim() - 1), width = in / Op::kParts, rows = x.numel() / in;
  const ColumnBlocks blocks = column_blocks(rows, rows, width);
  const Tensor partial =
      torch::stable::new_empty(x, std::vector<int64_t>{bias.has_value() ? blocks.parts : 0, in}, ScalarType::Float);
  float* sums = bias.has_value() ? mutable_data<float>(partial) : nullptr;
  const cudaStream_t stream = current_stream(x);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    backward_kernel<Op, T><<<blocks.parts * blocks.across, blocks.threads, 0, stream>>>(
        data<T>(dy), data<T>(x), data<float>(bias), mutable_data<T>(dx), sums, Shape{rows, width}, blocks);
  });
  check_launch();
  if (sums) sum_parts(sums, {mutable_data<float>(dbias)}, 1, blocks.parts, in, stream);
  return {dx, dbias};
}

}  // namespace vdiff::biased_rows
