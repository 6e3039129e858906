// Launches: what a driver checks before one, the launch itself, and what it did; with the occupancy and the attributes
// of kernels on which the checks rest.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace cudasim {

namespace {

constexpr int kWarp = 32, kRegistersAtOnce = 256, kWarpsAtOnce = 4, kMostRegisters = 255;
constexpr size_t kSharedAtOnce = 128, kMostParameterBytes = 32764;
constexpr uint32_t kPortableCluster = 8, kLargestCluster = 16, kMostParameters = 1024;

uint64_t product(const dim3& d) { return uint64_t{d.x} * d.y * d.z; }
template <class T>
T rounded_up(T value, T unit) {
  return (value + unit - 1) / unit * unit;
}
std::string shape(const dim3& d) {
  return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
}

int dynamic_limit(const Kernel& kernel, const Compiled& c) {
  if (kernel.dynamic_shared_bytes >= 0) return kernel.dynamic_shared_bytes;
  return std::max(0, state().device.shared_default - static_shared_bytes(c));
}

// cudaSuccess, or what a driver answers; `why` says more.
cudaError_t check(const Kernel& kernel, const Compiled& c, const Launch& l, std::string& why) {
  const Device& d = state().device;
  const auto no = [&](cudaError_t error, std::string reason) { return why = std::move(reason), error; };
  if (product(l.grid) == 0) return no(cudaErrorInvalidConfiguration, "a grid of no blocks: " + shape(l.grid));
  if (product(l.block) == 0) return no(cudaErrorInvalidConfiguration, "a block of no threads: " + shape(l.block));
  if (l.grid.x > 2147483647u || l.grid.y > 65535 || l.grid.z > 65535) {
    return no(cudaErrorInvalidConfiguration, "a grid of " + shape(l.grid) + " blocks");
  }
  if (product(l.block) > 1024 || l.block.z > 64) {
    return no(cudaErrorInvalidConfiguration, "a block of " + shape(l.block) + " threads");
  }
  if (product(l.block) > static_cast<uint64_t>(c.most_threads())) {
    return no(cudaErrorInvalidValue, std::to_string(product(l.block)) + " threads a block, its launch bounds allow " +
                                         std::to_string(c.most_threads()));
  }
  const uint32_t* required = c.info.required_threads;
  if (required[0] != 0 && (l.block.x != required[0] || l.block.y != required[1] || l.block.z != required[2])) {
    return no(cudaErrorInvalidValue, "a block of " + shape(l.block) + " threads, the kernel requires another");
  }
  if (l.dynamic_shared_bytes > static_cast<size_t>(dynamic_limit(kernel, c))) {
    return no(cudaErrorInvalidValue, std::to_string(l.dynamic_shared_bytes) + " bytes of dynamic shared memory, " +
                                         std::to_string(dynamic_limit(kernel, c)) + " are allowed");
  }
  if (l.dynamic_shared_bytes + static_shared_bytes(c) > static_cast<size_t>(d.shared_optin)) {
    return no(cudaErrorInvalidValue, std::to_string(l.dynamic_shared_bytes + static_shared_bytes(c)) +
                                         " bytes of shared memory, a block has " + std::to_string(d.shared_optin));
  }
  if (c.info.parameter_bytes > kMostParameterBytes) {
    return no(cudaErrorInvalidValue, std::to_string(c.info.parameter_bytes) + " bytes of parameters");
  }
  const int held = blocks_a_multiprocessor(c, static_cast<int>(product(l.block)), l.dynamic_shared_bytes);
  if (held == 0) return no(cudaErrorLaunchOutOfResources, "no multiprocessor holds a block");
  const uint64_t cluster = product(l.cluster);
  if (cluster > 0) {
    if (!d.clusters) return no(cudaErrorNotSupported, "the device has no clusters");
    if (cluster > (kernel.any_cluster_size ? kLargestCluster : kPortableCluster)) {
      return no(cudaErrorInvalidClusterSize, "a cluster of " + shape(l.cluster) + " blocks");
    }
    if (l.grid.x % l.cluster.x || l.grid.y % l.cluster.y || l.grid.z % l.cluster.z) {
      return no(cudaErrorInvalidConfiguration,
                "a grid of " + shape(l.grid) + " blocks is not made of clusters of " + shape(l.cluster));
    }
  }
  if (l.cooperative) {
    if (!d.cooperative) return no(cudaErrorNotSupported, "the device has no cooperative launches");
    const uint64_t most = static_cast<uint64_t>(held) * d.multiprocessors;
    if (product(l.grid) > most) {
      return no(cudaErrorCooperativeLaunchTooLarge, "a cooperative grid of " + std::to_string(product(l.grid)) +
                                                        " blocks, the device holds " + std::to_string(most));
    }
  }
  return cudaSuccess;
}

std::vector<char> parameter_block(const Kernel& kernel, const Compiled& c, void** arguments) {
  std::vector<char> block(c.info.parameter_bytes);
  uint32_t offset[kMostParameters], bytes[kMostParameters];
  ptxsim_kernel_layout(c.module, kernel.name.c_str(), offset, bytes, kMostParameters);
  for (uint32_t i = 0; i < std::min(c.info.parameters, kMostParameters); ++i) {
    std::memcpy(block.data() + offset[i], arguments[i], bytes[i]);
  }
  return block;
}

void copy(uint32_t (&to)[3], const dim3& from) { to[0] = from.x, to[1] = from.y, to[2] = from.z; }

// True for an error that ends a GPU's context; races are only reported.
bool is_fault(const ptxsim_report& report) {
  return report.error[0] != 0 && std::strstr(report.error, "race") == nullptr;
}

}  // namespace

