#include "ops/temporal_attention/kernel.h"

#include "ops/temporal_attention/rows.h"

namespace vdiff::VDIFF_ISA {
namespace {

// Some positions of some heads of one sample. In scratch, matrix i of pair (s, h) is (T, width).
struct Item {
  int64_t b, s0, s1, h0, h1;
};

Item locate(const TemporalAttention& a, int64_t index) {
  const int64_t groups = (a.heads + a.block_heads - 1) / a.block_heads;
  const int64_t blocks = (a.positions + a.block_positions - 1) / a.block_positions;
  const int64_t group = index % groups, block = index / groups % blocks;
  Item item{index / groups / blocks, block * a.block_positions, 0, group * a.block_heads, 0};
  item.s1 = item.s0 + a.block_positions < a.positions ? item.s0 + a.block_positions : a.positions;
  item.h1 = item.h0 + a.block_heads < a.heads ? item.h0 + a.block_heads : a.heads;
  return item;
}

template <class T, class A>
struct Problem {
  const TemporalAttention& args;
  const int64_t frames = args.frames, d = args.head_dim, lds = padded_frames(frames);
  const int64_t lanes = Simd<A>::lanes, width = (d + lanes - 1) / lanes * lanes, matrix = frames * width;

  // One buffer's traffic: rows of the last item's outputs leave, rows of the next item's inputs come in. It goes on in
  // small steps between the pairs that are computed in the other buffer, so memory and arithmetic overlap. A step is
  // one position of one frame: its reads run through contiguous memory (rows of different frames share cache sets), and
  // it asks for the rows of the next step early, because no hardware prefetcher follows from frame to frame.
  template <int In, int Out>
  struct Traffic {
    const Problem& problem;
    const Tokens* (&inputs)[In];
    const Tokens* (&outputs)[Out];
    const int (&slots)[Out];  // which matrix of a pair holds output i

    void run(A* buffer, const Item* leaving, const Item* coming, int64_t from, int64_t to) const {
      const int64_t block = problem.args.block_positions;
      for (int64_t step = from; step < to; ++step) {
        const int64_t t = step / block, p = step - t * block;
        const bool last = p + 1 == block, end = last && t + 1 == problem.frames;
        A* rows = buffer + p * problem.args.block_heads * In * problem.matrix + t * problem.width;
        if (leaving && leaving->s0 + p < leaving->s1) {
          for (int i = 0; i < Out; ++i) {
            const Tokens& x = *outputs[i];
            T* at = (T*)x.data + leaving->b * x.b + t * x.t + (leaving->s0 + p) * x.s;
            write(x, at, *leaving, rows + slots[i] * problem.matrix, end ? 0 : last ? x.t - p * x.s : x.s);
          }
        }
        if (coming && coming->s0 + p < coming->s1) {
          for (int i = 0; i < In; ++i) {
            const Tokens& x = *inputs[i];
            const T* at = (const T*)x.data + coming->b * x.b + t * x.t + (coming->s0 + p) * x.s;
            read(x, at, *coming, rows + i * problem.matrix, end ? 0 : last ? x.t - p * x.s : x.s);
          }
        }
      }
    }

    void read(const Tokens& x, const T* from, const Item& item, A* to, int64_t ahead) const {
      from += item.h0 * x.h;
      for (int64_t h = item.h0; h < item.h1; ++h, from += x.h, to += In * problem.matrix) {
        read_row(from, to, problem.d, ahead);
      }
    }

    void write(const Tokens& x, T* to, const Item& item, const A* from, int64_t ahead) const {
      to += item.h0 * x.h;
      for (int64_t h = item.h0; h < item.h1; ++h, to += x.h, from += In * problem.matrix) {
        write_row(from, to, problem.d, ahead);
      }
    }
  };

  // Computes the items [begin, end) in two buffers: pair(matrices of the pair, b, h) works in place.
  template <int In, int Out, class Pair>
  void run(const Traffic<In, Out>& traffic, A* scratch, int64_t begin, int64_t end, Pair pair) const {
    const int64_t pairs = args.block_positions * args.block_heads, steps = args.block_positions * frames;
    A* buffers[2] = {scratch, scratch + pairs * In * matrix};
    if (begin == end) return;
    Item before{}, item = locate(args, begin);
    traffic.run(buffers[0], nullptr, &item, 0, steps);
    for (int64_t index = begin; index < end; ++index) {
      A *here = buffers[(index - begin) & 1], *there = buffers[(index - begin + 1) & 1];
      const Item after = index + 1 < end ? locate(args, index + 1) : Item{};
      const int64_t heads = item.h1 - item.h0, count = (item.s1 - item.s0) * heads;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t p = i / heads, h = i - p * heads;
        pair(here + (p * args.block_heads + h) * In * matrix, item.b, item.h0 + h);
        traffic.run(there, index > begin ? &before : nullptr, index + 1 < end ? &after : nullptr, i * steps / count,
                    (i + 1) * steps / count);
      }
      before = item;
      item = after;
    }
    traffic.run(buffers[(end - begin - 1) & 1], &before, nullptr, 0, steps);
  }

