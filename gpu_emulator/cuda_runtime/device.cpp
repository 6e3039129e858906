// The devices that can be played, and what CUDA says of them.
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace cudasim {

namespace {

// name, capability, multiprocessors, shared memory: default, opt-in, of a multiprocessor, reserved; threads, blocks,
// registers of a multiprocessor, L2, clusters, cooperative.
// The small ones are no product: small tensors take the ways of large ones on them.
const Device kDevices[] = {
    {"h200", 9, 0, 132, 49152, 232448, 233472, 1024, 2048, 32, 65536, 50 << 20, true, true},
    {"a100", 8, 0, 108, 49152, 166912, 167936, 1024, 2048, 32, 65536, 40 << 20, false, true},
    {"rtx4090", 8, 9, 128, 49152, 101376, 102400, 1024, 1536, 24, 65536, 72 << 20, false, true},
    // Newer than the project's PTX for sm_90a: they run that of sm_80.
    {"b200", 10, 0, 148, 49152, 232448, 233472, 1024, 2048, 32, 65536, 126 << 20, true, true},
    {"rtx5090", 12, 0, 170, 49152, 101376, 102400, 1024, 1536, 24, 65536, 96 << 20, true, true},
    {"small", 9, 0, 2, 49152, 101376, 102400, 1024, 2048, 32, 65536, 1 << 20, true, true},
    {"small80", 8, 0, 2, 49152, 101376, 102400, 1024, 2048, 32, 65536, 1 << 20, false, true},
    {"plain", 8, 0, 2, 49152, 101376, 102400, 1024, 2048, 32, 65536, 1 << 20, false, false},
};

void from_environment(const char* variable, int& value) {
  if (const char* text = std::getenv(variable)) value = std::atoi(text);
}
void from_environment(const char* variable, bool& value) {
  if (const char* text = std::getenv(variable)) value = std::atoi(text) != 0;
}

}  // namespace

bool set_device(const std::string& model) {
  for (const Device& device : kDevices) {
    if (device.name != model) continue;
    State& s = state();
    s.device = device;
    from_environment("CUDASIM_SMS", s.device.multiprocessors);
    from_environment("CUDASIM_SHARED", s.device.shared_optin);
    from_environment("CUDASIM_CLUSTERS", s.device.clusters);
    from_environment("CUDASIM_COOPERATIVE", s.device.cooperative);
    s.device.shared_multiprocessor = s.device.shared_optin + s.device.shared_reserved;
    s.last = s.fault = cudaSuccess;
    for (auto& [_, kernel] : s.kernels) kernel->dynamic_shared_bytes = -1, kernel->any_cluster_size = false;
    return true;
  }
  return false;
}

namespace {

// False for an attribute that this runtime does not know.
bool attribute(const Device& d, cudaDeviceAttr which, int& value) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: value = 1024; break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: value = 64; break;
    case cudaDevAttrMaxGridDimX: value = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: value = d.shared_default; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: value = d.shared_optin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: value = d.shared_multiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: value = d.shared_reserved; break;
    case cudaDevAttrTotalConstantMemory: value = 65536; break;
    case cudaDevAttrWarpSize: value = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: value = 65536; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: value = d.registers_multiprocessor; break;
    case cudaDevAttrMultiProcessorCount: value = d.multiprocessors; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: value = d.threads_multiprocessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: value = d.blocks_multiprocessor; break;
    case cudaDevAttrL2CacheSize: value = d.l2_bytes; break;
    case cudaDevAttrComputeCapabilityMajor: value = d.major; break;
    case cudaDevAttrComputeCapabilityMinor: value = d.minor; break;
    case cudaDevAttrCooperativeLaunch: value = d.cooperative; break;
    case cudaDevAttrClusterLaunch: value = d.clusters; break;
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing: value = 1; break;
    case cudaDevAttrManagedMemory:
    case cudaDevAttrMemoryPoolsSupported: value = 1; break;
    case cudaDevAttrComputeMode:
    case cudaDevAttrIntegrated:
    case cudaDevAttrEccEnabled: value = 0; break;
    default: return false;
  }
  return true;
}

// A CPU tensor's device index is -1: it stands for the one device.
bool exists(int device) { return device == 0 || device == -1; }

}  // namespace
}  // namespace cudasim

using namespace cudasim;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return exists(device) ? cudaSuccess : fail(cudaErrorInvalidDevice); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  if (!exists(device)) return fail(cudaErrorInvalidDevice);
  return attribute(state().device, which, *value) ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (!exists(device)) return fail(cudaErrorInvalidDevice);
  const Device& d = state().device;
  std::memset(p, 0, sizeof *p);
  std::strncpy(p->name, ("ptxsim " + d.name).c_str(), sizeof p->name - 1);
  p->major = d.major, p->minor = d.minor, p->multiProcessorCount = d.multiprocessors;
  p->totalGlobalMem = size_t{141} << 30, p->totalConstMem = 65536, p->l2CacheSize = d.l2_bytes;
  p->sharedMemPerBlock = d.shared_default, p->sharedMemPerBlockOptin = d.shared_optin;
  p->sharedMemPerMultiprocessor = d.shared_multiprocessor, p->reservedSharedMemPerBlock = d.shared_reserved;
  p->regsPerBlock = 65536, p->regsPerMultiprocessor = d.registers_multiprocessor, p->warpSize = 32;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = d.threads_multiprocessor;
  p->maxBlocksPerMultiProcessor = d.blocks_multiprocessor;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->cooperativeLaunch = d.cooperative, p->clusterLaunch = d.clusters;
  p->concurrentKernels = p->unifiedAddressing = p->managedMemory = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return state().fault; }
cudaError_t cudaDeviceReset() { return cudasim_reset(), cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
}