int Compiled::most_threads() const {
  const uint32_t* r = info.required_threads;
  const uint32_t required = r[0] * std::max(r[1], 1u) * std::max(r[2], 1u);
  return static_cast<int>(required > 0 ? required : info.most_threads > 0 ? info.most_threads : 1024);
}

int Compiled::registers() const {
  const int warps = rounded_up(most_threads(), kWarp * kWarpsAtOnce) / kWarp;
  const int blocks = static_cast<int>(std::max(bounds.least_blocks, 1u));
  int most = state().device.registers_multiprocessor / (warps * blocks) / kRegistersAtOnce * kRegistersAtOnce / kWarp;
  if (bounds.most_registers > 0) most = std::min(most, static_cast<int>(bounds.most_registers));
  return std::min(most, kMostRegisters);
}

int static_shared_bytes(const Compiled& c) {
  // ptxas counts the reserved KB of sm_90 into a kernel's static shared memory; whether the driver tells of it is not
  // known here.
  const char* reserved = std::getenv("CUDASIM_STATIC_RESERVED");
  const bool counted = reserved && std::atoi(reserved) != 0 && c.image->architecture >= 90;
  return static_cast<int>(c.info.static_shared_bytes) + (counted ? state().device.shared_reserved : 0);
}

int blocks_a_multiprocessor(const Compiled& c, int threads, size_t dynamic_shared_bytes) {
  const Device& d = state().device;
  if (threads <= 0 || threads > c.most_threads()) return 0;
  const int warps = rounded_up(threads, kWarp) / kWarp, registers = rounded_up(c.registers() * kWarp, kRegistersAtOnce);
  const size_t shared =
      rounded_up(c.info.static_shared_bytes + dynamic_shared_bytes + d.shared_reserved, kSharedAtOnce);
  const int by_registers = d.registers_multiprocessor / (registers * rounded_up(warps, kWarpsAtOnce));
  return std::min({d.blocks_multiprocessor, d.threads_multiprocessor / (warps * kWarp), by_registers,
                   static_cast<int>(d.shared_multiprocessor / shared)});
}

cudaError_t launch(Kernel& kernel, const Launch& wanted) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  Launch l = wanted;
  cudasim_launch entry{};
  entry.kernel = kernel.name.c_str();
  copy(entry.grid, l.grid), copy(entry.block, l.block);
  entry.dynamic_shared_bytes = static_cast<uint32_t>(l.dynamic_shared_bytes), entry.cooperative = l.cooperative;
  Compiled c;
  std::string why;
  cudaError_t status = s.fault;
  if (status != cudaSuccess) {
    why = "a kernel before it faulted";
  } else if (!compile(kernel, c, why)) {
    status = cudaErrorNoKernelImageForDevice;
  } else {
    if (product(l.cluster) == 0) l.cluster = dim3(c.info.cluster[0], c.info.cluster[1], c.info.cluster[2]);
    copy(entry.cluster, l.cluster);
    entry.architecture = c.image->architecture, entry.static_shared_bytes = c.info.static_shared_bytes;
    status = check(kernel, c, l, why);
  }
  if (status == cudaSuccess && !s.dry) {
    const std::vector<char> parameters = parameter_block(kernel, c, l.arguments);
    ptxsim_options options = s.options;
    if (l.cooperative) options.resident_blocks = -1;
    const uint32_t cluster[3] = {std::max(l.cluster.x, 1u), std::max(l.cluster.y, 1u), std::max(l.cluster.z, 1u)};
    const auto start = std::chrono::steady_clock::now();
    ptxsim_launch(c.module, kernel.name.c_str(), entry.grid, entry.block, cluster, entry.dynamic_shared_bytes,
                  parameters.data(), parameters.size(), &options, &entry.report);
    entry.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (s.sticky && is_fault(entry.report)) s.fault = cudaErrorIllegalAddress;
  }
  entry.status = status;
  std::snprintf(entry.refusal, sizeof entry.refusal, "%s", why.c_str());
  s.log.push_back(entry);
  return status == cudaSuccess ? cudaSuccess : fail(status);
}

