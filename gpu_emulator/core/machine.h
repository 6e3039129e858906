// A launch at work: warps, blocks and clusters, and the order in which they run.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fault.h"
#include "memory.h"
#include "program.h"
#include "ptxsim.h"

namespace ptxsim {

class Launch;
struct Block;
struct Cluster;
class AsyncCopies;
class Wgmma;

// What a group of lanes waits for.
enum class Wait : uint8_t { none, convergence, warp_barrier, barrier, cluster_barrier };

// Lanes of a warp at one program counter.
struct Group {
  uint32_t pc = 0, lanes = 0;
  Wait wait = Wait::none;
  uint32_t barrier = 0;  // its number; of a warp barrier the mask of its members
};

class Warp {
 public:
  enum class State : uint8_t { ready, waiting, done };

  void start(Block& block, uint32_t index, uint32_t lanes);
  // Until it waits, ends, yields, or has executed `budget` instructions; how many it executed.
  uint64_t run(uint64_t budget);

  template <class T>
  T* at(Operand o) const {
    return reinterpret_cast<T*>(bases[o.base] + o.offset);
  }
  uint32_t predicate(Operand o) const { return *at<uint32_t>(o); }
  void set_predicate(Operand o, uint32_t value, uint32_t mask) const {
    uint32_t& p = *at<uint32_t>(o);
    p = (p & ~mask) | (value & mask);
  }

  // --- For instructions that change the flow. ---
  void jump(uint32_t to) { pc = to; }
  void branch(uint32_t taken, uint32_t to);        // lanes in `taken` go, the other active ones go on
  void spread(uint32_t mask, const uint32_t* to);  // each lane in the mask to its own place, the others on
  void exit(uint32_t lanes);
  void wait(Wait why, uint32_t barrier);  // the active lanes stay at this instruction
  // True where all these lanes are here; else the active ones wait for them, and the instruction runs again later.
  bool converged(uint32_t lanes);
  bool aligned() { return converged(live); }
  void release(Wait why, uint32_t barrier);  // lanes that wait for it go on behind their instruction
  void retry(Wait why);                      // lanes that wait so execute their instruction again
  void yield() { yielded = true; }
  void poll() { yielded = yielded || ++polls >= 4; }
  std::string describe() const;

  uint8_t* bases[2] = {nullptr, nullptr};
  Launch* launch = nullptr;
  Block* block = nullptr;
  uint32_t index = 0;           // in the block
  uint32_t pc = 0, active = 0;  // of the group that runs
  uint32_t live = 0;            // lanes that have not exited
  std::vector<Group> others;
  State state = State::ready;
  bool yielded = false;
  uint32_t polls = 0;
  uint64_t executed = 0;
  std::unique_ptr<AsyncCopies> copies;
  std::unique_ptr<Wgmma> wgmma;
  uint8_t* local = nullptr;                        // lane after lane
  uint32_t cluster_arrived = 0, cluster_open = 0;  // lanes that have arrived; for which the wait is over

 private:
  bool choose();
  uint32_t merge_at() const;

  uint32_t turn_ = 0;  // instructions of the group that runs while others could
};

struct Barrier {
  uint32_t expected = 0;                        // threads; 0: all of the block
  std::vector<uint32_t> lanes;                  // of every warp, those that have arrived or wait
  uint32_t and_all = 1, or_any = 0, count = 0;  // of bar.red
  bool in_use = false;
};

struct Block {
  uint32_t linear = 0, id[3] = {0, 0, 0};
  uint32_t rank = 0;  // in its cluster
  Cluster* cluster = nullptr;
  SharedMemory shared;
  std::vector<Warp> warps;
  std::vector<uint8_t> registers, local;
  Barrier barriers[16];
  uint32_t running = 0;        // warps that are not done
  std::shared_ptr<void> race;  // of the racecheck
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  uint32_t running = 0;  // blocks
};

struct Profile {
  uint64_t warps = 0, lanes = 0;
};

class Launch {
 public:
  Launch(Module&, const std::string& kernel, const uint32_t grid[3], const uint32_t block[3], const uint32_t cluster[3],
         uint32_t dynamic_shared, const void* parameters, size_t parameter_bytes, const ptxsim_options&,
         ptxsim_report&);
  ~Launch();
  void run();  // throws Fault

  uint32_t threads() const { return dim[0] * dim[1] * dim[2]; }
  uint32_t warps_per_block() const { return (threads() + kLanes - 1) / kLanes; }
  uint64_t blocks() const { return uint64_t{grid[0]} * grid[1] * grid[2]; }
  uint32_t special(const Warp&, Special, int lane) const;

  // --- Barriers; of ops_barrier.cpp. ---
  void check_barriers(Block&);
  void check_cluster(Cluster&);

  Module& module;
  const Program& program;
  uint32_t grid[3], dim[3], cluster[3];
  uint32_t dynamic_shared;
  std::vector<uint8_t> parameters;
  ptxsim_options options;
  ptxsim_report& report;
  Memory memory;
  std::vector<Profile> profile;
  std::vector<uint64_t> workspace;  // of a cooperative grid: what %envreg1 and 2 point to
  uint64_t clock = 0;               // warp instructions so far
  Warp* current = nullptr;          // for the report of a fault

 private:
  std::unique_ptr<Cluster> start_cluster(uint64_t number);
  void start_block(Block&, Cluster&, uint32_t rank, const uint32_t id[3]);
  void fill();
  void finish_block(Block&);
  [[noreturn]] void deadlock() const;
  void sum_counters();
  void note_executed();

  std::vector<std::unique_ptr<Cluster>> resident_;
  std::vector<std::unique_ptr<Block>> pool_;
  std::vector<uint32_t> order_;  // of clusters, where the schedule is random
  uint64_t next_cluster_ = 0, clusters_ = 0;
  uint64_t grid_clusters_ = 0;  // clusters_ of them run
  uint32_t clusters_of_[3] = {1, 1, 1};
  uint64_t most_resident_ = 0;
  std::mt19937_64 random_;
};

// Over the lanes of a mask; whole warps go through a loop that the compiler vectorises.
template <class F>
inline void for_lanes(uint32_t mask, F f) {
  if (mask == kAll) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) f(l);
  } else {
    for (uint32_t m = mask; m != 0; m &= m - 1) f(std::countr_zero(m));
  }
}

}  // namespace ptxsim
