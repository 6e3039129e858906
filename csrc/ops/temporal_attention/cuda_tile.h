// The parts of attention that one warp computes for a tile: its rows are queries and its columns keys, or, where the
// logits are transposed, the reverse. cuda_one_warp.h and cuda_four_warps.h compose attention from them.
//
// The file is compiled for the device, where Warp is the operations of one lane, and for the host, where every value of
// Warp holds 32 lanes and mma and movmatrix follow the PTX ISA, so that tests run it without a GPU. Control flow is
// uniform across the warp; values that differ between lanes go through select() and predicates.
//
// Rows (frames) come in octets: lane (g, t) = (lane / 4, lane % 4) holds row g of each octet of 8. Columns come in
// groups of 32: lane (g, t) holds the columns 8t to 8t + 7, one load of 16 bytes, as four registers of two columns. A
// product may sum over its inner dimension in any order, if both operands use the same one. So register i serves as the
// columns 2t and 2t + 1 that an operand of mma has in lane t. The other operand is made of the registers by movmatrix,
// and its product has the columns 8t + 2i and 8t + 2i + 1 in lane t: the layout of the loads, so rows are stored whole.
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

constexpr int kLaneColumns = 8, kColumnGroup = 32, kMaxWarpDim = 128;
// Floats of the sums that one warp keeps over its positions: of the bias's gradient in the layout of mma's
// accumulators, then of the gradients of the two norm weights.
template <int kTiles, int kKeys>
constexpr int kBiasSums = kTiles * kKeys * 4 * 32;
template <int kTiles, int kKeys>
constexpr int kWarpSums = kBiasSums<kTiles, kKeys> + 2 * kMaxWarpDim;

// Element (t, u) of the bias's gradient from the sums of a warp whose first row is frame 0 and whose columns are `keys`
// octets.
VDIFF_WARP float bias_sum(const float* sums, int keys, bool packed, int t, int u) {
  const int lane = t % 8 * 4 + u % 8 / 2;
  float total = 0;
  for (int o = packed ? 0 : t / 8; o <= (packed ? 1 : t / 8); ++o) {
    const int n = packed ? o : u / 8, slot = (o / 2 * keys + n) * 4 + o % 2 * 2 + u % 2;
    total += sums[slot * 32 + lane];
  }
  return total;
}

// kTiles tiles of 16 rows, with kKeys octets of columns that begin at frame 0.
template <class Warp, int kTiles, int kKeys>
struct WarpTile {
  static constexpr int kOctets = 2 * kTiles;
  static constexpr int kLoadedOctets = kKeys > 4 ? 2 : kKeys;  // octets that are loaded at once, to save registers
  using F = typename Warp::F;
  using U = typename Warp::U;
  using B = typename Warp::B;
  using I = typename Warp::I;
  using L = typename Warp::L;
  using Rows = U[kOctets][4];          // pairs of columns of every octet
  using Keys = U[kKeys][4];            // the same for the columns
  using Square = F[kTiles][kKeys][4];  // logits in mma's accumulators: [tile of rows][octet of columns]
  using Left = U[kTiles][kKeys][2];    // the same as left operands of mma, two per register; octet of rows last
  using Product = F[kTiles][4][4];     // 32 columns of the tile's rows in accumulators

  // Queries or keys, kCount octets from octet `first` on, with the RMS norm of each row.
  template <int kCount>
  struct Source {
    const Tokens& x;
    const float* weight;  // or nullptr
    int first;
    const F (&scales)[kCount];
  };

  const WarpProblem& p;
  int64_t b, s, h;  // sample, first position, head
  float* sums;      // backward: this warp's own, or nullptr
  int first;        // octet of the first row
  const I g = Warp::row(), t = Warp::column();

  // Whether the tile holds two positions, an octet each.
  VDIFF_WARP bool packed() const { return kKeys == 2 && p.packed(); }
  VDIFF_WARP I frame(int octet) const { return packed() ? g + 0 : g + 8 * octet; }
  VDIFF_WARP B exists(int octet) const { return (frame(octet) < p.frames) & (!packed() || s + octet < p.positions); }
  VDIFF_WARP L offset(const Tokens& x, int octet) const {
    const int64_t base = b * x.b + h * x.h + (s + (packed() ? octet : 0)) * x.s;
    return Warp::widen(frame(octet)) * x.t + base;
  }
  VDIFF_WARP I lane_column(int column) const { return t * kLaneColumns + column; }
  // The frame of element e of octet n of the columns.
  VDIFF_WARP I square_column(int n, int e) const { return t * 2 + ((packed() ? 0 : 8 * n) + e); }

