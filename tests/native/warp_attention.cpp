// The warps of csrc/ops/temporal_attention/cuda_{one_warp,four_warps}.h played on the host: 32 lanes side by side,
// mma.m16n8k16 and movmatrix by the fragment layouts of the PTX ISA. Built and called by
// tests/ops/test_temporal_attention_warp.py.
#include "ops/temporal_attention/cuda_one_warp.h"

#include "ops/temporal_attention/cuda_four_warps.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

template <class T>
struct Lanes {
  T v[32];
  T operator[](int i) const { return v[i]; }
};
template <class T>
struct IsLanes {
  static constexpr bool value = false;
};
template <class T>
struct IsLanes<Lanes<T>> {
  static constexpr bool value = true;
};
template <class T>
T at(const Lanes<T>& x, int i) {
  return x.v[i];
}
template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
T at(T x, int) {
  return x;
}

#define VDIFF_LANE_OPERATOR(op)                                                                 \
  template <class A, class B, class = std::enable_if_t<IsLanes<A>::value || IsLanes<B>::value>> \
  auto operator op(const A& a, const B& b) {                                                    \
    Lanes<std::decay_t<decltype(at(a, 0) op at(b, 0))>> r;                                      \
    for (int i = 0; i < 32; ++i) r.v[i] = at(a, i) op at(b, i);                                 \
    return r;                                                                                   \
  }
VDIFF_LANE_OPERATOR(+)
VDIFF_LANE_OPERATOR(-)
VDIFF_LANE_OPERATOR(*)
VDIFF_LANE_OPERATOR(/)
VDIFF_LANE_OPERATOR(<)
VDIFF_LANE_OPERATOR(<=)
VDIFF_LANE_OPERATOR(==)
#undef VDIFF_LANE_OPERATOR

template <class A, class B, class = std::enable_if_t<IsLanes<A>::value || IsLanes<B>::value>>
Lanes<bool> operator&(const A& a, const B& b) {
  Lanes<bool> r;
  for (int i = 0; i < 32; ++i) r.v[i] = at(a, i) && at(b, i);
  return r;
}

// bfloat16, to nearest even.
uint16_t narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct HostWarp {
  using F = Lanes<float>;
  using U = Lanes<uint32_t>;
  using B = Lanes<bool>;
  using I = Lanes<int>;
  using L = Lanes<int64_t>;

  template <class T, class Value>
  static Lanes<T> each(Value value) {
    Lanes<T> r;
    for (int i = 0; i < 32; ++i) r.v[i] = value(i);
    return r;
  }
  static I row() {
    return each<int>([](int i) { return i / 4; });
  }
  static I column() {
    return each<int>([](int i) { return i % 4; });
  }
  static F splat(float x) {
    return each<float>([x](int) { return x; });
  }
  static float infinity() { return INFINITY; }
  static L widen(const I& x) {
    return each<int64_t>([&](int i) { return x[i]; });
  }
  static F select(const B& p, const F& a, const F& b) {
    return each<float>([&](int i) { return p[i] ? a[i] : b[i]; });
  }
  static F max(const F& a, const F& b) {
    return each<float>([&](int i) { return std::fmax(a[i], b[i]); });
  }
  static F exp(const F& x) {
    return each<float>([&](int i) { return std::exp(x[i]); });
  }
  static F inverse_sqrt(const F& x) {
    return each<float>([&](int i) { return 1.0f / std::sqrt(x[i]); });
  }
  static F shuffle_xor(const F& x, int step) {
    return each<float>([&](int i) { return x[i ^ step]; });
  }
  static F low(const U& x) {
    return each<float>([&](int i) { return ::widen(static_cast<uint16_t>(x[i])); });
  }
  static F high(const U& x) {
    return each<float>([&](int i) { return ::widen(static_cast<uint16_t>(x[i] >> 16)); });
  }
  static U pack(const F& low, const F& high) {
    return each<uint32_t>([&](int i) { return narrow(low[i]) | static_cast<uint32_t>(narrow(high[i])) << 16; });
  }

  // A lane's half-precision value `half` of a register.
  static float half(const U& x, int lane, int half) { return ::widen(static_cast<uint16_t>(x[lane] >> (16 * half))); }

  // PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": lane = 4 * group + thread in group.
  static void mma(const U (&a)[4], const U (&b)[2], F (&c)[4]) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, thread = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int row = group + (i % 4 < 2 ? 0 : 8), column = thread * 2 + i % 2 + (i < 4 ? 0 : 8);
        left[row][column] = half(a[i / 2], lane, i % 2);
      }
      for (int i = 0; i < 4; ++i) right[thread * 2 + i % 2 + (i < 2 ? 0 : 8)][group] = half(b[i / 2], lane, i % 2);
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
        double sum = c[i].v[lane];
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(left[row][k]) * right[k][column];
        c[i].v[lane] = static_cast<float>(sum);
      }
    }
  }

  // movmatrix.sync.aligned.m8n8.trans.b16: lane holds elements 2 * (lane % 4) and the next of row lane / 4.
  static U transpose(const U& x) {
    uint16_t matrix[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      matrix[lane / 4][lane % 4 * 2] = static_cast<uint16_t>(x[lane]);
      matrix[lane / 4][lane % 4 * 2 + 1] = static_cast<uint16_t>(x[lane] >> 16);
    }
    return each<uint32_t>(
        [&](int i) { return matrix[i % 4 * 2][i / 4] | static_cast<uint32_t>(matrix[i % 4 * 2 + 1][i / 4]) << 16; });
  }

  static void load(const void* data, const L& offset, const B& inside, U (&pairs)[4]) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        uint32_t value = 0;
        if (inside[lane]) std::memcpy(&value, static_cast<const uint16_t*>(data) + offset[lane] + 2 * i, 4);
        pairs[i].v[lane] = value;
      }
    }
  }
  static void store(void* data, const L& offset, const B& inside, const U (&pairs)[4]) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4 && inside[lane]; ++i) {
        std::memcpy(static_cast<uint16_t*>(data) + offset[lane] + 2 * i, &pairs[i].v[lane], 4);
      }
    }
  }
  static F read(const float* data, const I& index, const B& inside) {
    return each<float>([&](int i) { return inside[i] ? data[index[i]] : 0.0f; });
  }
  static B read_flag(const uint8_t* data, const I& index, const B& inside) {
    return each<bool>([&](int i) { return inside[i] && data[index[i]] != 0; });
  }
  static void write(float* data, const I& index, const F& value, const B& inside) {
    for (int i = 0; i < 32; ++i) {
      if (inside[i]) data[index[i]] = value[i];
    }
  }
  static void add(float* sums, int first, const F& value) {
    for (int i = 0; i < 32; ++i) sums[first + i] += value[i];
  }
  static void add_at(float* sums, const I& index, const F& value, const B& inside) {
    for (int i = 0; i < 32; ++i) {
      if (inside[i]) sums[index[i]] += value[i];
    }
  }
};

