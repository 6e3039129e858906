// The normals of common/philox.h for kLanes counters at a time, in the memory order of a sample. Included by
// cpu_kernel.cpp files only.
#pragma once

#include "common/philox.h"
#include "cpu/vec.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace vdiff::VDIFF_ISA::philox {

using namespace vdiff::philox;
typedef uint64_t vulong __attribute__((vector_size(kVectorBytes)));

// The four normals of kLanes counters: v[i] holds normal i of each.
struct Quads {
  vfloat v[4];
};

// A call out of line would spill the vectors that are live around it, and the rounds of two counters would no longer
// overlap.
#define VDIFF_INLINE inline __attribute__((always_inline))

// The 64-bit product of the low 32 bits of each lane; the high 32 bits of `a` are ignored.
inline vulong multiply_low(vulong a, uint32_t m) {
  const vulong b = vulong{} + m;
#if defined(__AVX512F__)
  return (vulong)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vulong)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (vulong)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * b;
#endif
}

inline vfloat sqrt(vfloat x) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (vfloat)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (vfloat)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

inline vfloat to_float(vuint w) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_cvtepu32_ps((__m512i)w);
#else
  // Both halves and the product are exact, so the sum rounds once, as a direct conversion would.
  return __builtin_convertvector((vint)(w >> 16), vfloat) * 65536.0f +
         __builtin_convertvector((vint)(w & 0xffffu), vfloat);
#endif
}

// Within every 128 bits, element j of vector i becomes element i of vector j.
inline void transpose(Quads& f) {
#if defined(__AVX512F__)
  const __m512 a = (__m512)f.v[0], b = (__m512)f.v[1], c = (__m512)f.v[2], d = (__m512)f.v[3];
  const __m512 ab0 = _mm512_unpacklo_ps(a, b), cd0 = _mm512_unpacklo_ps(c, d);
  const __m512 ab2 = _mm512_unpackhi_ps(a, b), cd2 = _mm512_unpackhi_ps(c, d);
  f.v[0] = (vfloat)_mm512_shuffle_ps(ab0, cd0, 0x44), f.v[1] = (vfloat)_mm512_shuffle_ps(ab0, cd0, 0xee);
  f.v[2] = (vfloat)_mm512_shuffle_ps(ab2, cd2, 0x44), f.v[3] = (vfloat)_mm512_shuffle_ps(ab2, cd2, 0xee);
#elif defined(__AVX2__)
  const __m256 a = (__m256)f.v[0], b = (__m256)f.v[1], c = (__m256)f.v[2], d = (__m256)f.v[3];
  const __m256 ab0 = _mm256_unpacklo_ps(a, b), cd0 = _mm256_unpacklo_ps(c, d);
  const __m256 ab2 = _mm256_unpackhi_ps(a, b), cd2 = _mm256_unpackhi_ps(c, d);
  f.v[0] = (vfloat)_mm256_shuffle_ps(ab0, cd0, 0x44), f.v[1] = (vfloat)_mm256_shuffle_ps(ab0, cd0, 0xee);
  f.v[2] = (vfloat)_mm256_shuffle_ps(ab2, cd2, 0x44), f.v[3] = (vfloat)_mm256_shuffle_ps(ab2, cd2, 0xee);
#else
  Quads t;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) t.v[j][i] = f.v[i][j];
  }
  f = t;
#endif
}

// The polynomial with these coefficients, the lowest power first.
template <int N>
inline vfloat polynomial(vfloat x, const float (&coefficients)[N]) {
  vfloat value = x * coefficients[N - 1] + coefficients[N - 2];
#pragma GCC unroll 16
  for (int i = N - 3; i >= 0; --i) value = value * x + coefficients[i];
  return value;
}

// See radius() and polar() of common/philox.h.
VDIFF_INLINE vfloat radius(vuint word) {
  const vfloat u = to_float(word) * 0x1p-32f + 0x1p-33f;
  const vint b = as_int(u), exponent = (b - kTwoThirds) >> 23;
  const vfloat f = as_float(b - (exponent << 23)) - 1.0f;
  return sqrt(f * polynomial(f, kLog) + __builtin_convertvector(exponent, vfloat) * kMinus2Ln2);
}

VDIFF_INLINE void polar(vfloat r, vuint word, vfloat& first, vfloat& second) {
  const vuint quadrant = (word + (1u << 29)) >> 30;
  const vfloat x = __builtin_convertvector((vint)(word - (quadrant << 30)), vfloat) * kAngle, z = x * x;
  const vint sine = as_int(x + (x * z) * polynomial(z, kSin));
  const vint cosine = as_int((1.0f - z * 0.5f) + (z * z) * polynomial(z, kCos));
  const vint odd = -(vint)(quadrant & 1u), differ = sine ^ cosine;
  const vint a = cosine ^ (differ & odd) ^ (vint)(((quadrant + 1u) & 2u) << 30);
  const vint b = sine ^ (differ & odd) ^ (vint)((quadrant & 2u) << 30);
  first = r * as_float(a), second = r * as_float(b);
}