  template <int kCount>
  VDIFF_WARP void load(const Tokens& x, int from, int column, U (&rows)[kCount][4]) const {
    const I c = lane_column(column);
    VDIFF_UNROLL
    for (int o = 0; o < kCount; ++o) {
      Warp::load(x.data, offset(x, from + o) + Warp::widen(c), exists(from + o) & (c < p.d), rows[o]);
    }
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

  // Rotates the pairs of one row by the angles of its frame; sign = -1 rotates back.
  VDIFF_WARP void rotate(F (&x)[8], int octet, int column, float sign) const {
    if (!p.cos) return;
    const I c = lane_column(column), at = frame(octet) * (p.d / 2) + (t * (kLaneColumns / 2) + column / 2);
    const B inside = exists(octet) & (c < p.d);
    VDIFF_UNROLL
    for (int i = 0; i < 4; ++i) {
      const F cos = Warp::read(p.cos, at + i, inside), sin = Warp::read(p.sin, at + i, inside) * sign;
      const F even = x[2 * i], odd = x[2 * i + 1];
      x[2 * i] = even * cos - odd * sin;
      x[2 * i + 1] = even * sin + odd * cos;
    }
  }

  // 1 / rms of the rows of kCount octets of q or k. They are loaded once more for the products, then from L1.
  template <int kCount>
  VDIFF_WARP void norm_scales(const Tokens& x, const float* weight, int from, F (&scales)[kCount]) const {
    VDIFF_UNROLL
    for (int o = 0; o < kCount; ++o) scales[o] = Warp::splat(0.0f);
    if (!weight) return;
    for (int column = 0; column < p.d; column += kColumnGroup) {
      U rows[kCount][4];
      load(x, from, column, rows);
      VDIFF_UNROLL
      for (int o = 0; o < kCount; ++o) {
        F values[8];
        unpack(rows[o], values);
        VDIFF_UNROLL
        for (int i = 0; i < 8; ++i) scales[o] = scales[o] + values[i] * values[i];
      }
    }
    VDIFF_UNROLL
    for (int o = 0; o < kCount; ++o) {
      const F mean = quad_sum(scales[o]) / static_cast<float>(p.d) + p.eps;
      scales[o] = Warp::select(exists(from + o), Warp::inverse_sqrt(mean), Warp::splat(0.0f));
    }
  }

  // kSome octets of queries or keys from `from` on, after norm and rotation, rounded to the dtype of the products.
  template <int kCount, int kSome>
  VDIFF_WARP void prepared(const Source<kCount>& source, int from, int column, U (&rows)[kSome][4]) const {
    load(source.x, source.first + from, column, rows);
    if (!source.weight && !p.cos) return;
    const I c = lane_column(column);
    VDIFF_UNROLL
    for (int o = 0; o < kSome; ++o) {
      F values[8];
      unpack(rows[o], values);
      if (source.weight) {
        VDIFF_UNROLL
        for (int i = 0; i < 8; ++i) {
          values[i] = values[i] * source.scales[from + o] * Warp::read(source.weight, c + i, c < p.d);
        }
      }
      rotate(values, source.first + from + o, column, 1.0f);
      pack(values, rows[o]);
    }
  }

  // square += left right^T over 32 columns, for kSome octets of columns from `from` on.
  template <int kSome>
  VDIFF_WARP static void add_outer(const Rows& left, const U (&right)[kSome][4], int from, Square& square) {
    VDIFF_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      VDIFF_UNROLL
      for (int n = 0; n < kSome; ++n) {
        VDIFF_UNROLL
        for (int i = 0; i < 4; i += 2) {
          const U a[4] = {left[2 * m][i], left[2 * m + 1][i], left[2 * m][i + 1], left[2 * m + 1][i + 1]};
          const U b[2] = {right[n][i], right[n][i + 1]};
          Warp::mma(a, b, square[m][from + n]);
        }
      }
    }
  }

