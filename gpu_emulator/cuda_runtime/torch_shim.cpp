// Functions of torch's C shim that a library compiled for CUDA tensors calls, for CPU tensors, which are the emulator's
// device memory. gpu_emulator.cuda.link binds the library's calls to them (the linker's --wrap).
#include <cstring>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

extern "C" {

// What is registered for CUDA is registered for the CPU.
AOTITorchError __wrap_aoti_torch_library_init_impl(const char* ns, const char* key, const char* file, uint32_t line,
                                                   TorchLibraryHandle* library) {
  return aoti_torch_library_init_impl(ns, std::strcmp(key, "CUDA") == 0 ? "CPU" : key, file, line, library);
}

// There is one device, which is always the current one, and one stream.
AOTITorchError __wrap_aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  return *guard = nullptr, AOTI_TORCH_SUCCESS;
}
AOTITorchError __wrap_aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError __wrap_aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  return *stream = nullptr, AOTI_TORCH_SUCCESS;
}
}