struct ParameterGradients {
  float *bias, *q_weight, *k_weight;

  // One warp's sums of head h: rows from frame `first` on.
  void add(const vdiff::WarpProblem& p, int64_t h, const std::vector<float>& sums, int keys, int first,
           int rows) const {
    for (int t = first; t < std::min(first + rows, p.frames) && p.bias; ++t) {
      for (int u = 0; u < p.frames; ++u) {
        bias[(h * p.frames + t) * p.frames + u] = vdiff::bias_sum(sums.data(), keys, p.packed(), t - first, u);
      }
    }
    const float* weights = sums.data() + sums.size() - 2 * vdiff::kMaxWarpDim;
    for (int i = 0; i < p.d && p.q_weight; ++i) {
      q_weight[i] += weights[i];
      k_weight[i] += weights[vdiff::kMaxWarpDim + i];
    }
  }
};

template <int kTiles>
void run(const vdiff::WarpProblem& p, bool backward, const ParameterGradients& gradients) {
  using Attention = vdiff::WarpAttention<HostWarp, kTiles>;
  for (int64_t h = 0; h < p.heads; ++h) {
    std::vector<float> sums(Attention::kSums);
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t s = 0; s < p.positions; s += p.packed() ? 2 : 1) {
        const Attention warp{{p, b, s, h, sums.data(), 0}};
        backward ? warp.backward() : warp.forward();
      }
    }
    if (backward) gradients.add(p, h, sums, Attention::kOctets, 0, 16 * kTiles);
  }
}

// The warps of a block one after the other between two barriers.
void run_four_warps(const vdiff::WarpProblem& p, bool backward, const ParameterGradients& gradients) {
  using Attention = vdiff::FourWarpAttention<HostWarp>;
  const int warps = (p.frames + vdiff::kWarpRows - 1) / vdiff::kWarpRows;
  for (int64_t h = 0; h < p.heads; ++h) {
    std::vector<std::vector<float>> sums(warps, std::vector<float>(Attention::kSums));
    for (int64_t i = 0; i < p.batch * p.positions; ++i) {
      vdiff::SharedRows rows;
      std::fill_n(reinterpret_cast<float*>(&rows), sizeof(rows) / sizeof(float), NAN);
      const auto every_warp = [&](auto step) {
        for (int w = 0; w < warps; ++w) {
          step(Attention{{p, i / p.positions, i % p.positions, h, sums[w].data(), 2 * w}, rows});
        }
      };
      if (p.q_weight) every_warp([](const Attention& a) { a.write_norm_scales(); });
      if (!backward) {
        every_warp([](const Attention& a) { a.forward(); });
      } else {
        every_warp([](const Attention& a) { a.backward_queries(); });
        every_warp([](const Attention& a) { a.backward_keys(); });
      }
    }
    for (int w = 0; w < warps && backward; ++w) {
      gradients.add(p, h, sums[w], vdiff::kKeyOctets, w * vdiff::kWarpRows, vdiff::kWarpRows);
    }
  }
}

}  // namespace

// tensors: q, k, v, out, dout, dq, dk, dv, each bfloat16 and contiguous (B, T, S, heads, d).
extern "C" void warp_attention(void* const* tensors, const float* bias, const uint8_t* mask, const float* q_weight,
                               const float* k_weight, const float* cos, const float* sin, float scale, float eps,
                               int causal, const int64_t* shape, int backward, float* dbias, float* dq_weight,
                               float* dk_weight) {
  const int64_t frames = shape[1], positions = shape[2], heads = shape[3], d = shape[4];
  vdiff::WarpProblem p{};
  vdiff::Tokens* members[] = {&p.q, &p.k, &p.v, &p.out, &p.dout, &p.dq, &p.dk, &p.dv};
  for (int i = 0; i < 8; ++i) {
    *members[i] = {tensors[i], frames * positions * heads * d, positions * heads * d, heads * d, d};
  }
  p.bias = bias, p.mask = mask, p.q_weight = q_weight, p.k_weight = k_weight, p.cos = cos, p.sin = sin;
  p.scale = scale, p.eps = eps, p.causal = causal != 0;
  p.batch = shape[0], p.positions = positions;
  p.frames = static_cast<int>(frames), p.heads = static_cast<int>(heads), p.d = static_cast<int>(d);
  const ParameterGradients gradients{dbias, dq_weight, dk_weight};
  frames <= 16   ? run<1>(p, backward, gradients)
  : frames <= 32 ? run<2>(p, backward, gradients)
                 : run_four_warps(p, backward, gradients);
}
