// Attention of one position and head of up to 64 frames by up to four warps, one for every 16 frames.
//
// A warp holds 16 x 64 logits: of 16 queries and all keys, and later in the backward of 16 keys and all queries, so
// that no sum crosses warps. Numbers per row pass between warps through shared memory; the caller puts a barrier
// between two steps.
#pragma once

#include "ops/temporal_attention/cuda_tile.h"

namespace vdiff {

constexpr int kWarpRows = 16, kKeyOctets = 8, kMaxFrames = 8 * kKeyOctets;

// In shared memory, per frame: 1 / rms of q and k, and the numbers that give a weight and its gradient from a logit.
struct SharedRows {
  float q_scale[kMaxFrames], k_scale[kMaxFrames];
  float row_max[kMaxFrames], inverse[kMaxFrames], row_dot[kMaxFrames];
};

template <class Warp>
struct FourWarpAttention {
  using Tile = WarpTile<Warp, 1, kKeyOctets>;
  using F = typename Tile::F;
  using I = typename Tile::I;
  using B = typename Tile::B;
  using Square = typename Tile::Square;
  using Left = typename Tile::Left;
  using Rows = typename Tile::template Source<2>;
  using Keys = typename Tile::template Source<kKeyOctets>;
  static constexpr int kSums = kWarpSums<1, kKeyOctets>;

  const Tile tile;
  SharedRows& shared;

  // Writes a number per row of the tile.
  VDIFF_WARP void write_rows(float* to, const F (&values)[2]) const {
    VDIFF_UNROLL
    for (int o = 0; o < 2; ++o) {
      Warp::write(to, tile.frame(tile.first + o), values[o], (tile.t == 0) & tile.exists(tile.first + o));
    }
  }

  template <int kCount>
  VDIFF_WARP void read_norm_scales(const float* weight, const float* from, int first, F (&scales)[kCount]) const {
    VDIFF_UNROLL
    for (int o = 0; o < kCount; ++o) {
      scales[o] = Warp::splat(0.0f);
      if (weight) scales[o] = Warp::read(from, tile.frame(first + o), tile.exists(first + o));
    }
  }

  // The first step, if there is a norm.
  VDIFF_WARP void write_norm_scales() const {
    F scales[2];
    tile.norm_scales(tile.p.q, tile.p.q_weight, tile.first, scales);
    write_rows(shared.q_scale, scales);
    tile.norm_scales(tile.p.k, tile.p.k_weight, tile.first, scales);
    write_rows(shared.k_scale, scales);
  }

  VDIFF_WARP void forward() const {
    const WarpProblem& p = tile.p;
    Square square;
    {
      F q_scales[2], k_scales[kKeyOctets];
      read_norm_scales(p.q_weight, shared.q_scale, tile.first, q_scales);
      read_norm_scales(p.k_weight, shared.k_scale, 0, k_scales);
      tile.logits({p.q, p.q_weight, tile.first, q_scales}, {p.k, p.k_weight, 0, k_scales}, square);
    }
    typename Tile::Softmax rows;
    tile.softmax(square, rows);
    Left weights;
    tile.pack_square(square, 1.0f, weights);
    tile.store_product(weights, p.v, p.out);
  }

  // The rows are queries: computes dq, and the numbers per query that backward_keys() reads.
  VDIFF_WARP void backward_queries() const {
    const WarpProblem& p = tile.p;
    F q_scales[2], k_scales[kKeyOctets];
    read_norm_scales(p.q_weight, shared.q_scale, tile.first, q_scales);
    read_norm_scales(p.k_weight, shared.k_scale, 0, k_scales);
    const Rows q{p.q, p.q_weight, tile.first, q_scales};
    const Keys k{p.k, p.k_weight, 0, k_scales};
    Left dlogits;
    {
      Square square, dsquare;
      tile.logits(q, k, square);
      typename Tile::Softmax rows;
      tile.softmax(square, rows);
      write_rows(shared.row_max, rows.row_max);
      write_rows(shared.inverse, rows.inverse);
      tile.outer(p.dout, p.v, dsquare);
      F row_dot[2];
      tile.softmax_backward(square, dsquare, row_dot);
      write_rows(shared.row_dot, row_dot);
      tile.pack_square(dsquare, p.scale, dlogits);
    }
    tile.store_gradient({q, k, p.dq, weight_sums(0)}, dlogits);
  }

  // The rows are keys: computes dk and dv.
  VDIFF_WARP void backward_keys() const {
    const WarpProblem& p = tile.p;
    F k_scales[2], q_scales[kKeyOctets];
    read_norm_scales(p.k_weight, shared.k_scale, tile.first, k_scales);
    read_norm_scales(p.q_weight, shared.q_scale, 0, q_scales);
    const Rows k{p.k, p.k_weight, tile.first, k_scales};
    const Keys q{p.q, p.q_weight, 0, q_scales};
    Left weights, dlogits;
    {
      Square square, dsquare;
      tile.logits(k, q, square);
      tile.outer(p.v, p.dout, dsquare);
      transposed_softmax(square, dsquare);
      tile.pack_square(square, 1.0f, weights);
      tile.pack_square(dsquare, p.scale, dlogits);
    }
    tile.store_product(weights, p.dout, p.dv);
    tile.store_gradient({k, q, p.dk, weight_sums(kMaxWarpDim)}, dlogits);
  }

  VDIFF_WARP float* weight_sums(int at) const {
    return tile.sums ? tile.sums + kBiasSums<1, kKeyOctets> + at : nullptr;
  }

  // Weights and gradients of the logits once more, with a query per column.
  VDIFF_WARP void transposed_softmax(Square& square, Square& dsquare) const {
    VDIFF_UNROLL
    for (int n = 0; n < kKeyOctets; ++n) {
      VDIFF_UNROLL
      for (int e = 0; e < 2; ++e) {
        const I query = tile.square_column(n, e);
        const B inside = query < tile.p.frames;
        const F row_max = Warp::read(shared.row_max, query, inside),
                inverse = Warp::read(shared.inverse, query, inside);
        const F row_dot = Warp::read(shared.row_dot, query, inside);
        VDIFF_UNROLL
        for (int o = 0; o < 2; ++o) {
          F &weight = square[0][n][2 * o + e], &dweight = dsquare[0][n][2 * o + e];
          const I key = tile.frame(tile.first + o);
          const F logit = tile.masked(weight, query, key, inside & (key < tile.p.frames));
          weight = Warp::exp(logit - row_max) * inverse;
          dweight = weight * (dweight - row_dot);
        }
      }
    }
  }
};

}  // namespace vdiff
