// The blocks of csrc/ops/rms_norm_silu/cuda_block.h played on the host. Built and called by
// tests/ops/test_rms_norm_silu_tiles.py.
#include "ops/rms_norm_silu/cuda_block.h"

#include "host_cta.h"

namespace {

using namespace vdiff::rms_norm;

struct Call {
  void *x, *dy, *y;
  Vectors vectors;
  double eps;
  float *rstd, *dweight, *dscale, *dshift;
};

template <class T, bool kLast, bool kBackward>
void play(const Problem<T>& p) {
  run_grid(p.shape.blocks(), 1, kThreads, Layout(p.shape, kBackward).bytes,
           [&](HostCta& cta, int64_t block, char* memory) {
             const Block<HostCta, T, kLast, kBackward> one(cta, p, block, memory);
             if constexpr (kBackward) {
               one.backward();
             } else {
               one.forward();
             }
           });
}

template <class T>
void run(const Call& call, const Shape& s, bool backward) {
  Problem<T> p{s, call.vectors, call.eps};
  p.x = static_cast<const T*>(call.x), p.dy = static_cast<const T*>(call.dy), p.y = static_cast<T*>(call.y);
  p.rstd = call.rstd;
  if (!backward) return s.channels_last ? play<T, true, false>(p) : play<T, false, false>(p);
  std::vector<float> parts(3 * s.vectors() * s.cuts, NAN);
  std::vector<double> sums(3 * s.vectors(), NAN);
  p.channel_sums = parts.data();
  s.channels_last ? play<T, true, true>(p) : play<T, false, true>(p);
  const int64_t warps = kThreads / kWarp;
  run_grid((s.vectors() + warps - 1) / warps, 1, kThreads, 0,
           [&](HostCta& cta, int64_t block, char*) { fold_cuts(cta, s, block, parts.data(), sums.data()); });
  const Vectors& v = call.vectors;
  for (int64_t c = 0; c < s.channels; ++c) call.dweight[c] = channel_gradient<true>(s, v, sums.data(), c);
  for (int64_t i = 0; i < s.batch * v.scale_frames * s.channels; ++i) {
    call.dscale[i] = frame_gradient(s, v, sums.data(), kScale, v.scale_frames, i);
  }
  for (int64_t i = 0; i < s.batch * v.shift_frames * s.channels; ++i) {
    call.dshift[i] = frame_gradient(s, v, sums.data(), kShift, v.shift_frames, i);
  }
}

}  // namespace

// tensors: x, dy, y (or dx), weight, scale, shift, rstd, dweight, dscale, dshift. sizes: batch, channels, segments,
// length, scale_frames, shift_frames, channels_last, silu, element, backward, shared bytes. plan gets resident,
// aligned, shared bytes, tiles.
extern "C" void rms_norm_tiles(void* const* tensors, const int64_t* sizes, double eps, int64_t* plan) {
  const auto floats = [&](int i) { return static_cast<float*>(tensors[i]); };
  const Call call{
      tensors[0], tensors[1], tensors[2], {floats(3), nullptr, floats(4), floats(5), nullptr, sizes[4], sizes[5]},
      eps,        floats(6),  floats(7),  floats(8),
      floats(9)};
  Shape s{};
  s.batch = sizes[0], s.channels = sizes[1], s.segments = sizes[2], s.length = sizes[3];
  s.channels_last = sizes[6] != 0, s.silu = sizes[7] != 0, s.element = static_cast<int>(sizes[8]);
  const bool backward = sizes[9] != 0;
  bool on_packs = true;
  for (int i = 0; i < 3; ++i) on_packs = on_packs && reinterpret_cast<uintptr_t>(tensors[i]) % kBytesAPack == 0;
  choose(s, sizes[10], backward, on_packs);
  plan[0] = s.resident, plan[1] = s.aligned, plan[2] = Layout(s, backward).bytes, plan[3] = s.tiles;
  s.element == 4 ? run<float>(call, s, backward) : run<Bfloat16>(call, s, backward);
}
