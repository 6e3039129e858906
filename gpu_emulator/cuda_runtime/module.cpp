// The device code of the program: fat binaries as nvcc embeds them, and the kernels that they hold.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>

#include "runtime.h"

namespace cudasim {

namespace {

// What __cudaRegisterFatBinary is given.
struct Wrapper {
  uint32_t magic, version;
  const char* data;
  void* more;
};
constexpr uint32_t kWrapperMagic = 0x466243b1, kContainerMagic = 0xba55ed50;

struct Container {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};

// The head of one image: PTX or machine code of one architecture.
struct Entry {
  uint16_t kind, unused;
  uint32_t header_bytes;
  uint64_t bytes;
  uint32_t compressed_bytes, options_offset;
  uint16_t minor, major;
  uint32_t architecture, name_offset, name_bytes;
  uint64_t flags, reserved, plain_bytes;
};
constexpr uint16_t kPtx = 1;
// Bits of `flags`: how the image is compressed.
constexpr uint64_t kLz4 = 0x2000, kZstd = 0x8000;

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "cudasim: %s\n", what);
  std::abort();
}

// Zstandard, which nvcc compresses with since CUDA 12.8. The library is opened when it is first needed: only its shared
// object is on most machines, not its header.
std::string zstd_text(const char* data, size_t bytes, size_t plain_bytes) {
  using Decompress = size_t (*)(void*, size_t, const void*, size_t);
  static const auto decompress = [] {
    void* library = dlopen("libzstd.so.1", RTLD_NOW);
    return library ? reinterpret_cast<Decompress>(dlsym(library, "ZSTD_decompress")) : nullptr;
  }();
  if (!decompress) give_up("the PTX is compressed and libzstd.so.1 is not here: compile with --no-compress");
  std::string text(plain_bytes, '\0');
  if (decompress(text.data(), text.size(), data, bytes) != plain_bytes) give_up("the compressed PTX is damaged");
  return text;
}

std::string text_of(const Entry& entry, const char* data) {
  if (entry.flags & kLz4) give_up("the PTX is compressed by LZ4: compile with --no-compress");
  if (!(entry.flags & kZstd)) return std::string(data, strnlen(data, entry.bytes));
  std::string text = zstd_text(data, entry.compressed_bytes, entry.plain_bytes);
  text.resize(strnlen(text.data(), text.size()));
  return text;
}

void read_images(const char* data, std::vector<Image>& images) {
  Container container;
  std::memcpy(&container, data, sizeof container);
  if (container.magic != kContainerMagic) give_up("the fat binary is none that this runtime knows");
  const char *at = data + container.header_bytes, *end = at + container.bytes;
  while (at < end) {
    Entry entry;
    std::memcpy(&entry, at, sizeof entry);
    const char* data = at + entry.header_bytes;
    if (entry.kind == kPtx) {
      std::string ptx = text_of(entry, data);
      const bool exact = ptx.find(".target sm_" + std::to_string(entry.architecture) + "a") != std::string::npos;
      images.push_back({static_cast<int>(entry.architecture), exact, std::move(ptx)});
    }
    at = data + entry.bytes;
  }
}

// The directives between a kernel's parameters and its body.
Bounds bounds_of(const std::string& ptx, const std::string& kernel) {
  Bounds bounds;
  const size_t entry = ptx.find(".entry " + kernel + "(");
  if (entry == std::string::npos) return bounds;
  const size_t body = ptx.find('{', entry);
  const std::string head = ptx.substr(entry, body - entry);
  const auto number = [&](const char* directive) -> uint32_t {
    const size_t at = head.find(directive);
    return at == std::string::npos ? 0 : static_cast<uint32_t>(std::atoi(head.c_str() + at + std::strlen(directive)));
  };
  bounds.least_blocks = number(".minnctapersm "), bounds.most_registers = number(".maxnreg ");
  return bounds;
}

}  // namespace

const Image* Module::image(const Device& device) const {
  int most = device.architecture();
  if (const char* forced = std::getenv("CUDASIM_PTX")) most = std::min(most, std::atoi(forced));
  const Image* best = nullptr;
  for (const Image& one : images) {
    const bool runs = one.exact ? one.architecture == device.architecture() : true;
    if (runs && one.architecture <= most && (!best || one.architecture > best->architecture)) best = &one;
  }
  return best;
}

ptxsim_module* Module::load(const Image& image) {
  const auto [at, fresh] = loaded.try_emplace(image.architecture, nullptr);
  if (fresh) {
    char error[2048] = "";
    at->second = ptxsim_load(image.ptx.c_str(), error, sizeof error);
    if (!at->second) refused[image.architecture] = error;
  }
  return at->second;
}

Kernel* find_kernel(const void* host_function) {
  const auto found = state().kernels.find(host_function);
  return found == state().kernels.end() ? nullptr : found->second.get();
}

bool compile(const Kernel& kernel, Compiled& c, std::string& reason) {
  c.image = kernel.module->image(state().device);
  if (!c.image) return reason = "no PTX for this device", false;
  c.module = kernel.module->load(*c.image);
  if (!c.module) return reason = kernel.module->refused[c.image->architecture], false;
  if (ptxsim_kernel(c.module, kernel.name.c_str(), &c.info) != 0) return reason = "the PTX lacks the kernel", false;
  c.bounds = bounds_of(c.image->ptx, kernel.name);
  return true;
}

}  // namespace cudasim

using namespace cudasim;

extern "C" {

// The handle is the module itself, behind the pointer that the program hands back.
void** __cudaRegisterFatBinary(void* binary) {
  Wrapper wrapper;
  std::memcpy(&wrapper, binary, sizeof wrapper);
  if (wrapper.magic != kWrapperMagic) give_up("the program registers no fat binary");
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.modules.push_back(std::make_unique<Module>());
  read_images(wrapper.data, s.modules.back()->images);
  return reinterpret_cast<void**>(s.modules.back().get());
}
void __cudaRegisterFatBinaryEnd(void**) {}

// Called when the process ends, after the emulator's own state may be gone: the modules stay loaded.
void __cudaUnregisterFatBinary(void** handle) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  std::erase_if(s.kernels, [&](const auto& one) { return one.second->module == reinterpret_cast<Module*>(handle); });
}

void __cudaRegisterFunction(void** handle, const char* host_function, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.kernels[host_function] = std::make_unique<Kernel>(Kernel{name, reinterpret_cast<Module*>(handle)});
}

// Variables live in the emulator's module; the program copies to none of them.
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

char __cudaInitModule(void**) { return 1; }

cudaError_t __cudaGetKernel(cudaKernel_t* handle, const void* host_function) {
  const std::lock_guard lock(state().mutex);
  *handle = reinterpret_cast<cudaKernel_t>(find_kernel(host_function));
  return *handle ? cudaSuccess : fail(cudaErrorInvalidDeviceFunction);
}
}
