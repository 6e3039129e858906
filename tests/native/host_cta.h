// csrc/cuda/cta.cuh played on the host: the threads of a block one after the other, the blocks of a cluster, or of a
// grid that meets at counters, on threads of their own. Copies into shared memory land no earlier than their thread
// waits for them, or at once.
#pragma once

#include <atomic>
#include <barrier>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

struct Bfloat16 {
  uint16_t bits;
};

struct HostCluster {
  std::barrier<> barrier;
  std::vector<std::vector<char>> shared;
  HostCluster(int blocks, int64_t bytes) : barrier(blocks), shared(blocks) {
    // Shared memory comes with what an earlier block left there: all bits set is a NaN.
    for (auto& memory : shared) memory.assign(bytes + 16, static_cast<char>(0xff));
  }
  // As aligned as the device's.
  char* memory(int rank) {
    const auto address = reinterpret_cast<uintptr_t>(shared[rank].data());
    return reinterpret_cast<char*>((address + 15) / 16 * 16);
  }
};

// How a grid is played that must run at once: `held` blocks start, another where one ends. `eager` copies land at once;
// `from` on, each lands `back` bytes before its place. Who waits longer than `patience` for a counter finds it stuck.
struct HostGrid {
  int64_t held;
  bool eager = false;
  int64_t from = 0, back = 0;
  std::chrono::milliseconds patience{60000};

  std::atomic<bool> stuck = false;
  int64_t running = 0;
  std::mutex mutex{};
  std::condition_variable changed{};

  template <class Ready>
  void wait(Ready ready) {
    std::unique_lock lock(mutex);
    stuck = !changed.wait_for(lock, patience, [&] { return stuck || ready(); }) || stuck;
  }
  template <class Change>
  void change(Change change) {
    const std::lock_guard lock(mutex);
    change();
    changed.notify_all();
  }
};

struct HostCta {
  struct Copy {
    void* to;
    const void* from;
  };
  HostCluster& cluster;
  int rank, count;
  HostGrid* grid = nullptr;
  int current = 0;
  std::vector<std::deque<std::vector<Copy>>> batches = std::vector<std::deque<std::vector<Copy>>>(count);
  std::vector<std::vector<Copy>> open = std::vector<std::vector<Copy>>(count);

  template <class F>
  void each(F f) {
    for (current = 0; current < count; ++current) f(current);
  }
  template <class F>
  void threads(F f) {
    each(f);
  }
  template <class V>
  struct Local {
    struct One {
      V v;
    };
    std::vector<One> all;
    explicit Local(const HostCta& cta) : all(cta.count) {}
    V& operator[](int t) { return all[t].v; }
  };

  template <class V, class Of, class Take, class Done>
  void reduce_lanes(int width, Of of, Take take, Done done) {
    std::vector<V> values;
    each([&](int t) { values.push_back(of(t)); });
    for (int first = 0; first < count; first += width) {
      for (int d = width / 2; d > 0; d /= 2) {
        const std::vector<V> before(values.begin() + first, values.begin() + first + width);
        for (int i = 0; i < width; ++i) take(values[first + i], before[i + d < width ? i + d : i]);
      }
      current = first;
      done(first, values[first]);
    }
  }

  template <class P>
  static void store(void* to, const P& vector) {
    std::memcpy(to, &vector, sizeof(P));
  }
  void copy(void* to, const void* from) {
    if (grid != nullptr && grid->back > 0 && static_cast<char*>(to) - cluster.memory(rank) >= grid->from) {
      to = static_cast<char*>(to) - grid->back;
    }
    if (grid != nullptr && grid->eager) {
      std::memcpy(to, from, 16);
    } else {
      open[current].push_back({to, from});
    }
  }
  void commit() {
    batches[current].push_back(std::move(open[current]));
    open[current].clear();
  }
  void wait(int left) {
    auto& mine = batches[current];
    while (static_cast<int>(mine.size()) > left) {
      for (const Copy& c : mine.front()) std::memcpy(c.to, c.from, 16);
      mine.pop_front();
    }
  }
  void cluster_sync() { cluster.barrier.arrive_and_wait(); }
  template <class P>
  P* peer(P* own, int other) {
    return reinterpret_cast<P*>(reinterpret_cast<char*>(own) - cluster.memory(rank) + cluster.memory(other));
  }

  void arrive(unsigned* counter) {
    grid->change([&] { ++*counter; });
  }
  void await(const unsigned* counter, unsigned blocks) {
    grid->wait([&] { return *counter >= blocks; });
  }

  static float to_float(float x) { return x; }
  static float to_float(Bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  template <class T>
  static T from_float(float x) {
    if constexpr (sizeof(T) == 4) {
      return x;
    } else {
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      return T{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};  // to nearest even
    }
  }
  static float quotient(float a, float b) { return a / b; }
  static float exp(float x) { return std::exp(x); }
};

// body(cta, block, shared memory) for every block of a grid, in clusters, the last cluster first.
template <class Body>
void run_grid(int64_t blocks, int cluster_size, int threads, int64_t shared_bytes, Body body) {
  for (int64_t first = blocks - cluster_size; first >= 0; first -= cluster_size) {
    HostCluster cluster(cluster_size, shared_bytes);
    const auto block = [&](int rank) {
      HostCta cta{cluster, rank, threads};
      body(cta, first + rank, cluster.memory(rank));
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < cluster_size; ++rank) others.emplace_back(block, rank);
    block(0);
    for (auto& other : others) other.join();
  }
}

// The same for a grid whose blocks meet at counters: each has a thread of the host. False where they wait in vain.
template <class Body>
bool run_at_once(int64_t blocks, int threads, int64_t shared_bytes, HostGrid& grid, Body body) {
  std::vector<std::thread> all;
  for (int64_t block = 0; block < blocks && !grid.stuck; ++block) {
    grid.wait([&] { return grid.running < grid.held; });
    grid.change([&] { ++grid.running; });
    all.emplace_back([&, block] {
      HostCluster alone(1, shared_bytes);
      HostCta cta{alone, 0, threads, &grid};
      body(cta, block, alone.memory(0));
      grid.change([&] { --grid.running; });
    });
  }
  for (auto& thread : all) thread.join();
  return !grid.stuck;
}
