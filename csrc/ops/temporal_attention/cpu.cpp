#include "cpu/attention/tensor.h"
#include "cpu/output_memory.h"
#include "ops/temporal_attention/cpu_kernel.h"

namespace {

using vdiff::arithmetic;
using vdiff::arithmetic_bytes;
using vdiff::can_stream;
using vdiff::DType;
using vdiff::MaybeTensor;
using vdiff::ScalarType;
using vdiff::TemporalAttention;
using vdiff::Tensor;
using vdiff::thread_scratch;
using vdiff::Tokens;

// Bytes of the matrices of one buffer, so that two buffers and the outputs fit a small L2 cache. With AVX-512, 64 KiB
// to 256 KiB were equally fast; with AVX2, less than 128 KiB was slower, and so was splitting the heads of a position
// where they fit 256 KiB (1.15 times the time at T = 32).
constexpr int64_t kItemBytes = 128 * 1024, kHeadBytes = 256 * 1024;
// Contiguous bytes of one frame in an item: a page or two.
constexpr int64_t kRunBytes = 8 * 1024;
// Ranges of items in the backward, each with its own sums: a fixed number, so that the result does not depend on the
// number of threads.
constexpr int64_t kRanges = 32;

struct Options {
  const MaybeTensor &bias, &mask, &q_weight, &k_weight, &cos, &sin;
  bool causal;
  double scale, eps;
};

Tokens tokens(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

// Part i (q, k or v) of packed (B, T, S, 3, heads, d).
Tokens part(const Tensor& x, int64_t i, int64_t element) {
  char* data = static_cast<char*>(x.data_ptr()) + i * x.stride(3) * element;
  return {data, x.stride(0), x.stride(1), x.stride(2), x.stride(4)};
}

int64_t element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

void choose_blocks(TemporalAttention& a, DType dtype, bool backward) {
  const int64_t width = (a.head_dim + 15) / 16 * 16;
  const int64_t matrices = backward ? 4 : 3;
  const int64_t pair = std::max<int64_t>(1, matrices * a.frames * width * arithmetic_bytes(dtype));
  const int64_t heads = std::max<int64_t>(1, std::min(a.heads, kHeadBytes / pair));
  const int64_t groups = (a.heads + heads - 1) / heads;
  a.block_heads = (a.heads + groups - 1) / groups;
  const int64_t run = a.heads * a.head_dim * element_bytes(dtype);
  const int64_t fitting = std::min(kItemBytes / (pair * a.heads), (kRunBytes + run - 1) / run);
  a.block_positions = groups > 1 ? 1 : std::max<int64_t>(1, std::min(a.positions, fitting));
}

// The bias and the causal mask as one table that is added to the logits: [heads or 1][u][t], padded in t.
template <class A>
Tensor make_table(const Tensor& like, const Options& o, int64_t heads, int64_t frames, ScalarType dtype) {
  const int64_t rows = vdiff::padded_frames(frames), count = o.bias ? heads : 1;
  Tensor table = torch::stable::new_zeros(like, {count, frames, rows}, dtype);
  A* to = vdiff::mutable_data<A>(table);
  const A* bias = vdiff::data<A>(o.bias);
  for (int64_t h = 0; h < count; ++h) {
    for (int64_t u = 0; u < frames; ++u) {
      for (int64_t t = 0; t < frames; ++t) {
        const bool masked = o.causal && u > t;
        to[(h * frames + u) * rows + t] = masked ? -INFINITY : bias ? bias[(h * frames + t) * frames + u] : A(0);
      }
    }
  }
  return table;
}

MaybeTensor table_of(const Tensor& like, const Options& o, int64_t heads, int64_t frames, DType dtype) {
  if (!o.bias && !o.causal) return std::nullopt;
  return dtype == DType::f64 ? make_table<double>(like, o, heads, frames, arithmetic(dtype))
                             : make_table<float>(like, o, heads, frames, arithmetic(dtype));
}

const void* pointer(const MaybeTensor& t) { return t.has_value() ? t->data_ptr() : nullptr; }

void set_options(TemporalAttention& a, const Options& o, const MaybeTensor& table) {
  a.table = pointer(table);
  a.table_head = o.bias ? a.frames * vdiff::padded_frames(a.frames) : 0;
  a.mask = static_cast<const uint8_t*>(pointer(o.mask));
  a.q_weight = pointer(o.q_weight);
  a.k_weight = pointer(o.k_weight);
  a.cos = pointer(o.cos);
  a.sin = pointer(o.sin);
  a.scale = o.scale;
  a.eps = o.eps;
}

void set_sizes(TemporalAttention& a, const Tensor& q) {
  a.batch = q.size(0), a.frames = q.size(1), a.positions = q.size(2);
  a.heads = q.size(q.dim() - 2), a.head_dim = q.size(q.dim() - 1);
}

Tensor contiguous_output(const Tensor& x) {
  return vdiff::new_output(x, std::vector<int64_t>(x.sizes().begin(), x.sizes().end()));
}

Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& bias, const MaybeTensor& mask,
               const MaybeTensor& q_weight, const MaybeTensor& k_weight, const MaybeTensor& cos, const MaybeTensor& sin,
               bool causal, double scale, double eps) {
  Tensor out = contiguous_output(q);
  if (out.numel() == 0) return out;
  const DType dtype = vdiff::dtype_of(q);
  const Options options{bias, mask, q_weight, k_weight, cos, sin, causal, scale, eps};
  TemporalAttention a{};
  set_sizes(a, q);
  const MaybeTensor table = table_of(q, options, a.heads, a.frames, dtype);
  set_options(a, options, table);
  a.q = tokens(q), a.k = tokens(k), a.v = tokens(v), a.out = tokens(out);
  a.streamed = can_stream(out);
  choose_blocks(a, dtype, false);
  const auto kernel = VDIFF_KERNEL(temporal_attention_forward);
  const int64_t bytes = vdiff::scratch_bytes(a, false, arithmetic_bytes(dtype)), count = vdiff::items(a);
  torch::stable::parallel_for(0, count, 1 + vdiff::kGrain * count / out.numel(),
                              [&](int64_t begin, int64_t end) { kernel(dtype, a, thread_scratch(bytes), begin, end); });
  return out;
}

// to[i] = the sum of the ranges' element i, in the order of the ranges.
template <class A>
void reduce(const A* partial, int64_t ranges, int64_t stride, int64_t count, A* to) {
  for (int64_t i = 0; i < count; ++i) {
    A total = 0;
    for (int64_t r = 0; r < ranges; ++r) total += partial[r * stride + i];
    to[i] = total;
  }
}

struct ParameterGradients {
  Tensor bias, q_weight, k_weight;
};

template <class A>
ParameterGradients run_backward(TemporalAttention a, const Tensor& like, DType dtype, const Options& o) {
  const int64_t rows = vdiff::padded_frames(a.frames), d = a.head_dim;
  const int64_t table = a.wants_bias_gradient ? a.heads * a.frames * rows : 0, stride = table + 2 * d;
  const int64_t bytes = vdiff::scratch_bytes(a, true, arithmetic_bytes(dtype)), count = vdiff::items(a);
  const int64_t ranges = std::min(count, kRanges);
  const Tensor partial = torch::stable::new_zeros(like, {ranges, stride}, arithmetic(dtype));
  const auto kernel = VDIFF_KERNEL(temporal_attention_backward);
  torch::stable::parallel_for(0, ranges, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      TemporalAttention range = a;
      range.partial = vdiff::mutable_data<A>(partial) + r * stride;
      kernel(dtype, range, thread_scratch(bytes), r * count / ranges, (r + 1) * count / ranges);
    }
  });
  const A* sums = vdiff::data<A>(partial);
  ParameterGradients g{
      torch::stable::new_zeros(like, o.bias ? o.bias->sizes().vec() : std::vector<int64_t>{0}, arithmetic(dtype)),
      torch::stable::new_zeros(like, {o.q_weight ? d : 0}, arithmetic(dtype)),
      torch::stable::new_zeros(like, {o.k_weight ? d : 0}, arithmetic(dtype))};
  if (o.q_weight) reduce(sums + table, ranges, stride, d, vdiff::mutable_data<A>(g.q_weight));
  if (o.k_weight) reduce(sums + table + d, ranges, stride, d, vdiff::mutable_data<A>(g.k_weight));
  if (a.wants_bias_gradient) {
    std::vector<A> padded(table);
    reduce(sums, ranges, stride, table, padded.data());
    A* to = vdiff::mutable_data<A>(g.bias);
    for (int64_t i = 0; i < a.heads * a.frames * a.frames; ++i) {
      const int64_t u = i % a.frames, t = i / a.frames % a.frames, h = i / a.frames / a.frames;
      to[i] = padded[(h * a.frames + u) * rows + t];
    }
  }
  return g;
}