  // product = left rows, for 32 columns.
  VDIFF_WARP static void multiply(const Left& left, const Keys& rows, Product& product) {
    VDIFF_UNROLL
    for (int i = 0; i < 4; ++i) {
      VDIFF_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        VDIFF_UNROLL
        for (int e = 0; e < 4; ++e) product[m][i][e] = Warp::splat(0.0f);
      }
      VDIFF_UNROLL
      for (int k = 0; k < kKeys / 2; ++k) {
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
      for (int n = 0; n < kKeys; ++n) {
        VDIFF_UNROLL
        for (int r = 0; r < 2; ++r) {
          left[m][n][r] = Warp::pack(square[m][n][2 * r] * factor, square[m][n][2 * r + 1] * factor);
        }
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

  // Stores left x to the rows of the tile in `to`.
  VDIFF_WARP void store_product(const Left& left, const Tokens& x, const Tokens& to) const {
    for (int column = 0; column < p.d; column += kColumnGroup) {
      Keys rows;
      load(x, 0, column, rows);
      Product product;
      multiply(left, rows, product);
      VDIFF_UNROLL
      for (int o = 0; o < kOctets; ++o) {
        F values[8];
        row_of(product, o, values);
        store_row(to, first + o, column, values);
      }
    }
  }

  VDIFF_WARP static void zero(Square& square) {
    VDIFF_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      VDIFF_UNROLL
      for (int n = 0; n < kKeys; ++n) {
        VDIFF_UNROLL
        for (int e = 0; e < 4; ++e) square[m][n][e] = Warp::splat(0.0f);
      }
    }
  }

  // square = left right^T, with norm and rotation applied to both.
  VDIFF_WARP void logits(const Source<kOctets>& left, const Source<kKeys>& right, Square& square) const {
    zero(square);
    for (int column = 0; column < p.d; column += kColumnGroup) {
      Rows rows;
      prepared(left, 0, column, rows);
      VDIFF_UNROLL
      for (int n = 0; n < kKeys; n += kLoadedOctets) {
        U keys[kLoadedOctets][4];
        prepared(right, n, column, keys);
        add_outer(rows, keys, n, square);
      }
    }
  }

  // square = left right^T without norm and rotation.
  VDIFF_WARP void outer(const Tokens& left, const Tokens& right, Square& square) const {
    zero(square);
    for (int column = 0; column < p.d; column += kColumnGroup) {
      Rows rows;
      load(left, first, column, rows);
      VDIFF_UNROLL
      for (int n = 0; n < kKeys; n += kLoadedOctets) {
        U keys[kLoadedOctets][4];
        load(right, n, column, keys);
        add_outer(rows, keys, n, square);
      }
    }
  }

  // A logit with scale, bias and masks; -inf where the key is masked. `seen` says whether query and key exist.
  VDIFF_WARP F masked(F logit, const I& query, const I& key, B seen) const {
    if (p.causal) seen = seen & (key <= query);
    if (p.mask) seen = seen & Warp::read_flag(p.mask + b * p.frames, key, key < p.frames);
    F x = logit * p.scale;
    if (p.bias) {
      const float* table = p.bias + h * p.frames * p.frames;
      x = x + Warp::read(table, query * p.frames + key, seen & (query < p.frames));
    }
    return Warp::select(seen, x, Warp::splat(-Warp::infinity()));
  }

  // The softmax of every row as weight = exp(logit - row_max) * inverse.
  struct Softmax {
    F row_max[kOctets], inverse[kOctets];
  };

  VDIFF_WARP void softmax(Square& square, Softmax& rows) const {
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      const int m = o / 2, r = o % 2 * 2;
      F row_max = Warp::splat(-Warp::infinity());
      VDIFF_UNROLL
      for (int n = 0; n < kKeys; ++n) {
        VDIFF_UNROLL
        for (int e = 0; e < 2; ++e) {
          const I query = frame(first + o), key = square_column(n, e);
          const B seen = (key < p.frames) & (!packed() || n == o);
          square[m][n][r + e] = masked(square[m][n][r + e], query, key, seen);
          row_max = Warp::max(row_max, square[m][n][r + e]);
        }
      }
      row_max = quad_max(row_max);
      // Where all keys are masked, -inf - -inf would be NaN.
      row_max = Warp::select(row_max == -Warp::infinity(), Warp::splat(0.0f), row_max);
      F total = Warp::splat(0.0f);
      VDIFF_UNROLL
      for (int n = 0; n < kKeys; ++n) {
        VDIFF_UNROLL
        for (int e = 0; e < 2; ++e) {
          square[m][n][r + e] = Warp::exp(square[m][n][r + e] - row_max);
          total = total + square[m][n][r + e];
        }
      }
      total = quad_sum(total);
      const F inverse = Warp::select(total == 0.0f, Warp::splat(0.0f), Warp::splat(1.0f) / total);
      VDIFF_UNROLL
      for (int n = 0; n < kKeys; ++n) {
        VDIFF_UNROLL
        for (int e = 0; e < 2; ++e) square[m][n][r + e] = square[m][n][r + e] * inverse;
      }
      rows.row_max[o] = row_max, rows.inverse[o] = inverse;
    }
  }

  // Replaces dweights by weights * (dweights - row_dot), the gradient of the logits before the scale. row_dot is the
  // sum of weights * dweights over the row.
  VDIFF_WARP void softmax_backward(const Square& weights, Square& dweights, F (&row_dot)[kOctets]) const {
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      const int m = o / 2, r = o % 2 * 2;
      F sum = Warp::splat(0.0f);
      VDIFF_UNROLL
      for (int n = 0; n < kKeys; ++n) {
        sum = sum + weights[m][n][r] * dweights[m][n][r];
        sum = sum + weights[m][n][r + 1] * dweights[m][n][r + 1];
      }
      row_dot[o] = quad_sum(sum);
      VDIFF_UNROLL
      for (int n = 0; n < kKeys; ++n) {
        VDIFF_UNROLL
        for (int e = r; e < r + 2; ++e) {
          dweights[m][n][e] = weights[m][n][e] * (dweights[m][n][e] - row_dot[o]);
          if (p.bias) Warp::add(sums, ((m * kKeys + n) * 4 + e) * 32, dweights[m][n][e]);
        }
      }
    }
  }

