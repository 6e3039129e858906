#include "ops/qk_norm_rope/cpu_kernel.h"

#include "cpu/shuffle.h"
#include "cpu/vec.h"

namespace vdiff::VDIFF_ISA {
namespace {

// Rows whose weight gradient is summed in the narrow type before it goes to double.
constexpr int64_t kRows = 64;

template <class T>
struct Rows {
  using V = typename Vec<T>::V;
  using A = typename Vec<T>::Real;
  static constexpr int kCount = Vec<T>::lanes;

  const QkNormRope& args;
  const int64_t d = args.head_dim;
  const A* weight = static_cast<const A*>(args.weight);
  // cos of the position for both lanes of a pair, and sin as (-sin, sin): y = x cos + swapped(x) sin.
  A cos[kMaxRotatedDim + kCount] = {}, sin[kMaxRotatedDim + kCount] = {};

  template <class Body>
  inline void each_vector(Body body) const {
    int64_t i = 0;
    for (; i + kCount <= d; i += kCount) body(i, kCount);
    if (i < d) body(i, static_cast<int>(d - i));
  }

  // Backward turns by the opposite angle.
  void take_tables(int64_t position, A sign) {
    const A* c = static_cast<const A*>(args.cos) + position * (d / 2);
    const A* s = static_cast<const A*>(args.sin) + position * (d / 2);
    for (int64_t i = 0; i < d / 2; ++i) {
      cos[2 * i] = cos[2 * i + 1] = c[i];
      sin[2 * i] = -sign * s[i], sin[2 * i + 1] = sign * s[i];
    }
  }
  inline V rotated(V x, int64_t i) const { return fma(swap_neighbours(x), load(sin + i), x * load(cos + i)); }

  A inverse_rms(const T* x) const {
    V squares{};
    each_vector([&](int64_t i, int lanes) {
      const V v = load_n(x + i, lanes);
      squares = fma(v, v, squares);
    });
    const A mean = reduce_sum(squares) / static_cast<A>(d) + static_cast<A>(args.eps);
    return A{1} / static_cast<A>(sizeof(A) == 4 ? __builtin_sqrtf(mean) : __builtin_sqrt(mean));
  }

  void forward_row(const T* x, T* y) const {
    const A scale = weight ? inverse_rms(x) : A{1};
    each_vector([&](int64_t i, int lanes) {
      V v = load_n(x + i, lanes);
      if (weight) v = v * scale * load_n(weight + i, lanes);
      if (args.cos) v = rotated(v, i);
      store_n(y + i, v, lanes);
    });
  }

  // dx = rstd * (g w - n mean(g w n)) with n = x rstd and g = dy turned back; g w waits in `held`.
  void backward_row(const T* x, const T* dy, T* dx, A* dweight) const {
    A held[kMaxRotatedDim + kCount];
    const A scale = weight ? inverse_rms(x) : A{1};
    V along{};
    each_vector([&](int64_t i, int lanes) {
      V g = load_n(dy + i, lanes);
      if (args.cos) g = rotated(g, i);
      if (!weight) return store_n(dx + i, g, lanes);
      const V unit = load_n(x + i, lanes) * scale, gw = g * load_n(weight + i, lanes);
      store(dweight + i, fma(g, unit, load(dweight + i)));
      store(held + i, gw);
      along = fma(gw, unit, along);
    });
    if (!weight) return;
    const A mean = reduce_sum(along) / static_cast<A>(d);
    each_vector([&](int64_t i, int lanes) {
      const V unit = load_n(x + i, lanes) * scale;
      store_n(dx + i, (load(held + i) - unit * mean) * scale, lanes);
    });
  }

  // row(x, dy, y) for every head of the positions [begin, end).
  template <class Row>
  void each_row(int64_t begin, int64_t end, A sign, Row row) {
    int64_t s = begin % args.positions, t = begin / args.positions % args.frames;
    int64_t b = begin / args.positions / args.frames;
    const auto at = [&](const Tokens& x) { return static_cast<T*>(x.data) + b * x.b + t * x.t + s * x.s; };
    for (int64_t i = begin; i < end; ++i) {
      if (args.cos) take_tables(s, sign);
      const T *x = at(args.x), *dy = at(args.dy);
      T* y = at(args.y);
      for (int64_t h = 0; h < args.heads; ++h) row(x + h * args.x.h, dy + h * args.dy.h, y + h * args.y.h);
      if (++s == args.positions) {
        s = 0;
        if (++t == args.frames) t = 0, ++b;
      }
    }
  }

  void forward(int64_t begin, int64_t end) {
    each_row(begin, end, A{1}, [&](const T* x, const T*, T* y) { forward_row(x, y); });
  }

  void backward(double* dweight, int64_t begin, int64_t end) {
    A sums[kMaxRotatedDim + kCount] = {};
    int64_t rows = 0;
    const auto flush = [&] {
      for (int64_t i = 0; i < d; ++i) dweight[i] += sums[i], sums[i] = 0;
      rows = 0;
    };
    each_row(begin, end, A{-1}, [&](const T* x, const T* dy, T* dx) {
      backward_row(x, dy, dx, sums);
      if (weight && ++rows == kRows) flush();
    });
    if (weight) flush();
  }
};

}  // namespace

void qk_norm_rope_forward(DType dtype, const QkNormRope& args, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f32: return Rows<float>{args}.forward(begin, end);
    case DType::bf16: return Rows<bf16>{args}.forward(begin, end);
    case DType::f16: return Rows<fp16>{args}.forward(begin, end);
    case DType::f64: return Rows<double>{args}.forward(begin, end);
  }
}

void qk_norm_rope_backward(DType dtype, const QkNormRope& args, double* dweight, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f32: return Rows<float>{args}.backward(dweight, begin, end);
    case DType::bf16: return Rows<bf16>{args}.backward(dweight, begin, end);
    case DType::f16: return Rows<fp16>{args}.backward(dweight, begin, end);
    case DType::f64: return Rows<double>{args}.backward(dweight, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
