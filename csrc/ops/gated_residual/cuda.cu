#include "cuda/column_sums.cuh"
#include "cuda/rows.cuh"

namespace {

using vdiff::ColumnBlocks;
using vdiff::DeviceVectors;
using vdiff::kChunk;
using vdiff::Tensor;
constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* residual, const T* branch, DeviceVectors gates,
                                                           T* y, int64_t rows, int64_t width, int64_t length) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, chunks = (width + kChunk - 1) / kChunk;
  const int64_t row = i / chunks, column = (i - row * chunks) * kChunk, at = row * width;
  if (row >= rows) return;
  float x[kChunk], b[kChunk], gate[kChunk];
  vdiff::load_chunk(residual + at, column, width, x);
  vdiff::load_chunk(branch + at, column, width, b);
  vdiff::load_chunk(gates.at<T>(row / length), column, width, gate);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) x[j] = fmaf(gate[j], b[j], x[j]);
  vdiff::store_chunk(y + at, column, width, x);
}

// dbranch, and the sums of dy * branch over the rows of each block, which are of one run.
template <class T>
__global__ void __launch_bounds__(ColumnBlocks::kThreads)
    backward_kernel(const T* dy, const T* branch, DeviceVectors gates, T* dbranch, float* partial, int64_t width,
                    int64_t length, ColumnBlocks blocks) {
  const int64_t part = blocks.part(), column = blocks.column(), run = part / blocks.parts;
  const int64_t within = part % blocks.parts * blocks.rows;
  const int64_t end = within + blocks.rows < length ? within + blocks.rows : length;
  float gate[kChunk] = {}, sum[kChunk] = {};
  if (column < width) vdiff::load_chunk(gates.at<T>(run), column, width, gate);
  for (int64_t i = within + threadIdx.y; i < end && column < width; i += blockDim.y) {
    const int64_t row = run * length + i;
    float g[kChunk], b[kChunk];
    vdiff::load_chunk(dy + row * width, column, width, g);
    vdiff::load_chunk(branch + row * width, column, width, b);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) sum[j] = fmaf(g[j], b[j], sum[j]), g[j] *= gate[j];
    vdiff::store_chunk(dbranch + row * width, column, width, g);
  }
  vdiff::sum_down<ColumnBlocks::kThreads>(sum);
  if (threadIdx.y == 0 && column < width) vdiff::store_chunk(partial + part * width, column, width, sum);
}

Tensor forward(const Tensor& residual, const Tensor& branch, const Tensor& gate) {
  Tensor y = torch::stable::empty_like(residual);
  if (y.numel() == 0) return y;
  const int64_t rows = y.size(0) * y.size(1), width = y.size(2), threads = rows * vdiff::ceil_div(width, kChunk);
  VDIFF_CUDA_DISPATCH(y.scalar_type(), T, {
    forward_kernel<T><<<vdiff::ceil_div(threads, kThreads), kThreads, 0, vdiff::current_stream(y)>>>(
        vdiff::data<T>(residual), vdiff::data<T>(branch), vdiff::device_vectors(gate), vdiff::mutable_data<T>(y), rows,
        width, y.size(1) / gate.size(1));
  });
  vdiff::check_launch();
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& branch, const Tensor& gate) {
  Tensor dbranch = torch::stable::empty_like(branch);
  Tensor dgate = torch::stable::new_empty(branch, std::vector<int64_t>{gate.size(0), gate.size(1), gate.size(2)});
  if (dy.numel() == 0) return {dbranch, torch::stable::zero_(dgate)};
  const int64_t rows = dy.size(0) * dy.size(1), width = dy.size(2), length = dy.size(1) / gate.size(1);
  const int64_t runs = rows / length;
  const ColumnBlocks blocks = vdiff::column_blocks(rows, length, width);
  const Tensor partial =
      torch::stable::new_empty(dy, std::vector<int64_t>{runs * blocks.parts, width}, vdiff::ScalarType::Float);
  float* sums = vdiff::mutable_data<float>(partial);
  const cudaStream_t stream = vdiff::current_stream(dy);
  VDIFF_CUDA_DISPATCH(dy.scalar_type(), T, {
    backward_kernel<T><<<runs * blocks.parts * blocks.across, blocks.threads, 0, stream>>>(
        vdiff::data<T>(dy), vdiff::data<T>(branch), vdiff::device_vectors(gate), vdiff::mutable_data<T>(dbranch), sums,
        width, length, blocks);
    vdiff::check_launch();
    vdiff::sum_parts(sums, {vdiff::mutable_data<T>(dgate)}, runs, blocks.parts, width, stream);
  });
  return {dbranch, dgate};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("gated_residual_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("gated_residual_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