// Draws the normals of one sample. The counters of the lanes are `stride` apart, in the order that transpose() brings
// into memory order.
class NormalGenerator {
 public:
  NormalGenerator(int64_t seed, int64_t sample, int64_t stream, int64_t stride) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)((uint64_t)seed >> 32);
    for (int round = 0; round < kRounds; ++round, key0 += kIncrement0, key1 += kIncrement1) {
      key0_[round] = key0, key1_[round] = key1;
    }
    sample_ = (uint32_t)sample, stream_ = (uint32_t)stream;
    constexpr int kGroups = kLanes / 4;
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t quad = (uint64_t)((i % 4) * kGroups + i / 4) * (uint64_t)stride;
      (i % 2 ? odd_ : even_)[i / 2] = quad;
    }
  }

  // The four normals of the counters quad + k * stride, k the place of the lane.
  VDIFF_INLINE Quads operator()(uint64_t quad) const {
    vulong a[4] = {even_ + quad, (even_ + quad) >> 32, vulong{} + sample_, vulong{} + stream_};
    vulong b[4] = {odd_ + quad, (odd_ + quad) >> 32, vulong{} + sample_, vulong{} + stream_};
#pragma GCC unroll 10
    for (int i = 0; i < kRounds; ++i) {
      round(a, i);
      round(b, i);
    }
    vuint words[4];
    for (int i = 0; i < 4; ++i) words[i] = (vuint)((a[i] & 0xffffffffu) | (b[i] << 32));
    Quads n;
    polar(radius(words[0]), words[1], n.v[0], n.v[1]);
    polar(radius(words[2]), words[3], n.v[2], n.v[3]);
    return n;
  }

 private:
  // The high 32 bits of the lanes are arbitrary in every round: multiply_low() ignores them, and operator() drops them.
  void round(vulong (&c)[4], int i) const {
    const vulong product0 = multiply_low(c[0], kMultiplier0), product1 = multiply_low(c[2], kMultiplier1);
    c[0] = (product1 >> 32) ^ c[1] ^ key0_[i], c[1] = product1;
    c[2] = (product0 >> 32) ^ c[3] ^ key1_[i], c[3] = product0;
  }

  uint64_t key0_[kRounds], key1_[kRounds], sample_, stream_;
  vulong even_, odd_;
};

// Positions per tile.
constexpr int kTile = 4 * kLanes;

// body(offset, normals, count) for the vectors of one tile, of which `left` positions remain.
template <class Body>
inline void visit_tile(Quads& f, int64_t offset, int64_t left, Body& body) {
  transpose(f);
  if (left >= kTile) {
    for (int i = 0; i < 4; ++i) body(offset + i * kLanes, f.v[i], kLanes);
    return;
  }
  for (int i = 0; i < 4 && left > 0; ++i, left -= kLanes) {
    body(offset + i * kLanes, f.v[i], left < kLanes ? (int)left : kLanes);
  }
}

// body(offset, normals, count) for vectors that cover the positions [begin, end) of a sample. It is stored as
// (channels, positions) and its elements are numbered e = position * channels + channel, so with one channel e is the
// offset. begin is a multiple of 4.
template <class Body>
inline void for_each(int64_t seed, int64_t sample, int64_t stream, int64_t channels, int64_t positions, int64_t begin,
                     int64_t end, Body body) {
  // Quads positions hold `channels` whole counters.
  const NormalGenerator draw(seed, sample, stream, channels);
  if (channels == 1) {
    for (int64_t at = begin; at < end; at += kTile) {
      Quads f = draw((uint64_t)at / 4);
      visit_tile(f, at, end - at, body);
    }
    return;
  }
  constexpr int kBlock = 16, kRow = kBlock + 8;
  vfloat words[4 * kRow];
  for (int64_t at = begin; at < end; at += kTile) {
    const uint64_t quad = (uint64_t)at / 4 * (uint64_t)channels;
    for (int64_t c0 = 0; c0 < channels; c0 += kBlock) {
      const int64_t c1 = c0 + kBlock < channels ? c0 + kBlock : channels;
      const vfloat* row[4];
      if (channels <= kBlock) {
        for (int64_t q = 0; q < channels; ++q) *(Quads*)(words + 4 * q) = draw(quad + q);
        for (int p = 0; p < 4; ++p) row[p] = words + p * channels;
      } else {
        for (int p = 0; p < 4; ++p) {
          const int64_t first = p * channels + c0, low = first / 4, high = (p * channels + c1 - 1) / 4;
          for (int64_t q = low; q <= high; ++q) *(Quads*)(words + p * kRow + 4 * (q - low)) = draw(quad + q);
          row[p] = words + p * kRow + (first - 4 * low);
        }
      }
      for (int64_t c = c0; c < c1; ++c) {
        Quads f = {{row[0][c - c0], row[1][c - c0], row[2][c - c0], row[3][c - c0]}};
        visit_tile(f, c * positions + at, end - at, body);
      }
    }
  }
}

}  // namespace vdiff::VDIFF_ISA::philox