  // RMS norm and rotation of the rows of q or k; unit rows and their scales are kept where asked for.
  void prepare(A* x, const void* weight, A* unit, A* scales) const {
    if (!weight && !args.cos) return;
    for (int64_t t = 0; t < frames; ++t, x += width) {
      if (weight) {
        const A scale = normalise(x, (const A*)weight, unit ? unit + t * width : nullptr, d, (A)args.eps);
        if (scales) scales[t] = scale;
      }
      if (args.cos) {
        const int64_t at = t * (d / 2);
        rotate(x, (const A*)args.cos + at, (const A*)args.sin + at, d / 2, A(1));
      }
    }
  }

  void prepare_backward(A* dx, const void* weight, const A* unit, const A* scales, A* dweight) const {
    if (!weight && !args.cos) return;
    A sums[kMaxHeadDim] = {};
    for (int64_t t = 0; t < frames; ++t, dx += width) {
      if (args.cos) {
        const int64_t at = t * (d / 2);
        rotate(dx, (const A*)args.cos + at, (const A*)args.sin + at, d / 2, A(-1));
      }
      if (weight) normalise_backward(dx, (const A*)weight, unit + t * width, sums, d, scales[t]);
    }
    // A pair's rows are summed apart from the rest: shorter chains round less.
    for (int64_t i = 0; i < d; ++i) dweight[i] += sums[i];
  }

  // Sum of term(u) over the frames, in four chains: shorter chains round less, and do not wait for each other.
  template <class Term>
  auto sum_rows(Term term) const {
    using S = Simd<A>;
    typename S::V chain[4] = {};
    int64_t u = 0;
    for (; u + 4 <= frames; u += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) chain[i] = chain[i] + term(u + i);
    }
    for (; u < frames; ++u) chain[0] = chain[0] + term(u);
    return (chain[0] + chain[1]) + (chain[2] + chain[3]);
  }

  // weights[u][t] = softmax over u of scale * k[u] . q[t] + table, queries as lanes: no sum across lanes.
  void softmax(const A* k, const A* q_transposed, A* weights, int64_t b, int64_t h) const {
    using S = Simd<A>;
    multiply<A>({k, width, 1}, q_transposed, lds, weights, lds, frames, frames, d);
    const A* table = (const A*)args.table + h * args.table_head;
    const uint8_t* seen = args.mask ? args.mask + b * frames : nullptr;
    const A hidden = -(A)__builtin_inf();
    for (int64_t t = 0; t < frames; t += lanes) {
      typename S::V top = S::splat(hidden);
      for (int64_t u = 0; u < frames; ++u) {
        typename S::V x = S::load(weights + u * lds + t) * S::splat((A)args.scale);
        if (args.table) x = x + S::load(table + u * lds + t);
        if (seen && !seen[u]) x = S::splat(hidden);
        S::store(weights + u * lds + t, x);
        top = vmax(top, x);
      }
      // A query that sees no key: subtracting -inf from -inf would be NaN.
      top = vmax(top, S::splat(-(A)1e30));
      const typename S::V total = sum_rows([&](int64_t u) {
        const typename S::V x = vexp(S::load(weights + u * lds + t) - top);
        S::store(weights + u * lds + t, x);
        return x;
      });
      const typename S::V inverse = reciprocal(total);
      for (int64_t u = 0; u < frames; ++u) {
        // x * inverse, then the remainder once: the rounding of a division at the cost of two multiplications.
        const typename S::V x = S::load(weights + u * lds + t), y = x * inverse;
        S::store(weights + u * lds + t, fma(fma(-y, total, x), inverse, y));
      }
    }
  }

  // 1 / x, and 0 for 0: a query without keys.
  static vfloat reciprocal(vfloat x) { return select(x == splat(0.0f), splat(0.0f), splat(1.0f) / x); }
  static double reciprocal(double x) { return x == 0 ? 0 : 1 / x; }

