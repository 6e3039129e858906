// Attention of one position and head (two positions where T <= 8) by one warp, forward and backward.
//
// Written once for the device, where `Warp` maps to one lane, and for the host, where it holds the 32 lanes side by
// side and plays mma and movmatrix after the PTX ISA: tests run this file without a GPU. Control flow is uniform; what
// differs from lane to lane goes through `select` and predicates.
//
// Rows (frames) come in octets of 8: lane (g, t) = (lane / 4, lane % 4) holds row g of each octet. Columns come in
// groups of 32: lane (g, t) holds columns 8t .. 8t + 7, one load of 16 bytes. A product sums over columns in any order
// as long as both sides agree, so register i of the four is the pair of columns 2t, 2t + 1 that mma asks for; and
// movmatrix makes the other operand of them, whose result has columns 8t + 2i, 8t + 2i + 1 in lane t again: whole
// stores.
#pragma once

#include <stdint.h>

#include "common/tokens.h"

#if defined(__CUDACC__)
#define VDIFF_WARP __device__ __forceinline__
#else
#define VDIFF_WARP inline
#endif
#define VDIFF_UNROLL _Pragma("unroll")

namespace vdiff {

struct WarpProblem {
  Tokens q, k, v, out;      // forward
  Tokens dout, dq, dk, dv;  // backward
  const float* bias;        // [heads][T][T], or nullptr
  const uint8_t* mask;      // [B][T], 1: the key is seen; or nullptr
  const float *q_weight, *k_weight, *cos, *sin;
  float scale, eps;
  bool causal;
  int64_t batch, positions;
  int frames, heads, d;

  VDIFF_WARP bool packed() const { return frames <= 8; }
};

constexpr int kLanePack = 8, kColumnGroup = 32, kMaxWarpDim = 128;
// Floats of one warp's sums over its positions: of the bias in mma's own layout, then of the two norm weights.
template <int kTiles>
constexpr int kBiasSums = kTiles * 2 * kTiles * 4 * 32;
template <int kTiles>
constexpr int kWarpSums = kBiasSums<kTiles> + 2 * kMaxWarpDim;

// Element (t, u) of the bias's gradient out of one warp's sums.
VDIFF_WARP float bias_sum(const float* sums, int tiles, bool packed, int t, int u) {
  const int lane = t % 8 * 4 + u % 8 / 2;
  float total = 0;
  for (int o = packed ? 0 : t / 8; o <= (packed ? 1 : t / 8); ++o) {
    const int n = packed ? o : u / 8, slot = (o / 2 * 2 * tiles + n) * 4 + o % 2 * 2 + u % 2;
    total += sums[slot * 32 + lane];
  }
  return total;
}

template <class Warp, int kTiles>
struct WarpAttention {
  static constexpr int kOctets = 2 * kTiles;
  using F = typename Warp::F;
  using U = typename Warp::U;
  using B = typename Warp::B;
  using I = typename Warp::I;
  using L = typename Warp::L;
  using Rows = U[kOctets][4];            // pairs of columns of every octet
  using Square = F[kTiles][kOctets][4];  // T x T in mma's accumulators: [tile of rows][octet of columns]
  using Left = U[kTiles][kOctets][2];    // the same in pairs, octet of rows last: left operands
  using Product = F[kTiles][4][4];       // 32 columns of T rows in accumulators

  const WarpProblem& p;
  int64_t b, s, h;  // sample, first position, head
  float* sums;      // backward: this warp's own, or nullptr
  const I g = Warp::row(), t = Warp::column();

  VDIFF_WARP I frame(int octet) const { return p.packed() ? g + 0 : g + 8 * octet; }
  VDIFF_WARP B exists(int octet) const { return (frame(octet) < p.frames) & (!p.packed() || s + octet < p.positions); }
  VDIFF_WARP L offset(const Tokens& x, int octet) const {
    const int64_t base = b * x.b + h * x.h + (s + (p.packed() ? octet : 0)) * x.s;
    return Warp::widen(frame(octet)) * x.t + base;
  }
  VDIFF_WARP I lane_column(int column) const { return t * kLanePack + column; }

  VDIFF_WARP void load(const Tokens& x, int column, Rows& rows) const {
    const I c = lane_column(column);
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) Warp::load(x.data, offset(x, o) + Warp::widen(c), exists(o) & (c < p.d), rows[o]);
  }

