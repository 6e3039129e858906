// The CUDA blocks of group_norm_silu, forward and backward, written once for device and host.
//
// A thread copies its vectors into shared memory, sums them as they arrive, waits for the statistics of the groups, and
// applies these to the same vectors: x is read from global memory once. Only sums are exchanged: between the threads of
// a block, then between the slices of a group tile, in one of the ways of `Exchange`. With Exchange::split a second
// kernel loads the vectors again (Phase::reduce, then Phase::apply).
#pragma once

#include <type_traits>

#include "ops/group_norm_silu/cuda_backward.h"
#include "ops/group_norm_silu/cuda_forward.h"

namespace vdiff::group_norm {

template <class Cta, class T, bool kLast, bool kBackward>
using Block = std::conditional_t<kBackward, BackwardBlock<Cta, T, kLast>, ForwardBlock<Cta, T, kLast>>;

// The work of one block on one slice.
template <Phase kPhase, class Cta, class T, bool kLast, bool kBackward>
VDIFF_DEVICE void run_slice(Cta& cta, const Problem<T>& p, int64_t index, char* memory) {
  const Block<Cta, T, kLast, kBackward> block(cta, p, index, memory, 0);
  cta.each([&](int t) { block.load(t); });
  if constexpr (kPhase != Phase::apply) block.measure();
  if constexpr (kPhase == Phase::reduce) {
    block.template publish<typename Block<Cta, T, kLast, kBackward>::GroupSums>();
  } else {
    block.template finish<kPhase>();
  }
}

// The work of one block of a grid whose blocks all run at once: one slice after the other, each of another group tile.
// With two buffers it loads and measures the next slice while the blocks of a tile arrive at their counter.
template <class Cta, class T, bool kLast, bool kBackward>
VDIFF_DEVICE void run_iterations(Cta& cta, const Problem<T>& p, int64_t index, char* memory) {
  using One = Block<Cta, T, kLast, kBackward>;
  const Plan& plan = p.plan;
  const int iterations = static_cast<int>(ceil_div(plan.all_tiles() - index / plan.slices, plan.tiles_at_once));
  // Iterations that a slice waits between its sums and its output.
  const int lag = plan.buffers - 1;
  const auto at = [&](int i) { return One(cta, p, index + i * plan.blocks(), memory, i & lag); };
  cta.each([&](int t) { at(0).load(t); });
  for (int i = 0; i < iterations + lag; ++i) {
    if (i < iterations) {
      const One block = at(i);
      block.measure(), block.template publish<typename One::GroupSums>();
      cta.arrive(block.arrivals());
    }
    if (i >= lag) {
      const One block = at(i - lag);
      cta.await(block.arrivals(), static_cast<unsigned>(plan.slices));
      block.template finish<Phase::apply>();
    }
    if (i + 1 >= iterations) continue;
    const auto load = [&](int t) { at(i + 1).load(t); };  // over vectors that the same thread was the last to read
    if constexpr (kBackward) {
      cta.threads(load);  // until here all threads read tables that `measure` begins with
    } else {
      cta.each(load);
    }
  }
}

}  // namespace vdiff::group_norm
