// The noise of a task in the memory order of a sample, its frames correlated or not. For cpu_kernel.cpp files.
#pragma once

#include "cpu/noise_source.h"
#include "cpu/philox.h"

namespace vdiff::VDIFF_ISA::philox {

// The noise of one frame after the other for a piece of a task, as runs that come in the same order from every frame.
// A sample is (channels, positions). Where every frame begins with a counter, a piece is a range of a frame's
// positions; elsewhere, and with more channels than a task holds, one of its elements in the order of e.
class FrameRuns {
 public:
  static constexpr int64_t kRuns = kTaskElements / kLanes;

  FrameRuns(const NoiseSource& source, int64_t sample, int64_t channels, int64_t positions)
      : source_(source),
        sample_(source.sample_offset + sample),
        channels_(channels),
        positions_(positions),
        frame_positions_(positions / source.correlation.frames),
        whole_(frame_positions_ % 4 == 0 && channels * kWidestTile <= kTaskElements) {}

  // body(begin, end) for the pieces of a frame's positions [begin, end).
  template <class Body>
  void each_piece(int64_t begin, int64_t end, const Body& body) const {
    if (whole_) return body(begin, end);
    const int64_t most = channels_ == 1 ? kTaskElements : kRuns;
    for (int64_t first = begin * channels_; first < end * channels_; first += most) {
      body(first, first + most < end * channels_ ? first + most : end * channels_);
    }
  }

  // Before a piece's first frame: what all frames share.
  void share(int64_t begin, int64_t end) {
    if (source_.correlation.progressive) return;
    size_ = 0;
    const auto keep = [this](int64_t, vfloat n, int) { carried_[size_++] = n; };
    draw(source_.stream ^ (int64_t)kSharedStream, frame_positions_, 0, begin, end, keep);
  }

  // The runs of the piece in frame `frame`.
  void advance(int64_t frame, int64_t begin, int64_t end) {
    size_ = 0;
    const FrameCorrelation& c = source_.correlation;
    const bool first = c.progressive && frame == 0;
    draw(source_.stream, positions_, frame * frame_positions_, begin, end, [&, this](int64_t at, vfloat n, int count) {
      const vfloat z = first ? n : splat(c.shared) * carried_[size_] + splat(c.own) * n;
      if (c.progressive) carried_[size_] = z;
      noise_[size_] = z, at_[size_] = at, count_[size_++] = count;
    });
  }

  template <class Body>
  void each_run(Body& body) const {
    for (int64_t i = 0; i < size_; ++i) body(at_[i], noise_[i], count_[i]);
  }

 private:
  // emit(offset, normals, count) for a piece of the frame that begins at position `frame` of a sample of `positions`.
  template <class Emit>
  inline void draw(int64_t stream, int64_t positions, int64_t frame, int64_t begin, int64_t end, Emit emit) const {
    if (whole_) {
      return for_each(source_.seed, sample_, stream, channels_, positions, frame + begin, frame + end, emit);
    }
    // A counter that begins before the piece is drawn with it.
    alignas(64) float drawn[kTaskElements + 2 * kTile];
    const int64_t skip = frame * channels_, first = (skip + begin) / 4 * 4;
    for_each(source_.seed, sample_, stream, 1, skip + end, first, skip + end,
             [&](int64_t at, vfloat n, int) { store(drawn + (at - first), n); });
    const float* n = drawn + (skip + begin - first);
    const int most = channels_ == 1 ? kLanes : 1;
    for (int64_t i = 0; i < end - begin; i += most) {
      const int64_t e = skip + begin + i, left = end - begin - i;
      emit(e % channels_ * positions + e / channels_, load(n + i), left < most ? (int)left : most);
    }
  }

  const NoiseSource& source_;
  const int64_t sample_, channels_, positions_, frame_positions_;
  const bool whole_;
  int64_t size_ = 0;
  vfloat carried_[kRuns], noise_[kRuns];
  int64_t at_[kRuns];
  int count_[kRuns];
};

// body(offset, noise, count) for the positions [begin, end) of a sample, or where its frames are correlated for those
// of every frame; see the plain for_each.
template <class Body>
inline void for_each(const NoiseSource& s, int64_t sample, int64_t channels, int64_t positions, int64_t begin,
                     int64_t end, Body body) {
  if (s.correlation.frames == 0) {
    return for_each(s.seed, s.sample_offset + sample, s.stream, channels, positions, begin, end, body);
  }
  FrameRuns runs(s, sample, channels, positions);
  runs.each_piece(begin, end, [&](int64_t first, int64_t last) {
    runs.share(first, last);
    for (int64_t frame = 0; frame < s.correlation.frames; ++frame) {
      runs.advance(frame, first, last);
      runs.each_run(body);
    }
  });
}

}  // namespace vdiff::VDIFF_ISA::philox
