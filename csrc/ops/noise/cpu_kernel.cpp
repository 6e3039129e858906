#include "ops/noise/kernel.h"

#include "cpu/philox.h"

namespace vdiff::VDIFF_ISA {
namespace {

inline void write(double* y, vfloat n, int count) {
  for (int i = 0; i < count; ++i) y[i] = (double)n[i];
}
template <class T>
inline void write(T* y, vfloat n, int count) {
  if (count == kLanes) {
    store(y, n);
  } else {
    store_partial(y, n, count);
  }
}

template <class T>
void fill(const NoiseSource& s, int64_t sample, T* y, int64_t elements, int64_t begin, int64_t end) {
  philox::for_each(s.seed, s.sample_offset + sample, s.stream, 1, elements, begin, end,
                   [=](int64_t at, vfloat n, int count) { write(y + at, n, count); });
}

// Elements [begin, end) into out; a counter that begins before `begin` is drawn into `drawn` with them.
inline const float* draw(const NoiseSource& s, int64_t sample, int64_t stream, int64_t begin, int64_t end,
                         float* drawn) {
  const int64_t first = begin / 4 * 4;
  philox::for_each(s.seed, s.sample_offset + sample, stream, 1, end, first, end,
                   [=](int64_t at, vfloat n, int count) { write(drawn + (at - first), n, count); });
  return drawn + (begin - first);
}

template <class T>
void correlate(const NoiseSource& s, const FrameCorrelation& c, int64_t sample, T* y, int64_t begin, int64_t end) {
  alignas(64) float common[kTaskElements + 2 * philox::kTile], drawn[kTaskElements + 2 * philox::kTile];
  float* carried = common;
  if (!c.progressive) carried += draw(s, sample, s.stream ^ kSharedStream, begin, end, common) - common;
  for (int64_t frame = 0; frame < c.frames; ++frame) {
    const int64_t first = frame * c.elements + begin;
    const float* n = draw(s, sample, s.stream, first, first + (end - begin), drawn);
    for (int64_t i = 0; i < end - begin; i += kLanes) {
      const int count = end - begin - i < kLanes ? (int)(end - begin - i) : kLanes;
      const vfloat own = load(n + i);
      vfloat z = splat(c.shared) * load(carried + i) + splat(c.own) * own;
      if (c.progressive) {
        if (frame == 0) z = own;
        store(carried + i, z);
      }
      write(y + first + i, z, count);
    }
  }
}

}  // namespace

void correlated_noise(DType dtype, const NoiseSource& source, const FrameCorrelation& correlation, int64_t sample,
                      void* y, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f32: return correlate(source, correlation, sample, (float*)y, begin, end);
    case DType::bf16: return correlate(source, correlation, sample, (bf16*)y, begin, end);
    case DType::f16: return correlate(source, correlation, sample, (fp16*)y, begin, end);
    case DType::f64: return correlate(source, correlation, sample, (double*)y, begin, end);
  }
}

void noise(DType dtype, const NoiseSource& source, int64_t sample, void* y, int64_t elements, int64_t begin,
           int64_t end) {
  switch (dtype) {
    case DType::f32: return fill(source, sample, (float*)y, elements, begin, end);
    case DType::bf16: return fill(source, sample, (bf16*)y, elements, begin, end);
    case DType::f16: return fill(source, sample, (fp16*)y, elements, begin, end);
    case DType::f64: return fill(source, sample, (double*)y, elements, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
