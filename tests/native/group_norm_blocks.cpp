// The blocks of csrc/ops/group_norm_silu/cuda_block.h played on the host. Built and called by
// tests/ops/test_group_norm_silu_blocks.py.
#include "ops/group_norm_silu/cuda_block.h"

#include <algorithm>
#include <cstring>

#include "host_cta.h"

namespace {

using namespace vdiff::group_norm;

template <class T, bool kLast, bool kBackward, Phase kPhase>
void run_phase(const Problem<T>& p) {
  const int cluster = kPhase == Phase::whole ? static_cast<int>(p.shape.shares) : 1;
  run_grid(p.shape.blocks(), cluster, kThreads, Layout(p.shape, kBackward).bytes,
           [&](HostCta& cta, int64_t block, char* memory) {
             Block<HostCta, T, kLast, kBackward>(cta, p, block, memory).template run<kPhase>();
           });
}

// False where blocks of a grid wait for others in vain.
template <class T, bool kBackward, bool kLast>
bool run(const Problem<T>& p, HostGrid& grid) {
  if (p.shape.way == Way::grid) {
    return run_at_once(p.shape.blocks(), kThreads, Layout(p.shape, kBackward).bytes, grid,
                       [&](HostCta& cta, int64_t block, char* memory) {
                         take_turns<HostCta, T, kLast, kBackward>(cta, p, block, memory);
                       });
  }
  if (p.shape.way == Way::cluster) {
    run_phase<T, kLast, kBackward, Phase::whole>(p);
  } else {
    run_phase<T, kLast, kBackward, Phase::reduce>(p);
    run_phase<T, kLast, kBackward, Phase::apply>(p);
  }
  return true;
}

struct Call {
  void *x, *x2, *dy, *y, *y2;
  Vectors vectors;
  double eps;
  float *mean, *rstd, *dweight, *dbias, *dscale, *dshift, *dadd;
};

template <class T>
bool run(const Call& call, const Shape& s, bool backward, HostGrid& grid) {
  Problem<T> p{s, call.vectors, call.eps};
  p.x = static_cast<const T*>(call.x), p.x2 = static_cast<const T*>(call.x2), p.dy = static_cast<const T*>(call.dy);
  p.y = static_cast<T*>(call.y), p.y2 = static_cast<T*>(call.y2), p.mean = call.mean, p.rstd = call.rstd;
  std::vector<double> group_sums(3 * s.all_shares() * s.slab_groups, NAN), sums(3 * s.vectors(), NAN);
  std::vector<float> channel_sums(3 * s.vectors() * s.cuts, NAN);
  std::vector<unsigned> arrivals(s.items());
  p.group_sums = group_sums.data(), p.channel_sums = channel_sums.data(), p.arrivals = arrivals.data();
  if (!backward) return s.channels_last ? run<T, false, true>(p, grid) : run<T, false, false>(p, grid);
  if (!(s.channels_last ? run<T, true, true>(p, grid) : run<T, true, false>(p, grid))) return false;
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
  return true;
}

// sizes: batch, c1, c2, groups, segments, length, unit_segments, scale_frames, shift_frames, channels_last, silu,
// element, backward. device: multiprocessors, shared bytes, clusters, cooperative. plan gets way, shares, aligned,
// shared bytes, teams, buffers, turns.
Shape planned(const int64_t* sizes, const int64_t* device, bool on_packs, int64_t* plan) {
  Shape s{};
  s.batch = sizes[0], s.c1 = sizes[1], s.c2 = sizes[2], s.channels = s.c1 + s.c2, s.groups = sizes[3];
  s.per_group = s.channels / s.groups, s.segments = sizes[4], s.length = sizes[5], s.unit_segments = sizes[6];
  s.units = s.batch * s.segments / s.unit_segments;
  s.channels_last = sizes[9] != 0, s.silu = sizes[10] != 0, s.element = static_cast<int>(sizes[11]);
  const bool backward = sizes[12] != 0;
  choose(s, {device[0], device[1], device[2] != 0, device[3] != 0}, backward, on_packs);
  plan[0] = static_cast<int64_t>(s.way), plan[1] = s.shares, plan[2] = s.aligned, plan[3] = Layout(s, backward).bytes;
  plan[4] = s.teams, plan[5] = s.buffers, plan[6] = s.way == Way::grid ? ceil_of(s.items(), s.teams) : 0;
  return s;
}

// Blocks that a device runs at once: a multiprocessor has a kilobyte more than one block may ask for, reserves one for
// each block, and has registers for two.
int64_t held_blocks(const int64_t* device, int64_t bytes) {
  const int64_t kilobyte = 1 << 10;
  return device[0] * std::min<int64_t>((device[1] + kilobyte) / (bytes + kilobyte), 2);
}

}  // namespace

// tensors: x, x2, dy, y (or dx), dx2, weight, bias, scale, shift, add, mean, rstd, dweight, dbias, dscale, dshift,
// dadd. play, of a grid: 1 where copies land at once, blocks that run at once (0: all that the device holds),
// milliseconds to wait for others, 1 where the second buffer's copies land in the first. Returns 0 where blocks wait in
// vain.
extern "C" int group_norm_blocks(void* const* tensors, const int64_t* sizes, double eps, const int64_t* device,
                                 const int64_t* play, int64_t* plan) {
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
  HostGrid grid{play[1] > 0 ? play[1] : held_blocks(device, plan[3]), play[0] != 0};
  grid.patience = std::chrono::milliseconds(play[2]);
  if (play[3] != 0) grid.from = grid.back = s.data_bytes(backward);
  return s.element == 4 ? run<float>(call, s, backward, grid) : run<Bfloat16>(call, s, backward, grid);
}

// The plan alone, of a shape too large to play.
extern "C" void group_norm_plan(const int64_t* sizes, const int64_t* device, int64_t* plan) {
  planned(sizes, device, true, plan);
}
