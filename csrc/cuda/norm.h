// What the blocks of the norms share, for device and host (`Cta` is csrc/cuda/cta.cuh or its counterpart in the tests):
// packs of 16 bytes on their way through shared memory, the activation, per-channel vectors and the gradients of them.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/host_device.h"

namespace vdiff::norm {

constexpr int kThreads = 256, kWarp = 32, kBytesAPack = 16;
// Batches in which a thread's packs arrive: the first are summed while the last are under way.
constexpr int kStages = 4;

VDIFF_HOST_DEVICE int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }
VDIFF_HOST_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
VDIFF_HOST_DEVICE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct alignas(kBytesAPack) Pack {
  T v[kBytesAPack / sizeof(T)];
};

// The batches of one thread, of `slots` packs each.
struct Batches {
  int slots, done = 0;

  VDIFF_DEVICE explicit Batches(int total) : slots((total + kStages - 1) / kStages) {}
  // Before a copy into `slot`, and after the last.
  template <class Cta>
  VDIFF_DEVICE void close_before(Cta& cta, int slot) {
    for (; done < slot / slots; ++done) cta.commit();
  }
  template <class Cta>
  VDIFF_DEVICE void close(Cta& cta) {
    for (; done < kStages; ++done) cta.commit();
  }
  // Waits until `slot` is there.
  template <class Cta>
  VDIFF_DEVICE void await(Cta& cta, int slot) {
    while (done * slots <= slot) cta.wait(kStages - ++done);
  }
};

template <class Cta>
VDIFF_DEVICE float sigmoid(const Cta& cta, float z) {
  return cta.quotient(1.0f, 1.0f + cta.exp(-z));
}
template <class Cta>
VDIFF_DEVICE float activated(const Cta& cta, float z, bool silu) {
  return silu ? z * sigmoid(cta, z) : z;
}
// dy times the derivative of the activation at z.
template <class Cta>
VDIFF_DEVICE float through_activation(const Cta& cta, float dy, float z, bool silu) {
  if (!silu) return dy;
  const float s = sigmoid(cta, z);
  return dy * s * (1.0f + z * (1.0f - s));
}

// x is batch x segments x ... x channels; a segment is read by blocks of `cuts` kinds.
struct Segments {
  int64_t batch, segments, channels, cuts;

  VDIFF_HOST_DEVICE int64_t vectors() const { return batch * segments * channels; }
};

// Per-channel inputs as float32, nullptr where absent.
struct Vectors {
  const float *weight, *bias, *scale, *shift, *add;
  int64_t scale_frames, shift_frames;
};

VDIFF_HOST_DEVICE double framed(const Segments& s, const float* values, int64_t frames, int64_t segment, int64_t c) {
  if (values == nullptr) return 0.0;
  const int64_t sample = segment / s.segments, frame = frames > 1 ? segment - sample * s.segments : 0;
  return values[(sample * frames + frame) * s.channels + c];
}
VDIFF_HOST_DEVICE double weight_of(const Vectors& v, int64_t c) { return v.weight == nullptr ? 1.0 : v.weight[c]; }
VDIFF_HOST_DEVICE double bias_of(const Vectors& v, int64_t c) { return v.bias == nullptr ? 0.0 : v.bias[c]; }
VDIFF_HOST_DEVICE double factor_of(const Segments& s, const Vectors& v, int64_t segment, int64_t c) {
  return 1.0 + framed(s, v.scale, v.scale_frames, segment, c);
}
VDIFF_HOST_DEVICE float add_of(const Segments& s, const Vectors& v, int64_t segment, int64_t c) {
  return v.add == nullptr ? 0.0f : v.add[segment / s.segments * s.channels + c];
}

// Three sums of every (segment, cut, channel) become those of every (segment, channel), by a warp each: of g, g * n,
// and dx where `add` wants it; g = dy * act'(z), n the normalised x.
template <class Cta>
VDIFF_DEVICE void fold_cuts(Cta& cta, const Segments& s, int64_t block, const float* parts, double* sums) {
  struct Triple {
    double v[3];
  };
  const auto vector = [&](int t) { return block * (kThreads / kWarp) + t / kWarp; };
  cta.template lanes<Triple>(
      kWarp,
      [&](int t) {
        Triple total{};
        const int64_t i = vector(t), segment = i / s.channels, c = i - segment * s.channels;
        for (int64_t cut = t % kWarp; cut < s.cuts && i < s.vectors(); cut += kWarp) {
          for (int k = 0; k < 3; ++k) total.v[k] += parts[3 * ((segment * s.cuts + cut) * s.channels + c) + k];
        }
        return total;
      },
      [](Triple& a, const Triple& b) {
        for (int k = 0; k < 3; ++k) a.v[k] += b.v[k];
      },
      [&](int t, const Triple& total) {
        if (vector(t) >= s.vectors()) return;
        for (int k = 0; k < 3; ++k) sums[3 * vector(t) + k] = total.v[k];
      });
}

// Gradient of weight (kWeight) or bias in one channel, from those sums.
template <bool kWeight>
VDIFF_HOST_DEVICE float channel_gradient(const Segments& s, const Vectors& v, const double* sums, int64_t c) {
  double total = 0;
  for (int64_t segment = 0; segment < s.batch * s.segments; ++segment) {
    total += factor_of(s, v, segment, c) * sums[3 * (segment * s.channels + c) + (kWeight ? 1 : 0)];
  }
  return static_cast<float>(total);
}

enum Framed { kScale, kShift, kAdd };
// Element i of the gradient of scale, shift or add, (batch, frames, channels).
VDIFF_HOST_DEVICE float frame_gradient(const Segments& s, const Vectors& v, const double* sums, Framed which,
                                       int64_t frames, int64_t i) {
  const int64_t row = i / s.channels, c = i - row * s.channels, folded = frames > 1 ? 1 : s.segments;
  double total = 0;
  for (int64_t segment = row * folded; segment < (row + 1) * folded; ++segment) {
    const double* from = sums + 3 * (segment * s.channels + c);
    total += which == kScale   ? weight_of(v, c) * from[1] + bias_of(v, c) * from[0]
             : which == kShift ? from[0]
                               : from[2];
  }
  return static_cast<float>(total);
}

}  // namespace vdiff::norm
