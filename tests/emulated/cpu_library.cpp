// What the Python package asks of the CPU library, in whose place the emulated CUDA library is loaded.
#include <cstdint>

extern "C" {
const char* vdiff_fast_isa() { return "emulated"; }
int vdiff_fast_set_isa(const char*) { return 1; }
uint64_t vdiff_fast_idle_memory() { return 0; }
void vdiff_fast_release_memory() {}
int vdiff_fast_set_own_blocks(int) { return 0; }
}
