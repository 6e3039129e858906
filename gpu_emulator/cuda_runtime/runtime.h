// What the files of the runtime share: the device that is played, the modules and kernels that the program registered,
// and the errors.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "cudasim.h"

namespace cudasim {

struct Device {
  std::string name;
  int major, minor, multiprocessors;
  int shared_default, shared_optin, shared_multiprocessor, shared_reserved;  // bytes; reserved: of each block
  int threads_multiprocessor, blocks_multiprocessor, registers_multiprocessor, l2_bytes;
  bool clusters, cooperative;

  int architecture() const { return 10 * major + minor; }
};

// A PTX text of a fat binary: `exact` runs on its own architecture alone (compute_90a).
struct Image {
  int architecture;
  bool exact;
  std::string ptx;
};

// One fat binary: a translation unit's device code.
struct Module {
  std::vector<Image> images;
  std::map<int, ptxsim_module*> loaded;  // by architecture; null: refused
  std::map<int, std::string> refused;    // why

  // The image that the driver would take for this device: the newest that it runs; null if there is none.
  const Image* image(const Device&) const;
  ptxsim_module* load(const Image&);
};

// What the directives of a kernel's PTX say beside ptxsim_kernel_info.
struct Bounds {
  uint32_t least_blocks = 0, most_registers = 0;  // .minnctapersm, .maxnreg; 0: none
};

struct Kernel {
  std::string name;
  Module* module;
  // As cudaFuncSetAttribute leaves them; forgotten with the device.
  int dynamic_shared_bytes = -1;  // -1: the device's default limit
  bool any_cluster_size = false;
};

// A kernel on the device that is played.
struct Compiled {
  ptxsim_module* module = nullptr;
  const Image* image = nullptr;
  ptxsim_kernel_info info{};
  Bounds bounds;

  int most_threads() const;
  // Registers of a thread: as many as the launch bounds leave ptxas, so that no GPU holds fewer blocks.
  int registers() const;
};

struct Launch {
  dim3 grid, block, cluster{0, 0, 0};
  size_t dynamic_shared_bytes = 0;
  void** arguments = nullptr;
  bool cooperative = false;
};

struct State {
  std::recursive_mutex mutex;
  Device device;
  ptxsim_options options{};
  bool sticky = true, dry = false;
  cudaError_t last = cudaSuccess, fault = cudaSuccess;  // fault: sticky
  std::vector<std::unique_ptr<Module>> modules;
  std::map<const void*, std::unique_ptr<Kernel>> kernels;  // by the host function
  std::deque<cudasim_launch> log;

  State();
};

State& state();
// Remembers an error for cudaGetLastError and returns it; a fault before wins.
cudaError_t fail(cudaError_t);
Kernel* find_kernel(const void* host_function);
// False, with the reason, where the device has no code of the kernel.
bool compile(const Kernel&, Compiled&, std::string& reason);
int static_shared_bytes(const Compiled&);
int blocks_a_multiprocessor(const Compiled&, int threads, size_t dynamic_shared_bytes);
cudaError_t launch(Kernel&, const Launch&);
bool set_device(const std::string& model);

}  // namespace cudasim
