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
  const int cluster = kPhase == Phase::whole ? static_cast<int>(p.plan.slices) : 1;
  run_grid(p.plan.blocks(), cluster, kThreads, Layout(p.plan, kBackward).bytes,
           [&](HostCta& cta, int64_t block, char* memory) {
             run_slice<kPhase, HostCta, T, kLast, kBackward>(cta, p, block, memory);
           });
}

// False where blocks of a grid wait for others in vain.
template <class T, bool kBackward, bool kLast>
bool run(const Problem<T>& p, HostGrid& grid) {
  if (p.plan.exchange == Exchange::grid) {
    return run_at_once(p.plan.blocks(), kThreads, Layout(p.plan, kBackward).bytes, grid,
                       [&](HostCta& cta, int64_t block, char* memory) {
                         run_iterations<HostCta, T, kLast, kBackward>(cta, p, block, memory);
                       });
  }
  if (p.plan.exchange == Exchange::cluster) {
    run_phase<T, kLast, kBackward, Phase::whole>(p);
  } else {
    run_phase<T, kLast, kBackward, Phase::reduce>(p);
    run_phase<T, kLast, kBackward, Phase::apply>(p);
  }
  return true;
}

struct Call {
  void *x, *x2, *dy, *y, *y2;
  ChannelInputs inputs;
  double eps;
  float *mean, *rstd, *dweight, *dbias, *dscale, *dshift, *dadd;
};

template <class T>
bool run(const Call& call, const Plan& plan, bool backward, HostGrid& grid) {
  Problem<T> p{plan, call.inputs, call.eps};
  p.x = static_cast<const T*>(call.x), p.x2 = static_cast<const T*>(call.x2), p.dy = static_cast<const T*>(call.dy);
  p.y = static_cast<T*>(call.y), p.y2 = static_cast<T*>(call.y2), p.mean = call.mean, p.rstd = call.rstd;
  std::vector<double> group_sums(3 * plan.all_slices() * plan.tile_groups, NAN), sums(3 * plan.segment_channels(), NAN);
  std::vector<float> channel_sums(3 * plan.segment_channels() * plan.cuts, NAN);
  std::vector<unsigned> arrivals(plan.all_tiles());
  p.group_sums = group_sums.data(), p.channel_sums = channel_sums.data(), p.arrivals = arrivals.data();
  if (!backward) return plan.channels_last ? run<T, false, true>(p, grid) : run<T, false, false>(p, grid);
  if (!(plan.channels_last ? run<T, true, true>(p, grid) : run<T, true, false>(p, grid))) return false;
  const int64_t warps = kThreads / kWarp;
  run_grid((plan.segment_channels() + warps - 1) / warps, 1, kThreads, 0, [&](HostCta& cta, int64_t block, char*) {
    fold_cuts(cta, plan, plan.cuts, block, channel_sums.data(), sums.data());
  });
  const ChannelInputs& v = call.inputs;
  for (int64_t c = 0; c < plan.channels; ++c) {
    call.dweight[c] = channel_gradient<true>(plan, v, sums.data(), c);
    call.dbias[c] = channel_gradient<false>(plan, v, sums.data(), c);
  }
  const auto framed = [&](Framed which, int64_t frames, float* out) {
    for (int64_t i = 0; i < plan.batch * frames * plan.channels; ++i) {
      out[i] = frame_gradient(plan, v, sums.data(), which, frames, i);
    }
  };
  framed(kScale, v.scale_frames, call.dscale), framed(kShift, v.shift_frames, call.dshift);
  framed(kAdd, 1, call.dadd);
  return true;
}

// sizes: batch, c1, c2, groups, segments, length, segments_per_unit, scale_frames, shift_frames, channels_last, silu,
// element, backward. device: multiprocessors, shared bytes, clusters, cooperative. numbers gets exchange, slices,
// aligned, shared bytes, tiles_at_once, buffers, iterations.
Plan planned(const int64_t* sizes, const int64_t* device, bool on_vectors, int64_t* numbers) {
  Plan plan{};
  plan.batch = sizes[0], plan.source_channels[0] = sizes[1], plan.source_channels[1] = sizes[2];
  plan.channels = sizes[1] + sizes[2], plan.groups = sizes[3], plan.per_group = plan.channels / plan.groups;
  plan.segments = sizes[4], plan.length = sizes[5], plan.segments_per_unit = sizes[6];
  plan.units = plan.batch * plan.segments / plan.segments_per_unit;
  plan.channels_last = sizes[9] != 0, plan.silu = sizes[10] != 0, plan.element = static_cast<int>(sizes[11]);
  const bool backward = sizes[12] != 0;
  choose(plan, {device[0], device[1], device[2] != 0, device[3] != 0}, backward, on_vectors);
  const bool grid = plan.exchange == Exchange::grid;
  numbers[0] = static_cast<int64_t>(plan.exchange), numbers[1] = plan.slices, numbers[2] = plan.aligned;
  numbers[3] = Layout(plan, backward).bytes, numbers[4] = plan.tiles_at_once, numbers[5] = plan.buffers;
  numbers[6] = grid ? vdiff::ceil_div(plan.all_tiles(), plan.tiles_at_once) : 0;
  return plan;
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
                                 const int64_t* play, int64_t* numbers) {
  const auto floats = [&](int i) { return static_cast<float*>(tensors[i]); };
  const Call call{tensors[0], tensors[1], tensors[2],
                  tensors[3], tensors[4], {floats(5), floats(6), floats(7), floats(8), floats(9), sizes[7], sizes[8]},
                  eps,        floats(10), floats(11),
                  floats(12), floats(13), floats(14),
                  floats(15), floats(16)};
  bool on_vectors = true;
  for (int i = 0; i < 5; ++i) on_vectors = on_vectors && reinterpret_cast<uintptr_t>(tensors[i]) % kVectorBytes == 0;
  const Plan plan = planned(sizes, device, on_vectors, numbers);
  const bool backward = sizes[12] != 0;
  HostGrid grid{play[1] > 0 ? play[1] : held_blocks(device, numbers[3]), play[0] != 0};
  grid.patience = std::chrono::milliseconds(play[2]);
  if (play[3] != 0) grid.from = grid.back = plan.data_bytes(backward);
  return plan.element == 4 ? run<float>(call, plan, backward, grid) : run<Bfloat16>(call, plan, backward, grid);
}

// The plan alone, of a shape too large to play.
extern "C" void group_norm_plan(const int64_t* sizes, const int64_t* device, int64_t* numbers) {
  planned(sizes, device, true, numbers);
}