ParameterGradients backward_into(TemporalAttention& a, const Tensor& like, const Tensor& dout, const Options& o) {
  const DType dtype = vdiff::dtype_of(like);
  const MaybeTensor table = table_of(like, o, a.heads, a.frames, dtype);
  set_options(a, o, table);
  a.dout = tokens(dout);
  a.wants_bias_gradient = o.bias.has_value();
  choose_blocks(a, dtype, true);
  return dtype == DType::f64 ? run_backward<double>(a, like, dtype, o) : run_backward<float>(a, like, dtype, o);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& bias,
    const MaybeTensor& mask, const MaybeTensor& q_weight, const MaybeTensor& k_weight, const MaybeTensor& cos,
    const MaybeTensor& sin, bool causal, double scale, double eps) {
  Tensor dq = contiguous_output(q), dk = contiguous_output(q), dv = contiguous_output(q);
  const Options options{bias, mask, q_weight, k_weight, cos, sin, causal, scale, eps};
  TemporalAttention a{};
  set_sizes(a, q);
  a.q = tokens(q), a.k = tokens(k), a.v = tokens(v);
  a.dq = tokens(dq), a.dk = tokens(dk), a.dv = tokens(dv);
  a.streamed = can_stream(dq) && can_stream(dk) && can_stream(dv);
  ParameterGradients g = backward_into(a, q, dout, options);
  return {dq, dk, dv, g.bias, g.q_weight, g.k_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_packed(const Tensor& dout, const Tensor& qkv,
                                                           const MaybeTensor& bias, const MaybeTensor& mask,
                                                           const MaybeTensor& q_weight, const MaybeTensor& k_weight,
                                                           const MaybeTensor& cos, const MaybeTensor& sin, bool causal,
                                                           double scale, double eps) {
  Tensor dqkv = contiguous_output(qkv);
  const Options options{bias, mask, q_weight, k_weight, cos, sin, causal, scale, eps};
  TemporalAttention a{};
  set_sizes(a, qkv);
  const int64_t element = element_bytes(vdiff::dtype_of(qkv));
  a.q = part(qkv, 0, element), a.k = part(qkv, 1, element), a.v = part(qkv, 2, element);
  a.dq = part(dqkv, 0, element), a.dk = part(dqkv, 1, element), a.dv = part(dqkv, 2, element);
  a.streamed = can_stream(dqkv);
  ParameterGradients g = backward_into(a, qkv, dout, options);
  return {dqkv, g.bias, g.q_weight, g.k_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("temporal_attention_forward", TORCH_BOX(&forward));
  m.impl("temporal_attention_backward", TORCH_BOX(&backward));
  m.impl("temporal_attention_backward_packed", TORCH_BOX(&backward_packed));
}
