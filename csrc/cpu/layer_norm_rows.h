// Arguments of the kernels that gate, normalise and modulate rows: no torch header here.
#pragma once

#include "cpu/dtype.h"
#include "cpu/spans.h"

namespace vdiff {

// Three numbers a row in planes of `rows`: the mean's high and low part, rstd; float, or double for doubles. `weight`,
// `bias` and partial sums have that type too.
struct LayerNormForward {
  Runs runs;
  double eps;
  // Without a branch the residual itself is normed, and h is not written.
  const void *residual, *branch;
  RunVectors gate, shift, scale;
  const void *weight, *bias;
  void *h, *y, *statistics;
  // Whether y leaves the cache before anybody reads it.
  bool streamed;
};

struct LayerNormBackward {
  Runs runs;
  // dh, the gradient of h from elsewhere, may be absent.
  const void *dy, *dh, *h, *branch;
  RunVectors gate, scale;
  const void *weight, *bias, *statistics;
  void *dx, *dbranch, *dshift, *dscale, *dgate;
  // Where runs are cut: sums of dy, dy * normed and dh * branch per part. With weight or bias: sums of dz and
  // dz * normed per part, dz the gradient of normed * weight + bias.
  void *partial, *affine_partial;
};

// Of one dtype. forward takes rows [begin, end); backward one part, with `scratch(width)` reals; reduce adds the parts
// of a cut run, with 3 * width doubles.
struct LayerNormKernels {
  void (*forward)(const LayerNormForward& a, int64_t begin, int64_t end);
  void (*backward)(const LayerNormBackward& a, int64_t part, void* scratch);
  void (*reduce)(const LayerNormBackward& a, int64_t run, double* scratch);
  // Bytes.
  int64_t (*scratch)(int64_t width);
};

}  // namespace vdiff
