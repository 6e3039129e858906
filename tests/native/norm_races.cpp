// The blocks of both norms with a thread of the host for every thread of the device, under ThreadSanitizer: a missing
// barrier is a data race. Lanes of a warp exchange values without ordering memory, as shuffles do. With the argument
// "barriers", those of a block wait for nobody; with "meetings", nobody waits for a grid's counters: races must be
// found.
#include "ops/group_norm_silu/cuda_block.h"
#include "ops/rms_norm_silu/cuda_block.h"

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace {

using namespace vdiff::norm;

bool barriers = true, meetings = true;

struct Warp {
  std::atomic<uint32_t> words[kWarp][16];
  std::atomic<int> arrived{0};

  // All lanes meet, without an order between what they did before and after.
  void meet(int& target) {
    target += kWarp;
    arrived.fetch_add(1, std::memory_order_relaxed);
    while (arrived.load(std::memory_order_relaxed) < target) std::this_thread::yield();
  }
};

struct BlockState {
  std::barrier<> barrier{kThreads};
  Warp warps[kThreads / kWarp];
  std::vector<double> memory;
};

struct ClusterState {
  std::barrier<> barrier;
  std::vector<std::unique_ptr<BlockState>> blocks;
  ClusterState(int size, int64_t bytes) : barrier(size * kThreads) {
    for (int i = 0; i < size; ++i) {
      blocks.push_back(std::make_unique<BlockState>());
      blocks.back()->memory.assign(bytes / 8 + 2, NAN);
    }
  }
  char* memory(int rank) {
    const auto address = reinterpret_cast<uintptr_t>(blocks[rank]->memory.data());
    return reinterpret_cast<char*>((address + 15) / 16 * 16);
  }
};

struct ThreadCta {
  ClusterState& cluster;
  int rank, thread;
  int target = 0;

  BlockState& block() { return *cluster.blocks[rank]; }
  template <class F>
  void each(F f) {
    f(thread);
  }
  template <class F>
  void threads(F f) {
    f(thread);
    if (barriers) block().barrier.arrive_and_wait();
  }
  template <class V>
  struct Local {
    V v;
    explicit Local(const ThreadCta&) {}
    V& operator[](int) { return v; }
  };
  template <class V, class Of, class Take, class Done>
  void reduce_lanes(int width, Of of, Take take, Done done) {
    static_assert(sizeof(V) <= sizeof(uint32_t) * 16);
    Warp& warp = block().warps[thread / kWarp];
    const V own = of(thread);
    uint32_t words[16];
    std::memcpy(words, &own, sizeof(V));
    for (size_t i = 0; i < sizeof(V) / 4; ++i) warp.words[thread % kWarp][i].store(words[i], std::memory_order_relaxed);
    warp.meet(target);
    const int first = thread % kWarp / width * width;
    std::vector<V> values(width);
    for (int lane = 0; lane < width; ++lane) {
      for (size_t i = 0; i < sizeof(V) / 4; ++i) {
        words[i] = warp.words[first + lane][i].load(std::memory_order_relaxed);
      }
      std::memcpy(&values[lane], words, sizeof(V));
    }
    warp.meet(target);
    for (int d = width / 2; d > 0; d /= 2) {
      for (int i = 0; i < d; ++i) take(values[i], values[i + d]);
    }
    if (thread % width == 0) done(thread, values[0]);
  }
  template <class P>
  static void store(void* to, const P& vector) {
    std::memcpy(to, &vector, sizeof(P));
  }
  void copy(void* to, const void* from) { std::memcpy(to, from, 16); }
  void commit() {}
  void wait(int) {}
  void cluster_sync() { cluster.barrier.arrive_and_wait(); }
  template <class P>
  P* peer(P* own, int other) {
    return reinterpret_cast<P*>(reinterpret_cast<char*>(own) - cluster.memory(rank) + cluster.memory(other));
  }
  void arrive(unsigned* counter) {
    if (barriers) block().barrier.arrive_and_wait();
    if (thread == 0) std::atomic_ref(*counter).fetch_add(1, std::memory_order_release);
  }
  void await(unsigned* counter, unsigned blocks) {
    const std::atomic_ref arrived(*counter);
    while (meetings && thread == 0 && arrived.load(std::memory_order_acquire) < blocks) std::this_thread::yield();
    if (barriers) block().barrier.arrive_and_wait();
  }
  static float to_float(float x) { return x; }
  template <class T>
  static T from_float(float x) {
    return x;
  }
  static float quotient(float a, float b) { return a / b; }
  static float exp(float x) { return std::exp(x); }
};

template <class Body>
void run_cluster(int64_t first, int size, int64_t bytes, Body body) {
  ClusterState cluster(size, bytes);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, rank, t] {
        ThreadCta cta{cluster, rank, t};
        cluster.barrier.arrive_and_wait();  // or the first block is gone before the last begins
        body(cta, first + rank, cluster.memory(rank));
      });
    }
  }
  for (auto& thread : threads) thread.join();
}

