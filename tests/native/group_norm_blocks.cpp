// The blocks of csrc/ops/group_norm_silu/share.h played on the host. Built and called by
// tests/ops/test_group_norm_silu_blocks.py.
#include "ops/group_norm_silu/share.h"

#include <cstring>

#include "host_cta.h"

namespace {

using namespace vdiff::group_norm;

template <class T, bool kLast, bool kBackward, Phase kPhase>
void run_phase(const Problem<T>& p) {
  const int cluster = kPhase == Phase::whole ? static_cast<int>(p.shape.shares) : 1;
  run_grid(p.shape.blocks(), cluster, kThreads, Layout(p.shape, kBackward).bytes,
           [&](HostCta& cta, int64_t block, char* memory) {
             const Block<HostCta, T, kLast, kBackward> one(cta, p, block, memory);
             if constexpr (kBackward) {
               one.template backward<kPhase>();
             } else {
               one.template forward<kPhase>();
             }
           });
}

template <class T, bool kBackward, bool kLast>
void run(const Problem<T>& p) {
  if (p.shape.resident) return run_phase<T, kLast, kBackward, Phase::whole>(p);
  run_phase<T, kLast, kBackward, Phase::reduce>(p);
  run_phase<T, kLast, kBackward, Phase::apply>(p);
}

struct Call {
  void *x, *x2, *dy, *y, *y2;
  Vectors vectors;
  double eps;
  float *mean, *rstd, *dweight, *dbias, *dscale, *dshift, *dadd;
};

template <class T>
void run(const Call& call, const Shape& s, bool backward) {
  Problem<T> p{s, call.vectors, call.eps};
  p.x = static_cast<const T*>(call.x), p.x2 = static_cast<const T*>(call.x2), p.dy = static_cast<const T*>(call.dy);
  p.y = static_cast<T*>(call.y), p.y2 = static_cast<T*>(call.y2), p.mean = call.mean, p.rstd = call.rstd;
  std::vector<double> group_sums(3 * s.blocks() * s.slab_groups, NAN), sums(3 * s.vectors(), NAN);
  std::vector<float> channel_sums(3 * s.vectors() * s.cuts, NAN);
  p.group_sums = group_sums.data(), p.channel_sums = channel_sums.data();
  if (!backward) return s.channels_last ? run<T, false, true>(p) : run<T, false, false>(p);
  s.channels_last ? run<T, true, true>(p) : run<T, true, false>(p);
  const int64_t warps = kThreads / kWarp;
  run_grid((s.vectors() + warps - 1) / warps, 1, kThreads, 0,
           [&](HostCta& cta, int64_t block, char*) { fold_cuts(cta, s, block, channel_sums.data(), sums.data()); });
  const Vectors& v = call.vectors;
  for (int64_t c = 0; c < s.channels; ++c) {
    call.dweight[c] = channel_gradient<true>(s, v, sums.data(), c);
    call.dbias[c] = channel_gradient<false>(s, v, sums.data(), c);
  }
  const auto framed = [&](Framed which, int64_t frames, float* out) {
    for (int64_t i = 0; i < s.batch * frames * s.channels; ++i) {
      out[i] = frame_gradient(s, v, sums.data(), which, frames, i);
    }
  };
  framed(kScale, v.scale_frames, call.dscale), framed(kShift, v.shift_frames, call.dshift);
  framed(kAdd, 1, call.dadd);
}

// sizes: batch, c1, c2, groups, segments, length, unit_segments, scale_frames, shift_frames, channels_last, silu,
// element, backward. device: multiprocessors, shared bytes, clusters. plan gets resident, shares, aligned, shared
// bytes.
Shape planned(const int64_t* sizes, const int64_t* device, bool on_packs, int64_t* plan) {
  Shape s{};
  s.batch = sizes[0], s.c1 = sizes[1], s.c2 = sizes[2], s.channels = s.c1 + s.c2, s.groups = sizes[3];
  s.per_group = s.channels / s.groups, s.segments = sizes[4], s.length = sizes[5], s.unit_segments = sizes[6];
  s.units = s.batch * s.segments / s.unit_segments;
  s.channels_last = sizes[9] != 0, s.silu = sizes[10] != 0, s.element = static_cast<int>(sizes[11]);
  const bool backward = sizes[12] != 0;
  choose(s, {device[0], device[1], device[2] != 0}, backward, on_packs);
  plan[0] = s.resident, plan[1] = s.shares, plan[2] = s.aligned, plan[3] = Layout(s, backward).bytes;
  return s;
}

}  // namespace

// tensors: x, x2, dy, y (or dx), dx2, weight, bias, scale, shift, add, mean, rstd, dweight, dbias, dscale, dshift,
// dadd.
extern "C" void group_norm_blocks(void* const* tensors, const int64_t* sizes, double eps, const int64_t* device,
                                  int64_t* plan) {
  const auto floats = [&](int i) { return static_cast<float*>(tensors[i]); };
  const Call call{tensors[0], tensors[1], tensors[2],
                  tensors[3], tensors[4], {floats(5), floats(6), floats(7), floats(8), floats(9), sizes[7], sizes[8]},
                  eps,        floats(10), floats(11),
                  floats(12), floats(13), floats(14),
                  floats(15), floats(16)};
  bool on_packs = true;
  for (int i = 0; i < 5; ++i) on_packs = on_packs && reinterpret_cast<uintptr_t>(tensors[i]) % kBytesAPack == 0;
  const Shape s = planned(sizes, device, on_packs, plan);
  const bool backward = sizes[12] != 0;
  s.element == 4 ? run<float>(call, s, backward) : run<Bfloat16>(call, s, backward);
}

// The plan alone, of a shape too large to play.
extern "C" void group_norm_plan(const int64_t* sizes, const int64_t* device, int64_t* plan) {
  planned(sizes, device, true, plan);
}
