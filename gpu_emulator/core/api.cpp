// The C functions of ptxsim.h.
#include <algorithm>
#include <cstring>
#include <string>

#include "errors.h"
#include "machine.h"
#include "program.h"
#include "ptxsim.h"

using namespace ptxsim;

namespace ptxsim {

namespace {
uint32_t seed_of_approximations = 0;
}

uint32_t approximation_seed() { return seed_of_approximations; }
void set_approximation_seed(uint32_t seed) { seed_of_approximations = seed; }

}  // namespace ptxsim

struct ptxsim_module {
  explicit ptxsim_module(std::string text) : module(std::move(text)) {
    for (const Function& f : module.syntax().functions) {
      if (f.entry && f.has_body) kernels.emplace_back(f.name);
    }
  }
  Module module;
  std::vector<std::string> kernels;
};

namespace {

void copy_text(const std::string& text, char* to, size_t bytes) {
  if (!to || bytes == 0) return;
  const size_t n = std::min(text.size(), bytes - 1);
  std::memcpy(to, text.data(), n);
  to[n] = '\0';
}

const Program* program_of(ptxsim_module* m, const char* name) {
  try {
    return &m->module.program(name);
  } catch (const std::exception&) {
    return nullptr;
  }
}

// Kernel, block, warp, line and instruction of a fault within a launch.
std::string located(const Launch& launch, const std::string& what) {
  std::string text = "kernel " + std::string(launch.program.function->name);
  if (const Warp* w = launch.current) {
    const Block& b = *w->block;
    text += format(", block (%u, %u, %u), warp %u", b.id[0], b.id[1], b.id[2], w->index);
    if (const size_t lane = what.find("lane "); lane != std::string::npos) {
      const uint32_t thread = w->index * kLanes + static_cast<uint32_t>(std::atoi(what.c_str() + lane + 5));
      const uint32_t* dim = launch.dim;
      text += format(", thread (%u, %u, %u)", thread % dim[0], thread / dim[0] % dim[1], thread / dim[0] / dim[1]);
    }
    if (w->pc < launch.program.code.size() && w->active != 0) {
      const uint32_t line = launch.program.code[w->pc].line;
      const std::string_view written = launch.module.syntax().line(line);
      const std::string source = launch.module.syntax().source(line);
      text += format(", %s%sPTX line %u: %.*s", source.c_str(), source.empty() ? "" : ", ", line,
                     static_cast<int>(std::min<size_t>(written.size(), 400)), written.data());
    }
  }
  return text + ": " + what;
}

}  // namespace

extern "C" {

ptxsim_module* ptxsim_load(const char* ptx, char* error, size_t error_bytes) {
  try {
    copy_text("", error, error_bytes);
    return new ptxsim_module(ptx);
  } catch (const std::exception& e) {
    copy_text(e.what(), error, error_bytes);
    return nullptr;
  }
}

void ptxsim_unload(ptxsim_module* m) { delete m; }

int ptxsim_decode_all(ptxsim_module* m, char* error, size_t error_bytes) {
  try {
    copy_text("", error, error_bytes);
    m->module.decode_all();
    return 0;
  } catch (const std::exception& e) {
    copy_text(e.what(), error, error_bytes);
    return 1;
  }
}

const char* ptxsim_kernel_name(ptxsim_module* m, uint32_t n) {
  return n < m->kernels.size() ? m->kernels[n].c_str() : nullptr;
}

int ptxsim_kernel(ptxsim_module* m, const char* name, ptxsim_kernel_info* info) {
  const Program* p = program_of(m, name);
  if (!p) return 1;
  const Function& f = *p->function;
  *info = {};
  info->parameter_bytes = p->parameter_bytes;
  info->static_shared_bytes = p->static_shared_bytes;
  std::copy(f.required_threads, f.required_threads + 3, info->required_threads);
  info->most_threads = f.most_threads;
  std::copy(f.cluster, f.cluster + 3, info->cluster);
  info->parameters = static_cast<uint32_t>(p->parameter_offset.size());
  return 0;
}

int ptxsim_kernel_layout(ptxsim_module* m, const char* name, uint32_t* offset, uint32_t* bytes, uint32_t most) {
  const Program* p = program_of(m, name);
  if (!p) return 1;
  for (uint32_t i = 0; i < most && i < p->parameter_offset.size(); ++i) {
    offset[i] = p->parameter_offset[i], bytes[i] = p->parameter_size[i];
  }
  return 0;
}

uint32_t ptxsim_executed(ptxsim_module* m, const char* name, uint8_t* executed, uint32_t* lines, uint32_t most,
                         int32_t forget) {
  const Program* p = program_of(m, name);
  if (!p || p->executed.empty()) return 0;
  const auto count = static_cast<uint32_t>(p->executed.size());
  for (uint32_t i = 0; i < std::min(most, count); ++i) executed[i] = p->executed[i], lines[i] = p->code[i].line;
  if (forget) std::fill(p->executed.begin(), p->executed.end(), 0);
  return count;
}

uint32_t ptxsim_issued(ptxsim_module* m, const char* name, uint64_t* warps, uint32_t most) {
  const Program* p = program_of(m, name);
  if (!p) return 0;
  const auto count = static_cast<uint32_t>(p->issued.size());
  std::copy_n(p->issued.begin(), std::min(most, count), warps);
  if (most >= count) std::fill(p->issued.begin(), p->issued.end(), 0);
  return count;
}

const char* ptxsim_text(ptxsim_module* m) { return m->module.syntax().text.c_str(); }

void ptxsim_source(ptxsim_module* m, uint32_t line, char* text, size_t bytes) {
  copy_text(m->module.syntax().source(line), text, bytes);
}

void* ptxsim_symbol(ptxsim_module* m, const char* name, size_t* bytes) { return m->module.variable(name, bytes); }

int ptxsim_launch(ptxsim_module* m, const char* kernel, const uint32_t grid[3], const uint32_t block[3],
                  const uint32_t cluster[3], uint32_t dynamic_shared_bytes, const void* parameters,
                  size_t parameter_bytes, const ptxsim_options* options, ptxsim_report* report) {
  std::memset(report, 0, sizeof *report);
  std::unique_ptr<Launch> launch;
  try {
    launch = std::make_unique<Launch>(m->module, kernel, grid, block, cluster, dynamic_shared_bytes, parameters,
                                      parameter_bytes, *options, *report);
    launch->run();
    return 0;
  } catch (const std::exception& e) {
    copy_text(launch ? located(*launch, e.what()) : "kernel " + std::string(kernel) + ": " + e.what(), report->error,
              sizeof report->error);
    return 1;
  }
}

void ptxsim_keep_l2(int32_t keep) { keep_l2(keep != 0); }

void ptxsim_approximation(uint32_t seed) { set_approximation_seed(seed); }

void ptxsim_allow(const void* address, size_t bytes, const char* name) {
  Ranges::instance().allow(reinterpret_cast<uint64_t>(address), bytes, name ? name : "");
}

void ptxsim_forbid(const void* address) { Ranges::instance().forbid(reinterpret_cast<uint64_t>(address)); }

}  // extern "C"
