#include "ops/temporal_attention/cpu_kernel.h"

#include "cpu/attention/rows.h"
#include "cpu/attention/softmax.h"

namespace vdiff::VDIFF_ISA {
namespace {

// A block of positions [s0, s1) and heads [h0, h1) of sample b. A pair is one position and head; each of its matrices
// in scratch (q, k, v, ...) is (T, width).
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
  const int64_t lanes = VecOrScalar<A>::lanes, width = (d + lanes - 1) / lanes * lanes, matrix = frames * width;

  // Moves rows between the tensors and one of two buffers while the pairs of the other buffer are computed: outputs of
  // the previous item out, inputs of the next item in, a part of the rows after each pair. Rows go by frame, then
  // position, then head, so that consecutive rows are contiguous in memory (rows of different frames map to the same
  // cache sets).
  template <int In, int Out>
  struct RowTransfer {
    const Problem& problem;
    const Tokens* (&inputs)[In];
    const Tokens* (&outputs)[Out];
    const int (&output_matrix)[Out];  // output i is matrix output_matrix[i] of a pair

    // visit(t, p, h, heads) for the rows [from, to) of a block: `heads` heads from h on at frame t and position p.
    template <class Visit>
    void for_each_position(int64_t from, int64_t to, Visit visit) const {
      const int64_t width = problem.args.block_heads, block = problem.args.block_positions * width;
      for (int64_t t = from / block, p = from % block / width, h = from % width; from < to;) {
        const int64_t heads = to - from < width - h ? to - from : width - h;
        visit(t, p, h, heads);
        from += heads;
        h = 0;
        if (++p == problem.args.block_positions) p = 0, ++t;
      }
    }

    // How many of these heads the item has; 0 without an item or past its last position.
    static int64_t heads_present(const Item* item, int64_t p, int64_t h, int64_t heads) {
      if (!item || item->s0 + p >= item->s1) return 0;
      const int64_t left = item->h1 - item->h0 - h;
      return left < heads ? left : heads;
    }

    static T* row(const Tokens& x, const Item& item, int64_t t, int64_t p, int64_t h) {
      return (T*)x.data + item.b * x.b + t * x.t + (item.s0 + p) * x.s + (item.h0 + h) * x.h;
    }

    void prefetch_rows(Prefetcher& prefetch, const Item* previous, const Item* next, int64_t from, int64_t to) const {
      const int64_t bytes = problem.d * (int64_t)sizeof(T);
      for_each_position(from, to, [&](int64_t t, int64_t p, int64_t h, int64_t heads) {
        if (const int64_t n = heads_present(next, p, h, heads); n > 0) {
          for (const Tokens* x : inputs) prefetch.add(row(*x, *next, t, p, h), n, x->h * (int64_t)sizeof(T), bytes);
        }
        if (const int64_t n = problem.args.streamed ? 0 : heads_present(previous, p, h, heads); n > 0) {
          for (const Tokens* x : outputs)
            prefetch.add(row(*x, *previous, t, p, h), n, x->h * (int64_t)sizeof(T), bytes);
        }
      });
    }

    void copy_rows(A* buffer, const Item* previous, const Item* next, int64_t from, int64_t to) const {
      for_each_position(from, to, [&](int64_t t, int64_t p, int64_t h, int64_t heads) {
        A* rows = buffer + (p * problem.args.block_heads + h) * In * problem.matrix + t * problem.width;
        if (const int64_t n = heads_present(previous, p, h, heads); n > 0) {
          for (int i = 0; i < Out; ++i) {
            T* at = row(*outputs[i], *previous, t, p, h);
            store_rows(rows + output_matrix[i] * problem.matrix, In * problem.matrix, at, outputs[i]->h, n, problem.d,
                       problem.args.streamed);
          }
        }
        if (const int64_t n = heads_present(next, p, h, heads); n > 0) {
          for (int i = 0; i < In; ++i) {
            const T* at = row(*inputs[i], *next, t, p, h);
            load_rows(at, inputs[i]->h, rows + i * problem.matrix, In * problem.matrix, n, problem.d);
          }
        }
      });
    }
  };

  // Computes the items [begin, end), alternating between two buffers. pair(matrices, b, h, prefetch) works in place.
  template <int In, int Out, class Pair>
  void run(const RowTransfer<In, Out>& transfer, A* scratch, Prefetcher::Range* ranges, int64_t begin, int64_t end,
           Pair pair) const {
    const int64_t pairs = args.block_positions * args.block_heads, rows = pairs * frames;
    A* buffers[2] = {scratch, scratch + pairs * In * matrix};
    if (begin == end) return;
    Item before{}, item = locate(args, begin);
    transfer.copy_rows(buffers[0], nullptr, &item, 0, rows);
    for (int64_t index = begin; index < end; ++index) {
      A *here = buffers[(index - begin) & 1], *there = buffers[(index - begin + 1) & 1];
      const Item after = index + 1 < end ? locate(args, index + 1) : Item{};
      const Item *previous = index > begin ? &before : nullptr, *next = index + 1 < end ? &after : nullptr;
      const int64_t heads = item.h1 - item.h0, count = (item.s1 - item.s0) * heads;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t p = i / heads, h = i - p * heads, from = i * rows / count, to = (i + 1) * rows / count;
        Prefetcher prefetch(ranges);
        transfer.prefetch_rows(prefetch, previous, next, from, to);
        pair(here + (p * args.block_heads + h) * In * matrix, item.b, item.h0 + h, prefetch);
        transfer.copy_rows(there, previous, next, from, to);
      }
      before = item;
      item = after;
    }
    transfer.copy_rows(buffers[(end - begin - 1) & 1], &before, nullptr, 0, rows);
    if (args.streamed) stream_fence();
  }

