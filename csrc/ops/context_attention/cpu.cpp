#include "cpu/attention/tensor.h"
#include "cpu/output_memory.h"
#include "ops/context_attention/cpu_kernel.h"

namespace {

using vdiff::ContextAttention;
using vdiff::DType;
using vdiff::MaybeTensor;
using vdiff::Tensor;
using vdiff::Tokens;

// Ranges of tokens, each with its own sums: a fixed number, so that the result does not depend on the number of
// threads.
constexpr int64_t kRanges = 32;
// Bytes of one tensor's rows in a block: three tensors and the next block of each fit a small L2 cache.
constexpr int64_t kBlockBytes = 64 * 1024;
constexpr int64_t kMinBlock = 16, kMaxBlock = 64;

// Strides of (B, N, heads, d).
Tokens tokens(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), 0, x.stride(2)}; }
const void* pointer(const MaybeTensor& t) { return t.has_value() ? t->data_ptr() : nullptr; }
std::vector<int64_t> shape_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }

struct Call {
  ContextAttention args{};
  DType dtype;
  int64_t batch, ranges;  // ranges of tokens per sample

  Call(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& mask, const MaybeTensor& q_weight,
       double scale, double eps)
      : dtype(vdiff::dtype_of(q)), batch(q.size(0)) {
    args.q = tokens(q), args.k = tokens(k), args.v = tokens(v);
    args.mask = static_cast<const uint8_t*>(pointer(mask));
    args.q_weight = pointer(q_weight);
    args.scale = scale, args.eps = eps;
    args.tokens = q.size(1), args.keys = k.size(1), args.heads = q.size(2), args.head_dim = q.size(3);
    const int64_t row = args.heads * args.head_dim * vdiff::arithmetic_bytes(dtype);
    const int64_t block = std::max(kMinBlock, std::min(kMaxBlock, kBlockBytes / std::max<int64_t>(row, 1)));
    args.block = block / 16 * 16;
    const int64_t per_sample = std::max<int64_t>(1, kRanges / std::max<int64_t>(batch, 1));
    ranges = std::max<int64_t>(1, std::min(blocks(), per_sample));
  }

  int64_t blocks() const { return (args.tokens + args.block - 1) / args.block; }

  // run(range, sample, first token, end of tokens) for every range, in parallel.
  template <class Run>
  void every_range(Run run) const {
    torch::stable::parallel_for(0, batch * ranges, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = i % ranges, first = r * blocks() / ranges, last = (r + 1) * blocks() / ranges;
        run(i, i / ranges, first * args.block, std::min(args.tokens, last * args.block));
      }
    });
  }
};

Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& mask, const MaybeTensor& q_weight,
               double scale, double eps) {
  Tensor out = vdiff::new_output(q, shape_of(q));
  if (out.numel() == 0) return out;
  Call call(q, k, v, mask, q_weight, scale, eps);
  call.args.out = tokens(out);
  call.args.streamed = vdiff::can_stream(out);
  const auto kernel = VDIFF_KERNEL(context_attention_forward);
  const int64_t bytes = vdiff::context_scratch_bytes(call.args, vdiff::arithmetic_bytes(call.dtype));
  call.every_range([&](int64_t, int64_t b, int64_t first, int64_t last) {
    kernel(call.dtype, call.args, vdiff::thread_scratch(bytes), b, first, last);
  });
  return out;
}

// to (B, L, heads, d) = the sums of the ranges, in their order; part 0 is dk and part 1 dv.
template <class A>
void add_ranges(const Call& call, const A* partial, int part, A* to) {
  const int64_t L = call.args.keys, heads = call.args.heads, d = call.args.head_dim, width = vdiff::context_width(d);
  const int64_t stride = vdiff::context_sums(call.args);
  torch::stable::parallel_for(0, call.batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / heads, h = i % heads;
      for (int64_t u = 0; u < L; ++u) {
        A* row = to + ((b * L + u) * heads + h) * d;
        for (int64_t r = 0; r < call.ranges; ++r) {
          const A* from = partial + (b * call.ranges + r) * stride + ((h * 2 + part) * L + u) * width;
          for (int64_t c = 0; c < d; ++c) row[c] = r == 0 ? from[c] : row[c] + from[c];
        }
      }
    }
  });
}

template <class A>
void add_weights(const Call& call, const A* partial, A* to) {
  const int64_t d = call.args.head_dim, stride = vdiff::context_sums(call.args);
  for (int64_t r = 0; r < call.batch * call.ranges; ++r) {
    for (int64_t c = 0; c < d; ++c) to[c] += partial[(r + 1) * stride - d + c];
  }
}

Tensor in_dtype(const Tensor& sums, const Tensor& like) {
  if (sums.scalar_type() == like.scalar_type()) return sums;
  Tensor x = torch::stable::new_empty(like, shape_of(sums));
  torch::stable::copy_(x, sums);
  return x;
}

template <class A>
std::tuple<Tensor, Tensor, Tensor, Tensor> run_backward(Call& call, const Tensor& q, const Tensor& k, Tensor dq) {
  const auto dtype = vdiff::arithmetic(call.dtype);
  const int64_t stride = vdiff::context_sums(call.args), d = call.args.head_dim;
  const Tensor partial = torch::stable::new_zeros(q, {call.batch * call.ranges, stride}, dtype);
  A* sums = vdiff::mutable_data<A>(partial);
  const auto kernel = VDIFF_KERNEL(context_attention_backward);
  const int64_t bytes = vdiff::context_scratch_bytes(call.args, sizeof(A));
  call.every_range([&](int64_t i, int64_t b, int64_t first, int64_t last) {
    ContextAttention range = call.args;
    range.partial = sums + i * stride;
    kernel(call.dtype, range, vdiff::thread_scratch(bytes), b, first, last);
  });
  Tensor dk = torch::stable::new_empty(k, shape_of(k), dtype), dv = torch::stable::new_empty(k, shape_of(k), dtype);
  add_ranges(call, sums, 0, vdiff::mutable_data<A>(dk));
  add_ranges(call, sums, 1, vdiff::mutable_data<A>(dv));
  Tensor dweight = torch::stable::new_zeros(q, {call.args.q_weight ? d : 0}, dtype);
  if (call.args.q_weight) add_weights(call, sums, vdiff::mutable_data<A>(dweight));
  return {dq, in_dtype(dk, k), in_dtype(dv, k), dweight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                    const Tensor& v, const MaybeTensor& mask,
                                                    const MaybeTensor& q_weight, double scale, double eps) {
  Tensor dq = vdiff::new_output(q, shape_of(q));
  Call call(q, k, v, mask, q_weight, scale, eps);
  call.args.dout = tokens(dout), call.args.dq = tokens(dq);
  call.args.streamed = vdiff::can_stream(dq);
  return call.dtype == DType::f64 ? run_backward<double>(call, q, k, dq) : run_backward<float>(call, q, k, dq);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("temporal_attention_context_forward", TORCH_BOX(&forward));
  m.impl("temporal_attention_context_backward", TORCH_BOX(&backward));
}
