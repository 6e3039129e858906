// Philox4x32-10 and Box-Muller with fixed fp32 polynomials: the numbers of vdiff_fast/_philox.py, for host and device.
// Products and sums are rounded separately on every target, so that the normals have the same bits everywhere. The
// CPU's vectorised version is in cpu/philox.h.
#pragma once

#include <stdint.h>

namespace vdiff::philox {

constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kIncrement0 = 0x9E3779B9u, kIncrement1 = 0xBB67AE85u;

// -2 log(m) = f * kLog(f) for f = m - 1 in [-1/3, 1/3]; lowest power first.
constexpr int kLogTerms = 9;
constexpr float kLog[kLogTerms] = {-2.0f,
                                   0.9999986290931702f,
                                   -0.6666633486747742f,
                                   0.5001605749130249f,
                                   -0.40023887157440186f,
                                   0.328255832195282f,
                                   -0.27975308895111084f,
                                   0.30806395411491394f,
                                   -0.28112196922302246f};
// sin(x) = x + x^3 kSin(x^2), cos(x) = 1 - x^2/2 + x^4 kCos(x^2) on [-pi/4, pi/4].
constexpr float kSin[3] = {-0.16666655242443085f, 0.008332177996635437f, -0.0001951729936990887f};
constexpr float kCos[3] = {0.04166664555668831f, -0.001388736767694354f, 2.4438451873720624e-05f};
constexpr float kMinus2Ln2 = -1.3862943649291992f;
constexpr float kAngle = 1.462918119976564e-09f;  // 2 pi / 2^32
constexpr int32_t kTwoThirds = 0x3F2AAAAB;

}  // namespace vdiff::philox

#if defined(__CUDACC__)
namespace vdiff::philox {

// What all elements of a sample have in common: the key, and the two upper words of the counter.
struct Stream {
  uint32_t key0, key1, sample, stream;
};

// b is the number of the sample in the batch. A null sample_offset or stream means 0.
__device__ __forceinline__ Stream make_stream(const int64_t* seed, const int64_t* sample_offset, const int64_t* stream,
                                              int64_t b) {
  const uint64_t key = static_cast<uint64_t>(*seed);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32),
          static_cast<uint32_t>((sample_offset ? *sample_offset : 0) + b), static_cast<uint32_t>(stream ? *stream : 0)};
}

// The four random words of counter `quad`.
__device__ __forceinline__ void words(const Stream& s, uint64_t quad, uint32_t (&c)[4]) {
  c[0] = static_cast<uint32_t>(quad), c[1] = static_cast<uint32_t>(quad >> 32), c[2] = s.sample, c[3] = s.stream;
  uint32_t key0 = s.key0, key1 = s.key1;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const uint32_t high0 = __umulhi(kMultiplier0, c[0]), low0 = kMultiplier0 * c[0];
    const uint32_t high1 = __umulhi(kMultiplier1, c[2]), low1 = kMultiplier1 * c[2];
    c[0] = high1 ^ c[1] ^ key0, c[1] = low1, c[2] = high0 ^ c[3] ^ key1, c[3] = low0;
    key0 += kIncrement0, key1 += kIncrement1;
  }
}

// value * x + c, rounded twice.
__device__ __forceinline__ float step(float value, float x, float c) { return __fadd_rn(__fmul_rn(value, x), c); }

// Device code cannot read a constexpr array of the host, but it can use constexpr variables.
template <int I>
constexpr float kLogTerm = kLog[I];
template <int I>
constexpr float kSinTerm = kSin[I];
template <int I>
constexpr float kCosTerm = kCos[I];

__device__ __forceinline__ float log_polynomial(float f) {
  float value = step(f, kLogTerm<8>, kLogTerm<7>);
  value = step(step(value, f, kLogTerm<6>), f, kLogTerm<5>);
  value = step(step(value, f, kLogTerm<4>), f, kLogTerm<3>);
  value = step(step(value, f, kLogTerm<2>), f, kLogTerm<1>);
  return step(value, f, kLogTerm<0>);
}

// The radius of Box and Muller: sqrt(-2 log u), u = word / 2^32 + 2^-33.
__device__ __forceinline__ float radius(uint32_t word) {
  const float u = __fadd_rn(__fmul_rn(__uint2float_rn(word), 0x1p-32f), 0x1p-33f);
  const int32_t bits = __float_as_int(u), exponent = (bits - kTwoThirds) >> 23;
  const float f = __fadd_rn(__int_as_float(bits - (exponent << 23)), -1.0f);
  return __fsqrt_rn(__fadd_rn(__fmul_rn(f, log_polynomial(f)), __fmul_rn(__int2float_rn(exponent), kMinus2Ln2)));
}

// The two normals of Box and Muller: r cos(a) and r sin(a), a = 2 pi word / 2^32.
__device__ __forceinline__ void polar(float r, uint32_t word, float& first, float& second) {
  const uint32_t quadrant = (word + (1u << 29)) >> 30;
  const float x = __fmul_rn(__int2float_rn(static_cast<int32_t>(word - (quadrant << 30))), kAngle), z = __fmul_rn(x, x);
  const float sine = __fadd_rn(x, __fmul_rn(__fmul_rn(x, z), step(step(z, kSinTerm<2>, kSinTerm<1>), z, kSinTerm<0>)));
  const float cosine = __fadd_rn(__fadd_rn(1.0f, -__fmul_rn(z, 0.5f)),
                                 __fmul_rn(__fmul_rn(z, z), step(step(z, kCosTerm<2>, kCosTerm<1>), z, kCosTerm<0>)));
  const bool odd = quadrant & 1;
  const uint32_t a = __float_as_uint(odd ? sine : cosine) ^ (((quadrant + 1) & 2u) << 30);
  const uint32_t b = __float_as_uint(odd ? cosine : sine) ^ ((quadrant & 2u) << 30);
  first = __fmul_rn(r, __uint_as_float(a)), second = __fmul_rn(r, __uint_as_float(b));
}

// The four normals of counter `quad`: elements 4 quad to 4 quad + 3 of the sample.
__device__ __forceinline__ void normals(const Stream& s, uint64_t quad, float (&n)[4]) {
  uint32_t w[4];
  words(s, quad, w);
  polar(radius(w[0]), w[1], n[0], n[1]);
  polar(radius(w[2]), w[3], n[2], n[3]);
}

}  // namespace vdiff::philox
#endif
