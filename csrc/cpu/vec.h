// The vectors that all CPU kernels are written with, on GCC's and clang's vector extensions. Included by cpu_kernel.cpp
// files only, which are compiled once per instruction set in a namespace VDIFF_ISA of its name: neither a header of
// torch nor one of the C++ library may come with it, or an inline function of theirs could be compiled for a newer CPU.
//
// Types (vec/types.h)
//   vfloat vdouble vint vuint vhalf   one vector register; kVectorBytes, kLanes floats, kDoubleLanes doubles
//   bf16 fp16                         16-bit elements; kernels compute with them in float
//   Vec<T>::V, ::Real, ::lanes        the vector that elements of type T are computed in; vdouble for double
//   VecOrScalar<T>                    the same, but one scalar double for double
//   digits<T>                         binary digits of T's significand: 8, 11, 24, 53
// Operators + - * / < > == & | ^ << >> work lane by lane; -ffp-contract=off keeps products and sums apart.
//   splat(x)                          x in every lane
//   fma(a, b, c)                      a * b + c with one rounding
//   min max(a, b)                     b where either is NaN
//   select(mask, a, b)                a where the mask's lane is all ones, else b; a comparison is a mask
//   abs(x) clamp(x, limit)            |x|, and x limited to [-limit, limit]; a NaN stays a NaN
//   as_int(x) as_float(i)             the same bits as another type
// Memory (vec/memory.h); no address need be aligned unless it says so
//   load(p) store(p, v)               whole vectors, with conversion from and to T, rounding to nearest even
//   load_n(p, n) store_n(p, v, n)     the first n <= lanes; a load makes the others zero
//   load_tail store_tail              the same for n < lanes: masked where the instruction set has masks
//   load_elements store_elements      as load_n and store_n, tails element by element; of double, one scalar
//   keep_n<T>(v, n)                   v with zero after the first n lanes
//   stream(p, v) stream_fence()       a store past the caches; p aligned to the vector's bytes in T
//   store_or_stream<kStream>(p, v, n) either, chosen at compile time
//   store_pair<kStream>(p, a, b)      two vectors behind each other; one shuffle for bf16 on AVX2
//   aligned_vectors(p, n)             whether rows of n elements can be streamed
//   to_float(x) from_float(p, x)      one element
// Arithmetic (vec/math.h)
//   reduce_sum(v)                     the sum of the lanes, pairwise, in an order that is the same on every run
//   exp_1ulp(x)                       e^x to about 1 ulp for every x
//   exp_nonpositive(x)                e^x for x <= 0 to about 1 ulp
//   exp_neg<kDigits>(x)               e^-x to kDigits binary digits, x limited to [-87, 87]; a NaN is lost
//   divide<kDigits>(a, b)             a / b to kDigits binary digits, for b in [1, 1e38]
// Beside these: cpu/silu.h and cpu/gelu.h (activations), cpu/row_vectors.h (loops over rows), cpu/shuffle.h
// (permutations), cpu/philox.h (normals).
#pragma once

#include "cpu/vec/math.h"
#include "cpu/vec/memory.h"
#include "cpu/vec/types.h"
