// Lane permutations of any vector type. Included by cpu_kernel.cpp files only.
#pragma once

namespace vdiff::VDIFF_ISA {

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

template <class V, int... I>
inline V swap_neighbours(V v, Indices<I...>) {
  return __builtin_shufflevector(v, v, (I ^ 1)...);
}
// (x0, x1, x2, x3, ...) -> (x1, x0, x3, x2, ...)
template <class V>
inline V swap_neighbours(V v) {
  return swap_neighbours(v, typename MakeIndices<sizeof(V) / sizeof(v[0])>::type());
}

}  // namespace vdiff::VDIFF_ISA