  // RMS norm and rotation of the rows of q or k. The backward also gets the rows before the weight and the scales.
  void norm_and_rotate(A* x, const void* weight, A* unit, A* scales) const {
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

  void norm_and_rotate_backward(A* dx, const void* weight, const A* unit, const A* scales, A* dweight) const {
    if (!weight && !args.cos) return;
    A sums[kMaxHeadDim] = {};
    for (int64_t t = 0; t < frames; ++t, dx += width) {
      if (args.cos) {
        const int64_t at = t * (d / 2);
        rotate(dx, (const A*)args.cos + at, (const A*)args.sin + at, d / 2, A(-1));
      }
      if (weight) normalise_backward(dx, (const A*)weight, unit + t * width, sums, d, scales[t]);
    }
    // The rows of a pair are summed by themselves first: sums of fewer terms lose less to rounding.
    for (int64_t i = 0; i < d; ++i) dweight[i] += sums[i];
  }

  // weights[u][t] = softmax over u of scale * k[u] . q[t] + table.
  template <int kStep>
  void compute_weights(const A* k, const A* q_transposed, A* weights, int64_t b, int64_t h,
                       Prefetcher& prefetch) const {
    multiply<A, kStep>({k, width, 1}, q_transposed, lds, weights, lds, frames, frames, d, prefetch);
    const A* table = args.table ? (const A*)args.table + h * args.table_head : nullptr;
    const uint8_t* key_mask = args.mask ? args.mask + b * frames : nullptr;
    softmax<A>(weights, lds, frames, frames, (A)args.scale, table, key_mask, prefetch);
  }

  void forward(A* scratch, int64_t begin, int64_t end) const {
    constexpr int kStep = kForwardPrefetchStep;
    A* transposed = scratch + args.block_positions * args.block_heads * 6 * matrix;
    A* weights = transposed + width * lds;
    Prefetcher::Range* ranges = (Prefetcher::Range*)(weights + frames * lds);
    const Tokens *inputs[] = {&args.q, &args.k, &args.v}, *outputs[] = {&args.out};
    const int output_matrix[] = {0};
    run(RowTransfer<3, 1>{*this, inputs, outputs, output_matrix}, scratch, ranges, begin, end,
        [&](A* q, int64_t b, int64_t h, Prefetcher& prefetch) {
          A *k = q + matrix, *v = k + matrix;
          norm_and_rotate(q, args.q_weight, nullptr, nullptr);
          norm_and_rotate(k, args.k_weight, nullptr, nullptr);
          transpose(q, width, transposed, lds, frames, d, prefetch);
          compute_weights<kStep>(k, transposed, weights, b, h, prefetch);
          multiply<A, kStep>({weights, 1, lds}, v, width, q, width, frames, d, frames, prefetch);
        });
  }

  void backward(A* scratch, int64_t begin, int64_t end) const {
    constexpr int kStep = kBackwardPrefetchStep;
    A* q_transposed = scratch + args.block_positions * args.block_heads * 8 * matrix;
    A* dout_transposed = q_transposed + width * lds;
    A* weights = dout_transposed + width * lds;
    A* dlogits = weights + frames * lds;
    A* q_unit = dlogits + frames * lds;
    A* k_unit = q_unit + matrix;
    A *q_scales = k_unit + matrix, *k_scales = q_scales + frames;
    Prefetcher::Range* ranges = (Prefetcher::Range*)(k_scales + frames + frames % 2);
    A* dtable = (A*)args.partial;
    A* dweight = dtable + (args.wants_bias_gradient ? args.heads * frames * lds : 0);
    const Tokens *inputs[] = {&args.q, &args.k, &args.v, &args.dout}, *outputs[] = {&args.dq, &args.dk, &args.dv};
    const int output_matrix[] = {3, 1, 2};
    run(RowTransfer<4, 3>{*this, inputs, outputs, output_matrix}, scratch, ranges, begin, end,
        [&](A* q, int64_t b, int64_t h, Prefetcher& prefetch) {
          A *k = q + matrix, *v = k + matrix, *dout = v + matrix;
          norm_and_rotate(q, args.q_weight, q_unit, q_scales);
          norm_and_rotate(k, args.k_weight, k_unit, k_scales);
          transpose(q, width, q_transposed, lds, frames, d, prefetch);
          transpose(dout, width, dout_transposed, lds, frames, d, prefetch);
          compute_weights<kStep>(k, q_transposed, weights, b, h, prefetch);
          multiply<A, kStep>({v, width, 1}, dout_transposed, lds, dlogits, lds, frames, frames, d, prefetch);
          softmax_backward<A>(weights, dlogits, args.wants_bias_gradient ? dtable + h * frames * lds : nullptr, lds,
                              frames, frames, (A)args.scale);
          // dv replaces v, dq replaces dout and dk replaces k: none of them is read after that.
          multiply<A, kStep>({weights, lds, 1}, dout, width, v, width, frames, d, frames, prefetch);
          multiply<A, kStep>({dlogits, 1, lds}, k, width, dout, width, frames, d, frames, prefetch);
          multiply<A, kStep>({dlogits, lds, 1}, q, width, k, width, frames, d, frames, prefetch);
          norm_and_rotate_backward(dout, args.q_weight, q_unit, q_scales, dweight);
          norm_and_rotate_backward(k, args.k_weight, k_unit, k_scales, dweight + d);
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
