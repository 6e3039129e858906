// Stores a vector of 8 or 16 bytes by one instruction.
#pragma once

#include <cstring>

namespace vdiff {

// Written as PTX: beside a branch that stores element by element, the compiler splits a plain store of the vector too.
template <class P>
__device__ __forceinline__ void store_whole(void* to, const P& vector) {
  constexpr int kWords = sizeof(P) / sizeof(unsigned);
  static_assert(sizeof(P) == 8 || sizeof(P) % 16 == 0, "half a 16-byte access, or whole ones");
  unsigned words[kWords];
  memcpy(words, &vector, sizeof(P));
  if constexpr (kWords == 2) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(words[0]), "r"(words[1]) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(static_cast<unsigned*>(to) + i), "r"(words[i]),
                   "r"(words[i + 1]), "r"(words[i + 2]), "r"(words[i + 3])
                   : "memory");
    }
  }
}

}  // namespace vdiff