  VDIFF_WARP static void unpack(const U (&pairs)[4], F (&values)[8]) {
    VDIFF_UNROLL
    for (int i = 0; i < 4; ++i) values[2 * i] = Warp::low(pairs[i]), values[2 * i + 1] = Warp::high(pairs[i]);
  }
  VDIFF_WARP static void pack(const F (&values)[8], U (&pairs)[4]) {
    VDIFF_UNROLL
    for (int i = 0; i < 4; ++i) pairs[i] = Warp::pack(values[2 * i], values[2 * i + 1]);
  }
  VDIFF_WARP static F quad_sum(F x) {
    x = x + Warp::shuffle_xor(x, 1);
    return x + Warp::shuffle_xor(x, 2);
  }
  VDIFF_WARP static F quad_max(F x) {
    x = Warp::max(x, Warp::shuffle_xor(x, 1));
    return Warp::max(x, Warp::shuffle_xor(x, 2));
  }

  // Turns the pairs of one row by the angles of its frame; `sign` = -1 turns back.
  VDIFF_WARP void rotate(F (&x)[8], int octet, int column, float sign) const {
    if (!p.cos) return;
    const I c = lane_column(column), at = frame(octet) * (p.d / 2) + (t * (kLanePack / 2) + column / 2);
    const B inside = exists(octet) & (c < p.d);
    VDIFF_UNROLL
    for (int i = 0; i < 4; ++i) {
      const F cos = Warp::read(p.cos, at + i, inside), sin = Warp::read(p.sin, at + i, inside) * sign;
      const F even = x[2 * i], odd = x[2 * i + 1];
      x[2 * i] = even * cos - odd * sin;
      x[2 * i + 1] = even * sin + odd * cos;
    }
  }