namespace {

cudaError_t launch_by_address(const void* host_function, const Launch& l) {
  Kernel* kernel = find_kernel(host_function);
  return kernel ? launch(*kernel, l) : fail(cudaErrorInvalidDeviceFunction);
}

// The kernel's code on the device that is played, or the error.
cudaError_t look_up(const void* host_function, Kernel*& kernel, Compiled& c) {
  std::string why;
  kernel = find_kernel(host_function);
  if (!kernel) return fail(cudaErrorInvalidDeviceFunction);
  return compile(*kernel, c, why) ? cudaSuccess : fail(cudaErrorNoKernelImageForDevice);
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

}  // namespace
}  // namespace cudasim

using namespace cudasim;

extern "C" {

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return fail(cudaErrorMissingConfiguration);
  const Configuration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid, *block = c.block, *shared = c.shared, *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t) {
  if (!kernel) return fail(cudaErrorInvalidDeviceFunction);
  return launch(*reinterpret_cast<Kernel*>(kernel), {grid, block, {0, 0, 0}, shared, arguments, false});
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t) {
  return launch_by_address(function, {grid, block, {0, 0, 0}, shared, arguments, false});
}
cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                        cudaStream_t) {
  return launch_by_address(function, {grid, block, {0, 0, 0}, shared, arguments, true});
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  Launch l{config->gridDim, config->blockDim, {0, 0, 0}, config->dynamicSmemBytes, arguments, false};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& a = config->attrs[i];
    switch (a.id) {
      case cudaLaunchAttributeClusterDimension:
        l.cluster = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
        break;
      case cudaLaunchAttributeCooperative: l.cooperative = a.val.cooperative != 0; break;
      // They change the order of work that the emulator does one by one.
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributePriority:
      case cudaLaunchAttributeProgrammaticStreamSerialization:
      case cudaLaunchAttributeAccessPolicyWindow:
      case cudaLaunchAttributePreferredSharedMemoryCarveout: break;
      default: return fail(cudaErrorInvalidValue);
    }
  }
  return launch_by_address(function, l);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute which, int value) {
  const std::lock_guard lock(state().mutex);
  Kernel* kernel;
  Compiled c;
  if (const cudaError_t error = look_up(function, kernel, c); error != cudaSuccess) return error;
  switch (which) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || value + static_shared_bytes(c) > state().device.shared_optin) return fail(cudaErrorInvalidValue);
      kernel->dynamic_shared_bytes = value;
      return cudaSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed: kernel->any_cluster_size = value != 0; return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      return value >= -1 && value <= 100 ? cudaSuccess : fail(cudaErrorInvalidValue);
    default: return fail(cudaErrorInvalidValue);
  }
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* function) {
  const std::lock_guard lock(state().mutex);
  Kernel* kernel;
  Compiled c;
  if (const cudaError_t error = look_up(function, kernel, c); error != cudaSuccess) return error;
  std::memset(a, 0, sizeof *a);
  a->sharedSizeBytes = static_shared_bytes(c), a->maxThreadsPerBlock = c.most_threads(), a->numRegs = c.registers();
  a->ptxVersion = c.image->architecture, a->binaryVersion = state().device.architecture();
  a->maxDynamicSharedSizeBytes = dynamic_limit(*kernel, c), a->preferredShmemCarveout = -1;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                                   size_t shared, unsigned) {
  const std::lock_guard lock(state().mutex);
  Kernel* kernel;
  Compiled c;
  if (const cudaError_t error = look_up(function, kernel, c); error != cudaSuccess) return error;
  *blocks = blocks_a_multiprocessor(c, threads, shared);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const cudaLaunchConfig_t* config) {
  int blocks = 0;
  const int threads = static_cast<int>(product(config->blockDim));
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads, config->dynamicSmemBytes);
  uint64_t size = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& a = config->attrs[i];
    if (a.id == cudaLaunchAttributeClusterDimension) {
      size = uint64_t{a.val.clusterDim.x} * a.val.clusterDim.y * a.val.clusterDim.z;
    }
  }
  *clusters = static_cast<int>(static_cast<uint64_t>(blocks) * state().device.multiprocessors / size);
  return error;
}
}
