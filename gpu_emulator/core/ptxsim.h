// ptxsim: executes PTX on the host, warp by warp, with checks and counters. For proving GPU kernels where there is no
// GPU. Device addresses are host addresses: a "device" tensor is a CPU tensor.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

typedef struct ptxsim_module ptxsim_module;

struct ptxsim_options {
  int32_t memcheck;   // 1: a global access outside an allowed range, or misaligned, is an error; uninitialised shared
                      // reads too
  int32_t racecheck;  // 1: two accesses of one shared (or cluster-shared) address by different threads, one a write,
                      // without
                      //    a barrier between them, are an error; the same for global memory between blocks without a
                      //    release and acquire
  int32_t counters;   // 1: fill the counters of the report
  uint32_t schedule;  // 0: warps in order; else the seed of a pseudo-random order of warps and of resident blocks
  uint64_t most_warp_instructions;  // a launch past it is an error (deadlock, endless loop); 0 = 4e9
  int32_t resident_blocks;    // blocks that run at once outside clusters (cooperative grids need all); 0 = 8, -1 = all
  uint32_t sampled_clusters;  // 0: the whole grid runs; else so many of its clusters (or blocks), neighbours in its
                              // middle, and the counts are scaled to the grid
};

struct ptxsim_report {
  char error[2048];  // empty where the launch was right; else kernel, block, thread, PTX line, instruction, what is
                     // wrong
  uint64_t warp_instructions, thread_instructions;
  uint64_t fma_pipe, alu_pipe, fp16_pipe, sfu_pipe, tensor_ops, conversions, branches,
      divergent_branches;  // warp instructions by class
  uint64_t imad_wide;      // 32x32->64 and mul.hi, which run at reduced rate
  uint64_t global_load_requests, global_load_sectors, global_store_requests,
      global_store_sectors;                                    // warp requests; 32-byte sectors
  uint64_t global_load_bytes_asked, global_store_bytes_asked;  // bytes that the lanes asked for
  uint64_t unique_load_bytes,
      unique_store_bytes;  // distinct 32-byte sectors of the launch, in bytes: DRAM traffic with an endless L2
  uint64_t dram_load_bytes, dram_store_bytes;   // with an L2 of 50 MB, LRU, sectors
  uint64_t shared_requests, shared_wavefronts;  // wavefronts / requests > 1: bank conflicts
  uint64_t local_bytes, atomics, barriers, cluster_barriers, shuffles, async_copies;
};

struct ptxsim_kernel_info {
  uint32_t parameter_bytes, static_shared_bytes, required_threads[3], most_threads, cluster[3];
  uint32_t parameters;  // count
};

ptxsim_module* ptxsim_load(const char* ptx, char* error, size_t error_bytes);
void ptxsim_unload(ptxsim_module*);
// The n-th kernel's name, or null past the last.
const char* ptxsim_kernel_name(ptxsim_module*, uint32_t n);
int ptxsim_kernel(ptxsim_module*, const char* name, ptxsim_kernel_info*);
// offset[i], bytes[i] of every parameter in the parameter block.
int ptxsim_kernel_layout(ptxsim_module*, const char* name, uint32_t* offset, uint32_t* bytes, uint32_t most);
// Of every instruction of a kernel that was launched: whether any launch executed it (1) and its line in the text (0 of
// one that the decoder added). How many there are; 0 for a kernel that was never launched. `forget`: begin anew.
uint32_t ptxsim_executed(ptxsim_module*, const char* kernel, uint8_t* executed, uint32_t* lines, uint32_t most,
                         int32_t forget);
// Of the same instructions: for how many warps each was issued since this was last asked with enough room.
uint32_t ptxsim_issued(ptxsim_module*, const char* kernel, uint64_t* warps, uint32_t most);
// The text that was loaded.
const char* ptxsim_text(ptxsim_module*);
// The file and line of the source that a line of the text comes from, "rows.cuh:45"; empty where it is not known.
void ptxsim_source(ptxsim_module*, uint32_t line, char* text, size_t bytes);
// A module's __device__ or __constant__ variable; null if there is none.
void* ptxsim_symbol(ptxsim_module*, const char* name, size_t* bytes);
// 0 where the launch was right.
int ptxsim_launch(ptxsim_module*, const char* kernel, const uint32_t grid[3], const uint32_t block[3],
                  const uint32_t cluster[3], uint32_t dynamic_shared_bytes, const void* parameters,
                  size_t parameter_bytes, const ptxsim_options*, ptxsim_report*);
// Ranges that kernels may touch under memcheck. allow() of a known address replaces its range.
void ptxsim_allow(const void* address, size_t bytes, const char* name);
void ptxsim_forbid(const void* address);
// Decodes every kernel now, not at its first use: 0 where all their instructions are known, else the first that is not.
int ptxsim_decode_all(ptxsim_module*, char* error, size_t error_bytes);
// How far ex2.approx, rsqrt.approx, div.full and the like are off, in launches from now on. 0: not at all, they are
// rounded correctly. Else as far as the manual allows: 1 always up, 2 always down, more: by chance, this the seed.
void ptxsim_approximation(uint32_t seed);
// 1: the L2 of the counters is empty now and kept from launch to launch, as a GPU's is; 0: each launch begins with an
// empty one. Not while a launch runs.
void ptxsim_keep_l2(int32_t keep);
}
