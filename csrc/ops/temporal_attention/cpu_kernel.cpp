#include "ops/temporal_attention/cpu_kernel.h"

#include "cpu/attention/rows.h"
#include "cpu/attention/softmax.h"

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

  // One buffer's traffic: rows of the last item's outputs leave, rows of the next item's inputs come in, a share of
  // them between any two pairs that are computed in the other buffer. Rows go by frame, position, head, so their memory
  // is contiguous (rows of different frames share cache sets).
  template <int In, int Out>
  struct Traffic {
    const Problem& problem;
    const Tokens* (&inputs)[In];
    const Tokens* (&outputs)[Out];
    const int (&slots)[Out];  // which matrix of a pair holds output i

    // visit(t, p, h, heads) for the rows [from, to) of a block, by frame and position.
    template <class Visit>
    void walk(int64_t from, int64_t to, Visit visit) const {
      const int64_t width = problem.args.block_heads, block = problem.args.block_positions * width;
      for (int64_t t = from / block, p = from % block / width, h = from % width; from < to;) {
        const int64_t heads = to - from < width - h ? to - from : width - h;
        visit(t, p, h, heads);
        from += heads;
        h = 0;
        if (++p == problem.args.block_positions) p = 0, ++t;
      }
    }

    // The part of `heads` from h on that the item has at position p.
    static int64_t present(const Item* item, int64_t p, int64_t h, int64_t heads) {
      if (!item || item->s0 + p >= item->s1) return 0;
      const int64_t left = item->h1 - item->h0 - h;
      return left < heads ? left : heads;
    }

    static T* row(const Tokens& x, const Item& item, int64_t t, int64_t p, int64_t h) {
      return (T*)x.data + item.b * x.b + t * x.t + (item.s0 + p) * x.s + (item.h0 + h) * x.h;
    }

    void list(Ahead& ahead, const Item* leaving, const Item* coming, int64_t from, int64_t to) const {
      const int64_t bytes = problem.d * (int64_t)sizeof(T);
      walk(from, to, [&](int64_t t, int64_t p, int64_t h, int64_t heads) {
        if (const int64_t n = present(coming, p, h, heads); n > 0) {
          for (const Tokens* x : inputs) ahead.add(row(*x, *coming, t, p, h), n, x->h * (int64_t)sizeof(T), bytes);
        }
        if (const int64_t n = problem.args.streamed ? 0 : present(leaving, p, h, heads); n > 0) {
          for (const Tokens* x : outputs) ahead.add(row(*x, *leaving, t, p, h), n, x->h * (int64_t)sizeof(T), bytes);
        }
      });
    }

    void move(A* buffer, const Item* leaving, const Item* coming, int64_t from, int64_t to) const {
      walk(from, to, [&](int64_t t, int64_t p, int64_t h, int64_t heads) {
        A* rows = buffer + (p * problem.args.block_heads + h) * In * problem.matrix + t * problem.width;
        if (const int64_t n = present(leaving, p, h, heads); n > 0) {
          for (int i = 0; i < Out; ++i) {
            T* at = row(*outputs[i], *leaving, t, p, h);
            write_rows(rows + slots[i] * problem.matrix, In * problem.matrix, at, outputs[i]->h, n, problem.d,
                       problem.args.streamed);
          }
        }
        if (const int64_t n = present(coming, p, h, heads); n > 0) {
          for (int i = 0; i < In; ++i) {
            const T* at = row(*inputs[i], *coming, t, p, h);
            read_rows(at, inputs[i]->h, rows + i * problem.matrix, In * problem.matrix, n, problem.d);
          }
        }
      });
    }
  };

  // Computes the items [begin, end) in two buffers: pair(matrices of the pair, b, h, ahead) works in place.
  template <int In, int Out, class Pair>
  void run(const Traffic<In, Out>& traffic, A* scratch, Ahead::Run* runs, int64_t begin, int64_t end, Pair pair) const {
    const int64_t pairs = args.block_positions * args.block_heads, rows = pairs * frames;
    A* buffers[2] = {scratch, scratch + pairs * In * matrix};
    if (begin == end) return;
    Item before{}, item = locate(args, begin);
    traffic.move(buffers[0], nullptr, &item, 0, rows);
    for (int64_t index = begin; index < end; ++index) {
      A *here = buffers[(index - begin) & 1], *there = buffers[(index - begin + 1) & 1];
      const Item after = index + 1 < end ? locate(args, index + 1) : Item{};
      const Item *leaving = index > begin ? &before : nullptr, *coming = index + 1 < end ? &after : nullptr;
      const int64_t heads = item.h1 - item.h0, count = (item.s1 - item.s0) * heads;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t p = i / heads, h = i - p * heads, from = i * rows / count, to = (i + 1) * rows / count;
        Ahead ahead(runs);
        traffic.list(ahead, leaving, coming, from, to);
        pair(here + (p * args.block_heads + h) * In * matrix, item.b, item.h0 + h, ahead);
        traffic.move(there, leaving, coming, from, to);
      }
      before = item;
      item = after;
    }
    traffic.move(buffers[(end - begin - 1) & 1], &before, nullptr, 0, rows);
    if (args.streamed) stores_done();
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

  // weights[u][t] = softmax over u of scale * k[u] . q[t] + table.
  template <int Every>
  void weigh(const A* k, const A* q_transposed, A* weights, int64_t b, int64_t h, Ahead& ahead) const {
    multiply<A, Every>({k, width, 1}, q_transposed, lds, weights, lds, frames, frames, d, ahead);
    const A* table = args.table ? (const A*)args.table + h * args.table_head : nullptr;
    const uint8_t* seen = args.mask ? args.mask + b * frames : nullptr;
    softmax<A>(weights, lds, frames, frames, (A)args.scale, table, seen, ahead);
  }

  void forward(A* scratch, int64_t begin, int64_t end) const {
    constexpr int Every = kForwardEvery;
    A* transposed = scratch + args.block_positions * args.block_heads * 6 * matrix;
    A* weights = transposed + width * lds;
    Ahead::Run* runs = (Ahead::Run*)(weights + frames * lds);
    const Tokens *inputs[] = {&args.q, &args.k, &args.v}, *outputs[] = {&args.out};
    const int slots[] = {0};
    run(Traffic<3, 1>{*this, inputs, outputs, slots}, scratch, runs, begin, end,
        [&](A* q, int64_t b, int64_t h, Ahead& ahead) {
          A *k = q + matrix, *v = k + matrix;
          prepare(q, args.q_weight, nullptr, nullptr);
          prepare(k, args.k_weight, nullptr, nullptr);
          transpose(q, width, transposed, lds, frames, d, ahead);
          weigh<Every>(k, transposed, weights, b, h, ahead);
          multiply<A, Every>({weights, 1, lds}, v, width, q, width, frames, d, frames, ahead);
        });
  }

  void backward(A* scratch, int64_t begin, int64_t end) const {
    constexpr int Every = kBackwardEvery;
    A* q_transposed = scratch + args.block_positions * args.block_heads * 8 * matrix;
    A* dout_transposed = q_transposed + width * lds;
    A* weights = dout_transposed + width * lds;
    A* dlogits = weights + frames * lds;
    A* q_unit = dlogits + frames * lds;
    A* k_unit = q_unit + matrix;
    A *q_scales = k_unit + matrix, *k_scales = q_scales + frames;
    Ahead::Run* runs = (Ahead::Run*)(k_scales + frames + frames % 2);
    A* dtable = (A*)args.partial;
    A* dweight = dtable + (args.wants_bias_gradient ? args.heads * frames * lds : 0);
    const Tokens *inputs[] = {&args.q, &args.k, &args.v, &args.dout}, *outputs[] = {&args.dq, &args.dk, &args.dv};
    const int slots[] = {3, 1, 2};
    run(Traffic<4, 3>{*this, inputs, outputs, slots}, scratch, runs, begin, end,
        [&](A* q, int64_t b, int64_t h, Ahead& ahead) {
          A *k = q + matrix, *v = k + matrix, *dout = v + matrix;
          prepare(q, args.q_weight, q_unit, q_scales);
          prepare(k, args.k_weight, k_unit, k_scales);
          transpose(q, width, q_transposed, lds, frames, d, ahead);
          transpose(dout, width, dout_transposed, lds, frames, d, ahead);
          weigh<Every>(k, q_transposed, weights, b, h, ahead);
          multiply<A, Every>({v, width, 1}, dout_transposed, lds, dlogits, lds, frames, frames, d, ahead);
          softmax_backward<A>(weights, dlogits, args.wants_bias_gradient ? dtable + h * frames * lds : nullptr, lds,
                              frames, frames, (A)args.scale);
          // dv takes the place of v, dq of dout, dk of k: each source is dead by then.
          multiply<A, Every>({weights, lds, 1}, dout, width, v, width, frames, d, frames, ahead);
          multiply<A, Every>({dlogits, 1, lds}, k, width, dout, width, frames, d, frames, ahead);
          multiply<A, Every>({dlogits, lds, 1}, q, width, k, width, frames, d, frames, ahead);
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
