// Attention of one position and head of up to 32 frames by one warp, which holds all T x T logits. Up to 8 frames, a
// warp computes two positions.
#pragma once

#include "ops/temporal_attention/cuda_tile.h"

namespace vdiff {

template <class Warp, int kTiles>
struct WarpAttention {
  static constexpr int kOctets = 2 * kTiles;
  using Tile = WarpTile<Warp, kTiles, kOctets>;
  using F = typename Tile::F;
  using Square = typename Tile::Square;
  using Left = typename Tile::Left;
  static constexpr int kSums = kWarpSums<kTiles, kOctets>;

  const Tile tile;

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

  VDIFF_WARP void forward() const {
    const WarpProblem& p = tile.p;
    F q_scales[kOctets], k_scales[kOctets];
    tile.norm_scales(p.q, p.q_weight, 0, q_scales);
    tile.norm_scales(p.k, p.k_weight, 0, k_scales);
    Square square;
    tile.logits({p.q, p.q_weight, 0, q_scales}, {p.k, p.k_weight, 0, k_scales}, square);
    typename Tile::Softmax rows;
    tile.softmax(square, rows);
    Left weights;
    tile.pack_square(square, 1.0f, weights);
    tile.store_product(weights, p.v, p.out);
  }

  VDIFF_WARP void backward() const {
    const WarpProblem& p = tile.p;
    F q_scales[kOctets], k_scales[kOctets];
    tile.norm_scales(p.q, p.q_weight, 0, q_scales);
    tile.norm_scales(p.k, p.k_weight, 0, k_scales);
    const typename Tile::template Source<kOctets> q{p.q, p.q_weight, 0, q_scales}, k{p.k, p.k_weight, 0, k_scales};
    Left weights, dlogits, transposed;
    {
      Square square, dsquare;
      tile.logits(q, k, square);
      typename Tile::Softmax rows;
      tile.softmax(square, rows);
      tile.outer(p.dout, p.v, dsquare);
      F row_dot[kOctets];
      tile.softmax_backward(square, dsquare, row_dot);
      tile.pack_square(square, 1.0f, weights);
      tile.pack_square(dsquare, p.scale, dlogits);
    }
    transpose_square(weights, transposed);
    tile.store_product(transposed, p.dout, p.dv);
    float* q_sums = tile.sums ? tile.sums + kBiasSums<kTiles, kOctets> : nullptr;
    tile.store_gradient({q, k, p.dq, q_sums}, dlogits);
    transpose_square(dlogits, transposed);
    tile.store_gradient({k, q, p.dk, tile.sums ? q_sums + kMaxWarpDim : nullptr}, transposed);
  }
};

}  // namespace vdiff