struct Buffers {
  std::vector<float> x, dy, y, vectors, statistics, parts;
  std::vector<double> group_sums;
  std::vector<unsigned> arrivals = std::vector<unsigned>(64);
  explicit Buffers(int64_t n)
      : x(n + 4), dy(n + 4), y(n + 4), vectors(4096), statistics(1 << 16, 1.0f), parts(1 << 16), group_sums(1 << 16) {
    for (int64_t i = 0; i < n; ++i) x[i] = std::sin(static_cast<float>(i)), dy[i] = std::cos(static_cast<float>(i));
  }
  static float* aligned(std::vector<float>& v) {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(v.data()) + 15) / 16 * 16);
  }
};

template <bool kLast, bool kBackward, vdiff::group_norm::Phase kPhase>
void group_norm_phase(const vdiff::group_norm::Problem<float>& p) {
  using namespace vdiff::group_norm;
  // One unit says what all would.
  const int size = static_cast<int>(p.plan.slices);
  const int64_t bytes = Layout(p.plan, kBackward).bytes;
  const auto body = [&](ThreadCta& cta, int64_t block, char* memory) {
    run_slice<kPhase, ThreadCta, float, kLast, kBackward>(cta, p, block, memory);
  };
  if (kPhase == Phase::whole) return run_cluster(0, size, bytes, body);
  for (int64_t block = 0; block < 2; ++block) run_cluster(block, 1, bytes, body);
}

// With `buffers`, as a grid of two blocks.
template <bool kLast, bool kBackward>
void group_norm(const vdiff::group_norm::Device& device, int buffers = 0) {
  using namespace vdiff::group_norm;
  Plan s{};
  s.batch = s.units = buffers > 0 ? 4 : 1, s.length = buffers > 0 ? 200 : 600;
  s.segments = 1, s.channels = s.source_channels[0] = 24, s.groups = 2, s.per_group = 12;
  s.segments_per_unit = 1, s.channels_last = kLast, s.silu = true, s.element = 4;
  choose(s, device, kBackward, true);
  if (buffers > 0) {
    s.exchange = Exchange::grid, s.tiles_at_once = 1, s.buffers = buffers;
    cut(s, 2);
  }
  Buffers b(s.batch * s.channels * s.length);
  Problem<float> p{s, {}, 1e-5};
  p.inputs.add = b.vectors.data(), p.inputs.scale_frames = p.inputs.shift_frames = 1;
  p.x = Buffers::aligned(b.x), p.dy = Buffers::aligned(b.dy), p.y = Buffers::aligned(b.y);
  p.mean = b.statistics.data(), p.rstd = b.statistics.data() + 64;
  p.group_sums = b.group_sums.data(), p.channel_sums = b.parts.data(), p.arrivals = b.arrivals.data();
  std::printf("group_norm_silu last %d backward %d exchange %d slices %d buffers %d\n", kLast, kBackward,
              static_cast<int>(s.exchange), static_cast<int>(s.slices), s.buffers);
  if (s.exchange == Exchange::cluster) return group_norm_phase<kLast, kBackward, Phase::whole>(p);
  if (s.exchange == Exchange::grid) {
    return run_cluster(0, static_cast<int>(s.blocks()), Layout(s, kBackward).bytes,
                       [&](ThreadCta& cta, int64_t block, char* memory) {
                         run_iterations<ThreadCta, float, kLast, kBackward>(cta, p, block, memory);
                       });
  }
  group_norm_phase<kLast, kBackward, Phase::reduce>(p);
  group_norm_phase<kLast, kBackward, Phase::apply>(p);
}

template <bool kLast, bool kBackward>
void rms_norm() {
  using namespace vdiff::rms_norm;
  Plan s{};
  s.batch = 1, s.segments = 1, s.channels = 200, s.length = 24;
  s.channels_last = kLast, s.silu = true, s.element = 4;
  choose(s, 163 << 10, kBackward, true);
  Buffers b(s.channels * s.length);
  Problem<float> p{s, {}, 1e-6};
  p.inputs.scale_frames = p.inputs.shift_frames = 1;
  p.x = Buffers::aligned(b.x), p.dy = Buffers::aligned(b.dy), p.y = Buffers::aligned(b.y);
  p.rstd = b.statistics.data(), p.channel_sums = b.parts.data();
  std::printf("rms_norm_silu last %d backward %d tiles %d\n", kLast, kBackward, s.tiles);
  run_cluster(0, 1, Layout(s, kBackward).bytes, [&](ThreadCta& cta, int64_t block, char* memory) {
    const Block<ThreadCta, float, kLast, kBackward> one(cta, p, block, memory);
    if constexpr (kBackward) {
      one.backward();
    } else {
      one.forward();
    }
  });
}

template <bool kLast>
void all() {
  const vdiff::group_norm::Device one{1, 1 << 20, true}, cluster{3, 96 << 10, true}, split{1 << 20, 32 << 10, false};
  for (int buffers : {1, 2}) group_norm<kLast, false>(split, buffers), group_norm<kLast, true>(split, buffers);
  if (!meetings) return;
  for (const auto& device : {one, cluster, split}) group_norm<kLast, false>(device), group_norm<kLast, true>(device);
  rms_norm<kLast, false>(), rms_norm<kLast, true>();
}

}  // namespace

int main(int count, char** names) {
  barriers = count == 1 || std::strcmp(names[1], "barriers") != 0;
  meetings = count == 1 || std::strcmp(names[1], "meetings") != 0;
  all<false>();
  all<true>();
}
