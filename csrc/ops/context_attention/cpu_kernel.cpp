#include "ops/context_attention/cpu_kernel.h"

#include "cpu/attention/rows.h"
#include "cpu/attention/softmax.h"

namespace vdiff::VDIFF_ISA {
namespace {

// Tokens whose products are summed before they are added to dk and dv.
constexpr int64_t kSummedTokens = 32;

template <class T, class A>
struct Context {
  const ContextAttention& args;
  const int64_t keys = args.keys, d = args.head_dim, width = context_width(args.head_dim), block = args.block;
  const int64_t matrix = keys * width, rows = block * width;

  // The scratch of a thread: the keys and values of every head, then the rows of one head of one block.
  struct Scratch {
    A *context, *q, *dout, *unit, *q_transposed, *dout_transposed, *product, *weights, *dlogits, *sum, *scales;
    Prefetcher::Range* ranges;
  };

  Scratch make_scratch(A* at) const {
    const auto take = [&](int64_t count) {
      A* part = at;
      at += count;
      return part;
    };
    Scratch s;
    s.context = take(args.heads * 2 * matrix);
    s.q = take(rows), s.dout = take(rows), s.unit = take(rows), s.product = take(rows);
    s.q_transposed = take(rows), s.dout_transposed = take(rows);
    s.weights = take(keys * block), s.dlogits = take(keys * block);
    s.sum = take(matrix), s.scales = take(block);
    s.ranges = (Prefetcher::Range*)at;
    return s;
  }

  static T* row(const Tokens& x, int64_t b, int64_t t, int64_t h) { return (T*)x.data + b * x.b + t * x.t + h * x.h; }

  void read_context(A* to, int64_t b) const {
    for (int64_t h = 0; h < args.heads; ++h) {
      load_rows(row(args.k, b, 0, h), args.k.t, to + 2 * h * matrix, width, keys, d);
      load_rows(row(args.v, b, 0, h), args.v.t, to + (2 * h + 1) * matrix, width, keys, d);
    }
  }

  // `count` rows of head h from token `first` on.
  void read(const Tokens& x, int64_t b, int64_t first, int64_t count, int64_t h, A* to) const {
    load_rows(row(x, b, first, h), x.t, to, width, count, d);
  }
  void write(const A* from, const Tokens& x, int64_t b, int64_t first, int64_t count, int64_t h) const {
    store_rows(from, width, row(x, b, first, h), x.t, count, d, args.streamed);
  }

  void normalise_rows(A* q, A* unit, A* scales, int64_t count) const {
    if (!args.q_weight) return;
    for (int64_t i = 0; i < count; ++i) {
      const A scale =
          normalise(q + i * width, (const A*)args.q_weight, unit ? unit + i * width : nullptr, d, (A)args.eps);
      if (scales) scales[i] = scale;
    }
  }

  // Lists the part of the tokens [first, last) of the next block that is prefetched while head h is computed: rows of
  // all heads, which are contiguous.
  template <int Count>
  void prefetch_rows(Prefetcher& prefetch, const Tokens* const (&tensors)[Count], int64_t b, int64_t first,
                     int64_t last, int64_t h) const {
    const int64_t count = last - first, from = first + h * count / args.heads;
    const int64_t to = first + (h + 1) * count / args.heads, element = sizeof(T);
    // Streamed rows of the output need not be in cache.
    const int prefetched = args.streamed ? Count - 1 : Count;
    for (int64_t t = from; t < to; ++t) {
      for (int i = 0; i < prefetched; ++i) {
        prefetch.add(row(*tensors[i], b, t, 0), args.heads, tensors[i]->h * element, d * element);
      }
    }
  }

  // visit(first token, tokens, head, prefetch) for every block and head. `tensors`, the output last, are prefetched one
  // block ahead.
  template <int Count, class Visit>
  void for_each_block(Prefetcher::Range* ranges, const Tokens* const (&tensors)[Count], int64_t b, int64_t first,
                      int64_t last, Visit visit) const {
    for (int64_t t = first; t < last; t += block) {
      const int64_t end = t + block < last ? t + block : last, after = end + block < last ? end + block : last;
      for (int64_t h = 0; h < args.heads; ++h) {
        Prefetcher prefetch(ranges);
        prefetch_rows(prefetch, tensors, b, end, after, h);
        visit(t, end - t, h, prefetch);
      }
    }
    if (args.streamed) stream_fence();
  }

  // weights[u][t] = softmax over u of scale * k[u] . q[t].
  void compute_weights(const A* k, const Scratch& s, int64_t b, int64_t count, Prefetcher& prefetch) const {
    transpose(s.q, width, s.q_transposed, block, count, d, prefetch);
    multiply<A, kForwardPrefetchStep>({k, width, 1}, s.q_transposed, block, s.weights, block, keys, count, d, prefetch);
    const uint8_t* key_mask = args.mask ? args.mask + b * keys : nullptr;
    softmax<A>(s.weights, block, keys, count, (A)args.scale, nullptr, key_mask, prefetch);
  }

