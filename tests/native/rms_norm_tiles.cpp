// The blocks of csrc/ops/rms_norm_silu/cuda_block.h played on the host. Built and called by
// tests/ops/test_rms_norm_silu_tiles.py.
#include "ops/rms_norm_silu/cuda_block.h"

#include "host_cta.h"

namespace {

using namespace vdiff::rms_norm;

struct Call {
  void *x, *dy, *y;
  ChannelInputs inputs;
  double eps;
  float *rstd, *dweight, *dscale, *dshift;
};

template <class T, bool kLast, bool kBackward>
void play(const Problem<T>& p) {
  run_grid(p.plan.blocks(), 1, kThreads, Layout(p.plan, kBackward).bytes,
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
void run(const Call& call, const Plan& plan, bool backward) {
  Problem<T> p{plan, call.inputs, call.eps};
  p.x = static_cast<const T*>(call.x), p.dy = static_cast<const T*>(call.dy), p.y = static_cast<T*>(call.y);
  p.rstd = call.rstd;
  if (!backward) return plan.channels_last ? play<T, true, false>(p) : play<T, false, false>(p);
  std::vector<float> parts(3 * plan.segment_channels() * plan.cuts, NAN);
  std::vector<double> sums(3 * plan.segment_channels(), NAN);
  p.channel_sums = parts.data();
  plan.channels_last ? play<T, true, true>(p) : play<T, false, true>(p);
  const int64_t warps = kThreads / kWarp;
  run_grid((plan.segment_channels() + warps - 1) / warps, 1, kThreads, 0, [&](HostCta& cta, int64_t block, char*) {
    fold_cuts(cta, plan, plan.cuts, block, parts.data(), sums.data());
  });
  const ChannelInputs& v = call.inputs;
  for (int64_t c = 0; c < plan.channels; ++c) call.dweight[c] = channel_gradient<true>(plan, v, sums.data(), c);
  for (int64_t i = 0; i < plan.batch * v.scale_frames * plan.channels; ++i) {
    call.dscale[i] = frame_gradient(plan, v, sums.data(), kScale, v.scale_frames, i);
  }
  for (int64_t i = 0; i < plan.batch * v.shift_frames * plan.channels; ++i) {
    call.dshift[i] = frame_gradient(plan, v, sums.data(), kShift, v.shift_frames, i);
  }
}

}  // namespace

// tensors: x, dy, y (or dx), weight, scale, shift, rstd, dweight, dscale, dshift. sizes: batch, channels, segments,
// length, scale_frames, shift_frames, channels_last, silu, element, backward, shared bytes. numbers gets resident,
// aligned, shared bytes, tiles.
extern "C" void rms_norm_tiles(void* const* tensors, const int64_t* sizes, double eps, int64_t* numbers) {
  const auto floats = [&](int i) { return static_cast<float*>(tensors[i]); };
  const Call call{
      tensors[0], tensors[1], tensors[2], {floats(3), nullptr, floats(4), floats(5), nullptr, sizes[4], sizes[5]},
      eps,        floats(6),  floats(7),  floats(8),
      floats(9)};
  Plan plan{};
  plan.batch = sizes[0], plan.channels = sizes[1], plan.segments = sizes[2], plan.length = sizes[3];
  plan.channels_last = sizes[6] != 0, plan.silu = sizes[7] != 0, plan.element = static_cast<int>(sizes[8]);
  const bool backward = sizes[9] != 0;
  bool on_vectors = true;
  for (int i = 0; i < 3; ++i) on_vectors = on_vectors && reinterpret_cast<uintptr_t>(tensors[i]) % kVectorBytes == 0;
  choose(plan, sizes[10], backward, on_vectors);
  numbers[0] = plan.resident, numbers[1] = plan.aligned, numbers[2] = Layout(plan, backward).bytes,
  numbers[3] = plan.tiles;
  plan.element == 4 ? run<float>(call, plan, backward) : run<Bfloat16>(call, plan, backward);
}
