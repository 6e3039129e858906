// Attention of one position and head of up to 64 frames by one warp for every 16 of them.
//
// A warp holds 16 x 64 of the logits: 16 queries against all keys, then, in the backward, 16 keys against all queries,
// so that no sum crosses warps. What a row needs of another warp goes through shared memory, behind a barrier of the
// caller between any two steps.
#pragma once

#include "ops/temporal_attention/cuda_tile.h"

namespace vdiff {

constexpr int kTallRows = 16, kTallKeys = 8, kMaxTallFrames = 8 * kTallKeys;

// By frame: 1 / rms of q and k, and what makes a weight and its gradient of a logit.
struct TallRows {
  float q_scale[kMaxTallFrames], k_scale[kMaxTallFrames];
  float top[kMaxTallFrames], inverse[kMaxTallFrames], along[kMaxTallFrames];
};

template <class Warp>
struct TallAttention {
  using Tile = WarpTile<Warp, 1, kTallKeys>;
  using F = typename Tile::F;
  using I = typename Tile::I;
  using B = typename Tile::B;
  using Square = typename Tile::Square;
  using Left = typename Tile::Left;
  using Rows = typename Tile::template Source<2>;
  using Keys = typename Tile::template Source<kTallKeys>;
  static constexpr int kSums = kWarpSums<1, kTallKeys>;

  const Tile tile;
  TallRows& shared;

  VDIFF_WARP void share(float* to, const F (&values)[2]) const {
    VDIFF_UNROLL
    for (int o = 0; o < 2; ++o) {
      Warp::write(to, tile.frame(tile.first + o), values[o], (tile.t == 0) & tile.exists(tile.first + o));
    }
  }

  template <int kCount>
  VDIFF_WARP void shared_scales(const float* weight, const float* from, int first, F (&scales)[kCount]) const {
    VDIFF_UNROLL
    for (int o = 0; o < kCount; ++o) {
      scales[o] = Warp::splat(0.0f);
      if (weight) scales[o] = Warp::read(from, tile.frame(first + o), tile.exists(first + o));
    }
  }

  // First step, needed with a norm only.
  VDIFF_WARP void share_norms() const {
    F scales[2];
    tile.norm_scales(tile.p.q, tile.p.q_weight, tile.first, scales);
    share(shared.q_scale, scales);
    tile.norm_scales(tile.p.k, tile.p.k_weight, tile.first, scales);
    share(shared.k_scale, scales);
  }

  VDIFF_WARP void forward() const {
    const WarpProblem& p = tile.p;
    Square square;
    {
      F q_scales[2], k_scales[kTallKeys];
      shared_scales(p.q_weight, shared.q_scale, tile.first, q_scales);
      shared_scales(p.k_weight, shared.k_scale, 0, k_scales);
      tile.logits({p.q, p.q_weight, tile.first, q_scales}, {p.k, p.k_weight, 0, k_scales}, square);
    }
    typename Tile::Softmax rows;
    tile.softmax(square, rows);
    Left weights;
    tile.pack_square(square, 1.0f, weights);
    tile.store_product(weights, p.v, p.out);
  }

  // Rows are queries: dq, and what the keys need of every query.
  VDIFF_WARP void backward_queries() const {
    const WarpProblem& p = tile.p;
    F q_scales[2], k_scales[kTallKeys];
    shared_scales(p.q_weight, shared.q_scale, tile.first, q_scales);
    shared_scales(p.k_weight, shared.k_scale, 0, k_scales);
    const Rows q{p.q, p.q_weight, tile.first, q_scales};
    const Keys k{p.k, p.k_weight, 0, k_scales};
    Left dlogits;
    {
      Square square, dsquare;
      tile.logits(q, k, square);
      typename Tile::Softmax rows;
      tile.softmax(square, rows);
      share(shared.top, rows.top);
      share(shared.inverse, rows.inverse);
      tile.outer(p.dout, p.v, dsquare);
      F along[2];
      tile.softmax_backward(square, dsquare, along);
      share(shared.along, along);
      tile.pack_square(dsquare, p.scale, dlogits);
    }
    tile.store_gradient({q, k, p.dq, weight_sums(0)}, dlogits);
  }

  // Rows are keys: dk and dv.
  VDIFF_WARP void backward_keys() const {
    const WarpProblem& p = tile.p;
    F k_scales[2], q_scales[kTallKeys];
    shared_scales(p.k_weight, shared.k_scale, tile.first, k_scales);
    shared_scales(p.q_weight, shared.q_scale, 0, q_scales);
    const Rows k{p.k, p.k_weight, tile.first, k_scales};
    const Keys q{p.q, p.q_weight, 0, q_scales};
    Left weights, dlogits;
    {
      Square square, dsquare;
      tile.logits(k, q, square);
      tile.outer(p.v, p.dout, dsquare);
      turned_softmax(square, dsquare);
      tile.pack_square(square, 1.0f, weights);
      tile.pack_square(dsquare, p.scale, dlogits);
    }
    tile.store_product(weights, p.dout, p.dv);
    tile.store_gradient({k, q, p.dk, weight_sums(kMaxWarpDim)}, dlogits);
  }

  VDIFF_WARP float* weight_sums(int at) const { return tile.sums ? tile.sums + kBiasSums<1, kTallKeys> + at : nullptr; }

  // Weights and gradients of logits again, a query a column.
  VDIFF_WARP void turned_softmax(Square& square, Square& dsquare) const {
    VDIFF_UNROLL
    for (int n = 0; n < kTallKeys; ++n) {
      VDIFF_UNROLL
      for (int e = 0; e < 2; ++e) {
        const I query = tile.square_column(n, e);
        const B inside = query < tile.p.frames;
        const F top = Warp::read(shared.top, query, inside), inverse = Warp::read(shared.inverse, query, inside);
        const F along = Warp::read(shared.along, query, inside);
        VDIFF_UNROLL
        for (int o = 0; o < 2; ++o) {
          F &weight = square[0][n][2 * o + e], &dweight = dsquare[0][n][2 * o + e];
          const I key = tile.frame(tile.first + o);
          const F logit = tile.masked(weight, query, key, inside & (key < tile.p.frames));
          weight = Warp::exp(logit - top) * inverse;
          dweight = weight * (dweight - along);
        }
      }
    }
  }
};

}  // namespace vdiff