  // 1 / rms of every row of q or k: reads it once more, from L1 the second time.
  VDIFF_WARP void norm_scales(const Tokens& x, const float* weight, F (&scales)[kOctets]) const {
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) scales[o] = Warp::splat(0.0f);
    if (!weight) return;
    for (int column = 0; column < p.d; column += kColumnGroup) {
      Rows rows;
      load(x, column, rows);
      VDIFF_UNROLL
      for (int o = 0; o < kOctets; ++o) {
        F values[8];
        unpack(rows[o], values);
        VDIFF_UNROLL
        for (int i = 0; i < 8; ++i) scales[o] = scales[o] + values[i] * values[i];
      }
    }
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      const F mean = quad_sum(scales[o]) / static_cast<float>(p.d) + p.eps;
      scales[o] = Warp::select(exists(o), Warp::inverse_sqrt(mean), Warp::splat(0.0f));
    }
  }

  // Queries or keys after norm and rotation, in the dtype of the products.
  VDIFF_WARP void prepared(const Tokens& x, const float* weight, const F (&scales)[kOctets], int column,
                           Rows& rows) const {
    load(x, column, rows);
    if (!weight && !p.cos) return;
    const I c = lane_column(column);
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      F values[8];
      unpack(rows[o], values);
      if (weight) {
        VDIFF_UNROLL
        for (int i = 0; i < 8; ++i) values[i] = values[i] * scales[o] * Warp::read(weight, c + i, c < p.d);
      }
      rotate(values, o, column, 1.0f);
      pack(values, rows[o]);
    }
  }

  // square += left right^T over 32 columns.
  VDIFF_WARP static void add_outer(const Rows& left, const Rows& right, Square& square) {
    VDIFF_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        VDIFF_UNROLL
        for (int i = 0; i < 4; i += 2) {
          const U a[4] = {left[2 * m][i], left[2 * m + 1][i], left[2 * m][i + 1], left[2 * m + 1][i + 1]};
          const U b[2] = {right[n][i], right[n][i + 1]};
          Warp::mma(a, b, square[m][n]);
        }
      }
    }
  }

  // product = left rows, 32 columns.
  VDIFF_WARP static void multiply(const Left& left, const Rows& rows, Product& product) {
    VDIFF_UNROLL
    for (int i = 0; i < 4; ++i) {
      VDIFF_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        VDIFF_UNROLL
        for (int e = 0; e < 4; ++e) product[m][i][e] = Warp::splat(0.0f);
      }
      VDIFF_UNROLL
      for (int k = 0; k < kTiles; ++k) {
        const U b[2] = {Warp::transpose(rows[2 * k][i]), Warp::transpose(rows[2 * k + 1][i])};
        VDIFF_UNROLL
        for (int m = 0; m < kTiles; ++m) {
          const U a[4] = {left[m][2 * k][0], left[m][2 * k][1], left[m][2 * k + 1][0], left[m][2 * k + 1][1]};
          Warp::mma(a, b, product[m][i]);
        }
      }
    }
  }

  VDIFF_WARP static void pack_square(const Square& square, float factor, Left& left) {
    VDIFF_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        VDIFF_UNROLL
        for (int r = 0; r < 2; ++r) {
          left[m][n][r] = Warp::pack(square[m][n][2 * r] * factor, square[m][n][2 * r + 1] * factor);
        }
      }
    }
  }

  VDIFF_WARP static void transpose_square(const Left& from, Left& to) {
    VDIFF_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        VDIFF_UNROLL
        for (int r = 0; r < 2; ++r) to[m][n][r] = Warp::transpose(from[n / 2][2 * m + r][n % 2]);
      }
    }
  }

  VDIFF_WARP static void row_of(const Product& product, int octet, F (&values)[8]) {
    VDIFF_UNROLL
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = product[octet / 2][i][octet % 2 * 2];
      values[2 * i + 1] = product[octet / 2][i][octet % 2 * 2 + 1];
    }
  }

  VDIFF_WARP void store_row(const Tokens& x, int octet, int column, const F (&values)[8]) const {
    U pairs[4];
    pack(values, pairs);
    const I c = lane_column(column);
    Warp::store(x.data, offset(x, octet) + Warp::widen(c), exists(octet) & (c < p.d), pairs);
  }

  VDIFF_WARP void store(const Tokens& x, int column, const Product& product) const {
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      F values[8];
      row_of(product, o, values);
      store_row(x, o, column, values);
    }
  }

  VDIFF_WARP void zero(Square& square) const {
    VDIFF_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        VDIFF_UNROLL
        for (int e = 0; e < 4; ++e) square[m][n][e] = Warp::splat(0.0f);
      }
    }
  }

  VDIFF_WARP void logits(const F (&q_scales)[kOctets], const F (&k_scales)[kOctets], Square& square) const {
    zero(square);
    for (int column = 0; column < p.d; column += kColumnGroup) {
      Rows q, k;
      prepared(p.q, p.q_weight, q_scales, column, q);
      prepared(p.k, p.k_weight, k_scales, column, k);
      add_outer(q, k, square);
    }
  }

  // One logit with scale, bias and masks; -inf where the key is not seen.
  VDIFF_WARP F masked(F logit, int octet, int n, int e) const {
    const I row = frame(octet), key = t * 2 + ((p.packed() ? 0 : 8 * n) + e);
    B seen = (key < p.frames) & (!p.packed() || n == octet);
    if (p.causal) seen = seen & (key <= row);
    if (p.mask) seen = seen & Warp::read_flag(p.mask + b * p.frames, key, key < p.frames);
    F x = logit * p.scale;
    if (p.bias) {
      const float* table = p.bias + h * p.frames * p.frames;
      x = x + Warp::read(table, row * p.frames + key, seen & (row < p.frames));
    }
    return Warp::select(seen, x, Warp::splat(-Warp::infinity()));
  }

  VDIFF_WARP void softmax(Square& square) const {
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      const int m = o / 2, r = o % 2 * 2;
      F top = Warp::splat(-Warp::infinity());
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        VDIFF_UNROLL
        for (int e = 0; e < 2; ++e) {
          square[m][n][r + e] = masked(square[m][n][r + e], o, n, e);
          top = Warp::max(top, square[m][n][r + e]);
        }
      }
      top = quad_max(top);
      // A query that sees no key: -inf minus -inf would be NaN.
      top = Warp::select(top == -Warp::infinity(), Warp::splat(0.0f), top);
      F total = Warp::splat(0.0f);
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        VDIFF_UNROLL
        for (int e = 0; e < 2; ++e) {
          square[m][n][r + e] = Warp::exp(square[m][n][r + e] - top);
          total = total + square[m][n][r + e];
        }
      }
      total = quad_sum(total);
      const F inverse = Warp::select(total == 0.0f, Warp::splat(0.0f), Warp::splat(1.0f) / total);
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        VDIFF_UNROLL
        for (int e = 0; e < 2; ++e) square[m][n][r + e] = square[m][n][r + e] * inverse;
      }
    }
  }

  VDIFF_WARP void forward() const {
    F q_scales[kOctets], k_scales[kOctets];
    norm_scales(p.q, p.q_weight, q_scales);
    norm_scales(p.k, p.k_weight, k_scales);
    Square square;
    logits(q_scales, k_scales, square);
    softmax(square);
    Left weights;
    pack_square(square, 1.0f, weights);
    for (int column = 0; column < p.d; column += kColumnGroup) {
      Rows v;
      load(p.v, column, v);
      Product out;
      multiply(weights, v, out);
      store(p.out, column, out);
    }
  }

  // dweights becomes weights * (dweights - sum weights * dweights), the gradient of the logits before the scale.
  VDIFF_WARP void softmax_backward(const Square& weights, Square& dweights) const {
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      const int m = o / 2, r = o % 2 * 2;
      F along = Warp::splat(0.0f);
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        along = along + weights[m][n][r] * dweights[m][n][r];
        along = along + weights[m][n][r + 1] * dweights[m][n][r + 1];
      }
      along = quad_sum(along);
      VDIFF_UNROLL
      for (int n = 0; n < kOctets; ++n) {
        VDIFF_UNROLL
        for (int e = r; e < r + 2; ++e) {
          dweights[m][n][e] = weights[m][n][e] * (dweights[m][n][e] - along);
          if (p.bias) Warp::add(sums, ((m * kOctets + n) * 4 + e) * 32, dweights[m][n][e]);
        }
      }
    }
  }

  // Where the gradient of q (or k) comes from and goes to; `other` is k (or q), prepared again.
  struct Side {
    Tokens x, other, to;
    const float *weight, *other_weight;
    const F (&scales)[kOctets], (&other_scales)[kOctets];
    float* weight_sums;
  };

  // 32 columns of the gradient of the prepared rows, turned back.
  VDIFF_WARP void turned_back(const Side& side, const Left& left, int column, Product& product) const {
    Rows rows;
    prepared(side.other, side.other_weight, side.other_scales, column, rows);
    multiply(left, rows, product);
  }

  // Mean over the row of g w n, with g the gradient turned back and n = x rstd; the weight's gradient sum g n on the
  // way.
  VDIFF_WARP void along_norm(const Side& side, const Left& left, F (&along)[kOctets]) const {
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) along[o] = Warp::splat(0.0f);
    if (!side.weight) return;
    for (int column = 0; column < p.d; column += kColumnGroup) {
      const I c = lane_column(column);
      Product product;
      turned_back(side, left, column, product);
      Rows rows;
      load(side.x, column, rows);
      F dweight[8];
      VDIFF_UNROLL
      for (int o = 0; o < kOctets; ++o) {
        F values[8], x[8];
        row_of(product, o, values);
        rotate(values, o, column, -1.0f);
        unpack(rows[o], x);
        VDIFF_UNROLL
        for (int i = 0; i < 8; ++i) {
          const F gn = values[i] * (x[i] * side.scales[o]);
          dweight[i] = o == 0 ? gn : dweight[i] + gn;
          along[o] = along[o] + gn * Warp::read(side.weight, c + i, c < p.d);
        }
      }
      VDIFF_UNROLL
      for (int i = 0; i < 8; ++i) {
        VDIFF_UNROLL
        for (int step = 4; step < 32; step *= 2) dweight[i] = dweight[i] + Warp::shuffle_xor(dweight[i], step);
        Warp::add_at(side.weight_sums, c + i, dweight[i], (g == 0) & (c < p.d));
      }
    }
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) along[o] = quad_sum(along[o]) / static_cast<float>(p.d);
  }

  VDIFF_WARP void gradient(const Side& side, const Left& left) const {
    F along[kOctets];
    along_norm(side, left, along);
    for (int column = 0; column < p.d; column += kColumnGroup) {
      const I c = lane_column(column);
      Product product;
      turned_back(side, left, column, product);
      Rows rows;
      if (side.weight) load(side.x, column, rows);
      VDIFF_UNROLL
      for (int o = 0; o < kOctets; ++o) {
        F values[8];
        row_of(product, o, values);
        rotate(values, o, column, -1.0f);
        if (side.weight) {
          F x[8];
          unpack(rows[o], x);
          VDIFF_UNROLL
          for (int i = 0; i < 8; ++i) {
            const F gw = values[i] * Warp::read(side.weight, c + i, c < p.d);
            values[i] = side.scales[o] * (gw - x[i] * side.scales[o] * along[o]);
          }
        }
        store_row(side.to, o, column, values);
      }
    }
  }

  VDIFF_WARP void backward() const {
    F q_scales[kOctets], k_scales[kOctets];
    norm_scales(p.q, p.q_weight, q_scales);
    norm_scales(p.k, p.k_weight, k_scales);
    Left weights, dlogits;
    {
      Square square, dsquare;
      logits(q_scales, k_scales, square);
      softmax(square);
      zero(dsquare);
      for (int column = 0; column < p.d; column += kColumnGroup) {
        Rows dout, v;
        load(p.dout, column, dout);
        load(p.v, column, v);
        add_outer(dout, v, dsquare);
      }
      softmax_backward(square, dsquare);
      pack_square(square, 1.0f, weights);
      pack_square(dsquare, p.scale, dlogits);
    }
    Left turned;
    transpose_square(weights, turned);
    for (int column = 0; column < p.d; column += kColumnGroup) {
      Rows dout;
      load(p.dout, column, dout);
      Product dv;
      multiply(turned, dout, dv);
      store(p.dv, column, dv);
    }
    float* weight_sums = sums ? sums + kBiasSums<kTiles> : nullptr;
    gradient({p.q, p.k, p.dq, p.q_weight, p.k_weight, q_scales, k_scales, weight_sums}, dlogits);
    transpose_square(dlogits, turned);
    float* k_sums = sums ? weight_sums + kMaxWarpDim : nullptr;
    gradient({p.k, p.q, p.dk, p.k_weight, p.q_weight, k_scales, q_scales, k_sums}, turned);
  }
};

}  // namespace vdiff