  // The gradient of q (or k), stored to `to`: `source` is q (or k) and `other` is k (or q).
  struct Side {
    Source<kOctets> source;
    Source<kKeys> other;
    const Tokens& to;
    float* weight_sums;
  };

  // 32 columns of the gradient of the rows after norm and rotation.
  VDIFF_WARP void prepared_gradient(const Side& side, const Left& left, int column, Product& product) const {
    Keys rows;
    prepared(side.other, 0, column, rows);
    multiply(left, rows, product);
  }

  // row_dot = the mean over the row of g w n, with g the gradient rotated back and n = x rstd. Adds g n to the gradient
  // of the weight.
  VDIFF_WARP void norm_row_dot(const Side& side, const Left& left, F (&row_dot)[kOctets]) const {
    const Source<kOctets>& source = side.source;
    VDIFF_UNROLL
    for (int o = 0; o < kOctets; ++o) row_dot[o] = Warp::splat(0.0f);
    if (!source.weight) return;
    for (int column = 0; column < p.d; column += kColumnGroup) {
      const I c = lane_column(column);
      Product product;
      prepared_gradient(side, left, column, product);
      Rows rows;
      load(source.x, first, column, rows);
      F dweight[8];
      VDIFF_UNROLL
      for (int o = 0; o < kOctets; ++o) {
        F values[8], x[8];
        row_of(product, o, values);
        rotate(values, first + o, column, -1.0f);
        unpack(rows[o], x);
        VDIFF_UNROLL
        for (int i = 0; i < 8; ++i) {
          const F gn = values[i] * (x[i] * source.scales[o]);
          dweight[i] = o == 0 ? gn : dweight[i] + gn;
          row_dot[o] = row_dot[o] + gn * Warp::read(source.weight, c + i, c < p.d);
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
    for (int o = 0; o < kOctets; ++o) row_dot[o] = quad_sum(row_dot[o]) / static_cast<float>(p.d);
  }

  // Stores the gradient of the rows before norm and rotation to side.to.
  VDIFF_WARP void store_gradient(const Side& side, const Left& left) const {
    const Source<kOctets>& source = side.source;
    F row_dot[kOctets];
    norm_row_dot(side, left, row_dot);
    for (int column = 0; column < p.d; column += kColumnGroup) {
      const I c = lane_column(column);
      Product product;
      prepared_gradient(side, left, column, product);
      Rows rows;
      if (source.weight) load(source.x, first, column, rows);
      VDIFF_UNROLL
      for (int o = 0; o < kOctets; ++o) {
        F values[8];
        row_of(product, o, values);
        rotate(values, first + o, column, -1.0f);
        if (source.weight) {
          F x[8];
          unpack(rows[o], x);
          VDIFF_UNROLL
          for (int i = 0; i < 8; ++i) {
            const F gw = values[i] * Warp::read(source.weight, c + i, c < p.d);
            values[i] = source.scales[o] * (gw - x[i] * source.scales[o] * row_dot[o]);
          }
        }
        store_row(side.to, first + o, column, values);
      }
    }
  }
};

}  // namespace vdiff