  // g = weights * (dweights - sum_u weights * dweights) is added to dtable; scale * g takes the place of dweights.
  void softmax_backward(const A* weights, A* dweights, A* dtable) const {
    using S = Simd<A>;
    for (int64_t t = 0; t < frames; t += lanes) {
      const typename S::V along =
          sum_rows([&](int64_t u) { return S::load(weights + u * lds + t) * S::load(dweights + u * lds + t); });
      for (int64_t u = 0; u < frames; ++u) {
        const int64_t at = u * lds + t;
        const typename S::V g = S::load(weights + at) * (S::load(dweights + at) - along);
        if (dtable) S::store(dtable + at, S::load(dtable + at) + g);
        S::store(dweights + at, g * S::splat((A)args.scale));
      }
    }
  }

  void forward(A* scratch, int64_t begin, int64_t end) const {
    A* transposed = scratch + args.block_positions * args.block_heads * 6 * matrix;
    A* weights = transposed + width * lds;
    const Tokens *inputs[] = {&args.q, &args.k, &args.v}, *outputs[] = {&args.out};
    const int slots[] = {0};
    run(Traffic<3, 1>{*this, inputs, outputs, slots}, scratch, begin, end, [&](A* q, int64_t b, int64_t h) {
      A *k = q + matrix, *v = k + matrix;
      prepare(q, args.q_weight, nullptr, nullptr);
      prepare(k, args.k_weight, nullptr, nullptr);
      transpose(q, width, transposed, lds, frames, d);
      softmax(k, transposed, weights, b, h);
      multiply<A>({weights, 1, lds}, v, width, q, width, frames, d, frames);
    });
  }

  void backward(A* scratch, int64_t begin, int64_t end) const {
    A* q_transposed = scratch + args.block_positions * args.block_heads * 8 * matrix;
    A* dout_transposed = q_transposed + width * lds;
    A* weights = dout_transposed + width * lds;
    A* dlogits = weights + frames * lds;
    A* q_unit = dlogits + frames * lds;
    A* k_unit = q_unit + matrix;
    A *q_scales = k_unit + matrix, *k_scales = q_scales + frames;
    A* dtable = (A*)args.partial;
    A* dweight = dtable + (args.wants_bias_gradient ? args.heads * frames * lds : 0);
    const Tokens *inputs[] = {&args.q, &args.k, &args.v, &args.dout}, *outputs[] = {&args.dq, &args.dk, &args.dv};
    const int slots[] = {3, 1, 2};
    run(Traffic<4, 3>{*this, inputs, outputs, slots}, scratch, begin, end, [&](A* q, int64_t b, int64_t h) {
      A *k = q + matrix, *v = k + matrix, *dout = v + matrix;
      prepare(q, args.q_weight, q_unit, q_scales);
      prepare(k, args.k_weight, k_unit, k_scales);
      transpose(q, width, q_transposed, lds, frames, d);
      transpose(dout, width, dout_transposed, lds, frames, d);
      softmax(k, q_transposed, weights, b, h);
      multiply<A>({v, width, 1}, dout_transposed, lds, dlogits, lds, frames, frames, d);
      softmax_backward(weights, dlogits, args.wants_bias_gradient ? dtable + h * frames * lds : nullptr);
      // dv takes the place of v, dq of dout, dk of k: each source is dead by then.
      multiply<A>({weights, lds, 1}, dout, width, v, width, frames, d, frames);
      multiply<A>({dlogits, 1, lds}, k, width, dout, width, frames, d, frames);
      multiply<A>({dlogits, lds, 1}, q, width, k, width, frames, d, frames);
      prepare_backward(dout, args.q_weight, q_unit, q_scales, dweight);
      prepare_backward(k, args.k_weight, k_unit, k_scales, dweight + d);
    });
  }
};

}  // namespace

void temporal_attention_forward(DType dtype, const TemporalAttention& args, void* scratch, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f32: return Problem<float, float>{args}.forward((float*)scratch, begin, end);
    case DType::bf16: return Problem<bf16, float>{args}.forward((float*)scratch, begin, end);
    case DType::f16: return Problem<fp16, float>{args}.forward((float*)scratch, begin, end);
    case DType::f64: return Problem<double, double>{args}.forward((double*)scratch, begin, end);
  }
}

void temporal_attention_backward(DType dtype, const TemporalAttention& args, void* scratch, int64_t begin,
                                 int64_t end) {
  switch (dtype) {
    case DType::f32: return Problem<float, float>{args}.backward((float*)scratch, begin, end);
    case DType::bf16: return Problem<bf16, float>{args}.backward((float*)scratch, begin, end);
    case DType::f16: return Problem<fp16, float>{args}.backward((float*)scratch, begin, end);
    case DType::f64: return Problem<double, double>{args}.backward((double*)scratch, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