  void forward(A* scratch, int64_t b, int64_t first, int64_t last) const {
    const Scratch s = make_scratch(scratch);
    read_context(s.context, b);
    const Tokens* const tensors[] = {&args.q, &args.out};
    for_each_block(s.ranges, tensors, b, first, last, [&](int64_t t, int64_t count, int64_t h, Prefetcher& prefetch) {
      const A *k = s.context + h * 2 * matrix, *v = k + matrix;
      read(args.q, b, t, count, h, s.q);
      normalise_rows(s.q, nullptr, nullptr, count);
      compute_weights(k, s, b, count, prefetch);
      multiply<A, kForwardPrefetchStep>({s.weights, 1, block}, v, width, s.product, width, count, d, keys, prefetch);
      write(s.product, args.out, b, t, count, h);
    });
  }

  // sums (keys, width) += left (keys, tokens) rows (tokens, width), a few tokens at a time: sums of fewer terms lose
  // less to rounding.
  void add_product(const A* left, const A* rows, const Scratch& s, int64_t count, A* sums, Prefetcher& prefetch) const {
    for (int64_t t = 0; t < count; t += kSummedTokens) {
      const int64_t some = count - t < kSummedTokens ? count - t : kSummedTokens;
      multiply<A, kForwardPrefetchStep>({left + t, block, 1}, rows + t * width, width, s.sum, width, keys, d, some,
                                        prefetch);
      for (int64_t u = 0; u < keys; ++u) {
        for (int64_t i = 0; i < d; ++i) sums[u * width + i] += s.sum[u * width + i];
      }
    }
  }

  void backward(A* scratch, int64_t b, int64_t first, int64_t last) const {
    const Scratch s = make_scratch(scratch);
    read_context(s.context, b);
    A* dweight = (A*)args.partial + args.heads * 2 * matrix;
    const Tokens* const tensors[] = {&args.q, &args.dout, &args.dq};
    for_each_block(s.ranges, tensors, b, first, last, [&](int64_t t, int64_t count, int64_t h, Prefetcher& prefetch) {
      const A *k = s.context + h * 2 * matrix, *v = k + matrix;
      A *dk = (A*)args.partial + h * 2 * matrix, *dv = dk + matrix;
      read(args.q, b, t, count, h, s.q);
      read(args.dout, b, t, count, h, s.dout);
      normalise_rows(s.q, s.unit, s.scales, count);
      compute_weights(k, s, b, count, prefetch);
      transpose(s.dout, width, s.dout_transposed, block, count, d, prefetch);
      multiply<A, kForwardPrefetchStep>({v, width, 1}, s.dout_transposed, block, s.dlogits, block, keys, count, d,
                                        prefetch);
      softmax_backward<A>(s.weights, s.dlogits, nullptr, block, keys, count, (A)args.scale);
      add_product(s.weights, s.dout, s, count, dv, prefetch);
      add_product(s.dlogits, s.q, s, count, dk, prefetch);
      multiply<A, kForwardPrefetchStep>({s.dlogits, 1, block}, k, width, s.product, width, count, d, keys, prefetch);
      normalise_rows_backward(s, count, dweight);
      write(s.product, args.dq, b, t, count, h);
    });
  }

  void normalise_rows_backward(const Scratch& s, int64_t count, A* dweight) const {
    if (!args.q_weight) return;
    // The rows of a block are summed by themselves first: sums of fewer terms lose less to rounding.
    A sums[kMaxHeadDim] = {};
    for (int64_t i = 0; i < count; ++i) {
      normalise_backward(s.product + i * width, (const A*)args.q_weight, s.unit + i * width, sums, d, s.scales[i]);
    }
    for (int64_t i = 0; i < d; ++i) dweight[i] += sums[i];
  }
};

}  // namespace

void context_attention_forward(DType dtype, const ContextAttention& args, void* scratch, int64_t b, int64_t first,
                               int64_t last) {
  switch (dtype) {
    case DType::f32: return Context<float, float>{args}.forward((float*)scratch, b, first, last);
    case DType::bf16: return Context<bf16, float>{args}.forward((float*)scratch, b, first, last);
    case DType::f16: return Context<fp16, float>{args}.forward((float*)scratch, b, first, last);
    case DType::f64: return Context<double, double>{args}.forward((double*)scratch, b, first, last);
  }
}

void context_attention_backward(DType dtype, const ContextAttention& args, void* scratch, int64_t b, int64_t first,
                                int64_t last) {
  switch (dtype) {
    case DType::f32: return Context<float, float>{args}.backward((float*)scratch, b, first, last);
    case DType::bf16: return Context<bf16, float>{args}.backward((float*)scratch, b, first, last);
    case DType::f16: return Context<fp16, float>{args}.backward((float*)scratch, b, first, last);
    case DType::f64: return Context<double, double>{args}.backward((double*)scratch, b, first, last);
  }
}

}  // namespace vdiff::VDIFF_ISA
