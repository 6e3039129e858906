#include <algorithm>

#include "cuda/dtype.cuh"
#include "cuda/launch.h"

namespace {

using vdiff::Tensor;
using MaybeTensor = std::optional<Tensor>;
constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kTile = 8;  // elements that a lane has in flight

// x is batch x segments x length x channels: a segment is a frame where anything is per frame, else the sample.
struct Geometry {
  int64_t batch, segments, length, c1, c2, channels, groups, per_group, unit_segments, units;
  int64_t chunk, chunks;  // a segment is read in chunks of positions
  bool channels_last, silu;

  __host__ __device__ int64_t vectors() const { return batch * segments * channels; }
  __host__ __device__ int64_t count() const { return unit_segments * length * per_group; }
  bool empty() const { return vectors() * length == 0; }
  int64_t partials() const { return vectors() * chunks; }
  int64_t warps() const {
    return batch * segments * chunks * (channels_last ? vdiff::ceil_div(channels, kWarp) : channels);
  }
};

// Per-channel inputs as float32, nullptr where absent.
struct Vectors {
  const float *weight, *bias, *scale, *shift, *add;
  int64_t scale_frames, shift_frames;
};

// z = (x - center) * slope + offset. `center` is the mean (less `add`) rounded, what rounding left is in `offset`.
struct Affine {
  float *center, *slope, *offset;
};
// dx = g * gain + (x - center) * tilt + level, g = dy * act'(z).
struct Gradient {
  float *gain, *tilt, *level;
};

// The elements of one lane, all of one channel and segment.
struct Lane {
  int64_t vector, partial;               // index of (segment, channel), and of (segment, chunk, channel)
  int64_t x, x_step, y, y_step, origin;  // origin: the first x that the lane's sums cover
  int count, covered;                    // elements of the lane, and of all lanes that share its sums
  bool second;                           // the channel is one of x2
};

// A warp takes a chunk of one channel's positions (contiguous), or of 32 channels (channels-last, a channel a lane).
__device__ bool locate(const Geometry& g, Lane& l) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  int64_t rest, c, chunk, segment;
  if (g.channels_last) {
    const int64_t tiles = (g.channels + kWarp - 1) / kWarp;
    rest = warp / tiles, c = (warp - rest * tiles) * kWarp + lane;
    segment = rest / g.chunks, chunk = rest - segment * g.chunks;
    if (segment >= g.batch * g.segments || c >= g.channels) return false;
  } else {
    rest = warp / g.chunks, chunk = warp - rest * g.chunks;
    const int64_t row = rest / g.segments, frame = rest - row * g.segments, sample = row / g.channels;
    c = row - sample * g.channels, segment = sample * g.segments + frame;
    if (sample >= g.batch) return false;
  }
  const int64_t begin = chunk * g.chunk, end = min(begin + g.chunk, g.length);
  l.covered = static_cast<int>(end - begin);
  l.second = c >= g.c1;
  const int64_t source = l.second ? g.c2 : g.c1, local = l.second ? c - g.c1 : c;
  if (g.channels_last) {
    const int64_t position = segment * g.length + begin;
    l.origin = l.x = position * source + local, l.x_step = source;
    l.y = position * g.channels + c, l.y_step = g.channels;
    l.count = l.covered;
  } else {
    const int64_t sample = segment / g.segments, frame = segment - sample * g.segments;
    l.origin = ((sample * source + local) * g.segments + frame) * g.length + begin;
    l.x = l.origin + lane;
    l.y = ((sample * g.channels + c) * g.segments + frame) * g.length + begin + lane;
    l.x_step = l.y_step = kWarp;
    l.count = lane < l.covered ? (l.covered - lane + kWarp - 1) / kWarp : 0;
  }
  l.vector = segment * g.channels + c;
  l.partial = (segment * g.chunks + chunk) * g.channels + c;
  return true;
}

template <class T>
__device__ __forceinline__ void load(const T* from, int64_t step, int n, float (&values)[kTile]) {
#pragma unroll
  for (int j = 0; j < kTile; ++j) values[j] = j < n ? vdiff::to_float(from[j * step]) : 0.0f;
}
template <class T>
__device__ __forceinline__ void store(T* to, int64_t step, int n, const float (&values)[kTile]) {
#pragma unroll
  for (int j = 0; j < kTile; ++j) {
    if (j < n) to[j * step] = vdiff::from_float<T>(values[j]);
  }
}

// Count, mean and sum of squared deviations of a set; `take` is Chan's combination of two sets.
template <class Real>
struct Moments {
  Real count, mean, squares;

  __device__ void take(Real n, Real other_mean, Real other_squares) {
    if (n == 0) return;
    const Real total = count + n, delta = other_mean - mean, part = n / total;
    mean += delta * part;
    squares += other_squares + delta * delta * part * count;
    count = total;
  }
};

// partial[2 * i], [2 * i + 1]: mean and squared deviations of x in partial i, two passes over a tile in registers.
template <class T>
__global__ void __launch_bounds__(kThreads) moments_kernel(Geometry g, const T* x, const T* x2, double* partial) {
  Lane l;
  if (!locate(g, l)) return;
  const T* from = l.second ? x2 : x;
  // Less one of its values, x has a mean of the size of its deviation.
  const float origin = vdiff::to_float(from[l.origin]);
  Moments<float> moments{};
  for (int i = 0; i < l.count; i += kTile) {
    const int n = min(kTile, l.count - i);
    float v[kTile];
    load(from + l.x + i * l.x_step, l.x_step, n, v);
    float sum = 0, squares = 0;
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      v[j] = j < n ? v[j] - origin : 0.0f;
      sum += v[j];
    }
    const float mean = sum / n;
#pragma unroll
    for (int j = 0; j < kTile; ++j) squares += j < n ? (v[j] - mean) * (v[j] - mean) : 0.0f;
    moments.take(n, mean, squares);
  }
  if (!g.channels_last) {
    for (int d = kWarp / 2; d > 0; d /= 2) {
      const float n = __shfl_down_sync(~0u, moments.count, d), mean = __shfl_down_sync(~0u, moments.mean, d);
      moments.take(n, mean, __shfl_down_sync(~0u, moments.squares, d));
    }
    if (threadIdx.x % kWarp != 0) return;
  }
  partial[2 * l.partial] = static_cast<double>(origin) + moments.mean;
  partial[2 * l.partial + 1] = moments.squares;
}

__device__ double framed(const Geometry& g, const float* values, int64_t frames, int64_t segment, int64_t c) {
  if (values == nullptr) return 0.0;
  const int64_t sample = segment / g.segments, frame = frames > 1 ? segment - sample * g.segments : 0;
  return values[(sample * frames + frame) * g.channels + c];
}
__device__ double weight_of(const Vectors& v, int64_t c) { return v.weight == nullptr ? 1.0 : v.weight[c]; }
__device__ double bias_of(const Vectors& v, int64_t c) { return v.bias == nullptr ? 0.0 : v.bias[c]; }
__device__ double factor_of(const Geometry& g, const Vectors& v, int64_t segment, int64_t c) {
  return 1.0 + framed(g, v.scale, v.scale_frames, segment, c);
}
__device__ double add_of(const Geometry& g, const Vectors& v, int64_t segment, int64_t c) {
  return v.add == nullptr ? 0.0 : v.add[segment / g.segments * g.channels + c];
}

__device__ void set_affine(const Geometry& g, const Vectors& v, int64_t segment, int64_t c, double mean, double rstd,
                           const Affine& affine) {
  const int64_t i = segment * g.channels + c;
  const double factor = factor_of(g, v, segment, c), slope = rstd * weight_of(v, c) * factor;
  const double exact = mean - add_of(g, v, segment, c);
  // A mean below the deviation cancels no digit, and a centre of zero rounds once less.
  const float center = fabs(exact) * rstd < 0.5 ? 0.0f : static_cast<float>(exact);
  const double level = bias_of(v, c) * factor + framed(g, v.shift, v.shift_frames, segment, c);
  affine.center[i] = center;
  affine.slope[i] = static_cast<float>(slope);
  affine.offset[i] = static_cast<float>(level - (exact - center) * slope);
}

// One CTA per unit and group: its statistics from all its partials, then the affine map of each of its vectors.
__global__ void __launch_bounds__(kThreads) statistics_kernel(Geometry g, Vectors v, const double* partial, double eps,
                                                              float* mean, float* rstd, Affine affine) {
  __shared__ Moments<double> shared[kThreads];
  const int64_t unit = blockIdx.x / g.groups, first_c = (blockIdx.x - unit * g.groups) * g.per_group;
  const int64_t first = unit * g.unit_segments, rows = g.unit_segments * g.chunks;
  Moments<double> moments{};
  for (int64_t j = threadIdx.x; j < rows * g.per_group; j += kThreads) {
    const int64_t row = j / g.per_group, c = first_c + j - row * g.per_group, segment = first + row / g.chunks;
    const int64_t begin = row % g.chunks * g.chunk, i = (first * g.chunks + row) * g.channels + c;
    moments.take(static_cast<double>(min(g.chunk, g.length - begin)), partial[2 * i] + add_of(g, v, segment, c),
                 partial[2 * i + 1]);
  }
  shared[threadIdx.x] = moments;
  __syncthreads();
  for (int d = kThreads / 2; d > 0; d /= 2) {
    if (threadIdx.x < d) {
      const Moments<double> other = shared[threadIdx.x + d];
      shared[threadIdx.x].take(other.count, other.mean, other.squares);
    }
    __syncthreads();
  }
  const double center = shared[0].mean, r = 1.0 / sqrt(shared[0].squares / static_cast<double>(g.count()) + eps);
  if (threadIdx.x == 0) mean[blockIdx.x] = static_cast<float>(center), rstd[blockIdx.x] = static_cast<float>(r);
  for (int64_t j = threadIdx.x; j < g.unit_segments * g.per_group; j += kThreads) {
    const int64_t segment = j / g.per_group;
    set_affine(g, v, first + segment, first_c + j - segment * g.per_group, center, r, affine);
  }
}

__device__ __forceinline__ float sigmoid(float z) { return __fdividef(1.0f, 1.0f + expf(-z)); }

template <class T>
__global__ void __launch_bounds__(kThreads) apply_kernel(Geometry g, const T* x, const T* x2, Affine affine, T* y) {
  Lane l;
  if (!locate(g, l)) return;
  const T* from = l.second ? x2 : x;
  const float center = affine.center[l.vector], slope = affine.slope[l.vector], offset = affine.offset[l.vector];
  for (int i = 0; i < l.count; i += kTile) {
    const int n = min(kTile, l.count - i);
    float v[kTile];
    load(from + l.x + i * l.x_step, l.x_step, n, v);
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      const float z = (v[j] - center) * slope + offset;
      v[j] = g.silu ? z * sigmoid(z) : z;
    }
    store(y + l.y + i * l.y_step, l.y_step, n, v);
  }
}

__global__ void __launch_bounds__(kThreads)
    affine_kernel(Geometry g, Vectors v, const float* mean, const float* rstd, Affine affine) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= g.vectors()) return;
  const int64_t segment = i / g.channels, c = i - segment * g.channels;
  const int64_t statistic = segment / g.unit_segments * g.groups + c / g.per_group;
  set_affine(g, v, segment, c, mean[statistic], rstd[statistic], affine);
}

// dy times the derivative of the activation at z.
__device__ __forceinline__ float through_activation(float dy, float z, bool silu) {
  if (!silu) return dy;
  const float s = sigmoid(z);
  return dy * s * (1.0f + z * (1.0f - s));
}

// partial[3 * i + k]: sums of g, g * (x - center) and x - center over partial i.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(Geometry g, const T* dy, const T* x, const T* x2, Affine affine, float* partial) {
  Lane l;
  if (!locate(g, l)) return;
  const T* from = l.second ? x2 : x;
  const float center = affine.center[l.vector], slope = affine.slope[l.vector], offset = affine.offset[l.vector];
  float sums[3] = {};
  for (int i = 0; i < l.count; i += kTile) {
    const int n = min(kTile, l.count - i);
    float v[kTile], d[kTile];
    load(from + l.x + i * l.x_step, l.x_step, n, v);
    load(dy + l.y + i * l.y_step, l.y_step, n, d);
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      const float centered = j < n ? v[j] - center : 0.0f;
      const float grad = j < n ? through_activation(d[j], centered * slope + offset, g.silu) : 0.0f;
      sums[0] += grad, sums[1] += grad * centered, sums[2] += centered;
    }
  }
  if (!g.channels_last) {
    for (int d = kWarp / 2; d > 0; d /= 2) {
#pragma unroll
      for (int k = 0; k < 3; ++k) sums[k] += __shfl_down_sync(~0u, sums[k], d);
    }
    if (threadIdx.x % kWarp != 0) return;
  }
#pragma unroll
  for (int k = 0; k < 3; ++k) partial[3 * l.partial + k] = sums[k];
}

// Per vector sums of g, g * n and n, n = (x - mean) * rstd: a CTA folds 32 channels of a segment over its chunks.
__global__ void __launch_bounds__(kThreads) fold_kernel(Geometry g, Vectors v, const float* mean, const float* rstd,
                                                        Affine affine, const float* partial, double* sums) {
  __shared__ double shared[3][kWarps][kWarp];
  const int64_t tiles = (g.channels + kWarp - 1) / kWarp, segment = blockIdx.x / tiles;
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int64_t c = (blockIdx.x - segment * tiles) * kWarp + lane;
  double own[3] = {};
  for (int64_t chunk = slice; chunk < g.chunks && c < g.channels; chunk += kWarps) {
    const float* from = partial + 3 * ((segment * g.chunks + chunk) * g.channels + c);
#pragma unroll
    for (int k = 0; k < 3; ++k) own[k] += from[k];
  }
#pragma unroll
  for (int k = 0; k < 3; ++k) shared[k][slice][lane] = own[k];
  __syncthreads();
  if (slice > 0 || c >= g.channels) return;
  for (int s = 1; s < kWarps; ++s) {
#pragma unroll
    for (int k = 0; k < 3; ++k) own[k] += shared[k][s][lane];
  }
  const int64_t i = segment * g.channels + c, statistic = segment / g.unit_segments * g.groups + c / g.per_group;
  const double r = rstd[statistic];
  const double left = mean[statistic] - add_of(g, v, segment, c) - affine.center[i];
  sums[3 * i] = own[0];
  sums[3 * i + 1] = r * (own[1] - left * own[0]);
  sums[3 * i + 2] = r * (own[2] - static_cast<double>(g.length) * left);
}

// dx = rstd * (g w - mean(g w) - n mean(g w n)), w = weight * (1 + scale), means over the group: one CTA each. The sum
// of n of a vector becomes its sum of dx, the gradient of `add`.
__global__ void __launch_bounds__(kThreads) gradient_kernel(Geometry g, Vectors v, const float* mean, const float* rstd,
                                                            Affine affine, double* sums, Gradient gradient) {
  __shared__ double shared[2][kThreads];
  const int64_t unit = blockIdx.x / g.groups, first_c = (blockIdx.x - unit * g.groups) * g.per_group;
  const int64_t first = unit * g.unit_segments, vectors = g.unit_segments * g.per_group;
  double own[2] = {};
  for (int64_t j = threadIdx.x; j < vectors; j += kThreads) {
    const int64_t row = j / g.per_group, c = first_c + j - row * g.per_group, i = (first + row) * g.channels + c;
    const double w = weight_of(v, c) * factor_of(g, v, first + row, c);
    own[0] += w * sums[3 * i], own[1] += w * sums[3 * i + 1];
  }
  shared[0][threadIdx.x] = own[0], shared[1][threadIdx.x] = own[1];
  __syncthreads();
  for (int d = kThreads / 2; d > 0; d /= 2) {
    if (threadIdx.x < d) {
      shared[0][threadIdx.x] += shared[0][threadIdx.x + d];
      shared[1][threadIdx.x] += shared[1][threadIdx.x + d];
    }
    __syncthreads();
  }
  const double count = static_cast<double>(g.count()), length = static_cast<double>(g.length);
  const double mean_g = shared[0][0] / count, mean_gn = shared[1][0] / count, r = rstd[blockIdx.x];
  for (int64_t j = threadIdx.x; j < vectors; j += kThreads) {
    const int64_t row = j / g.per_group, c = first_c + j - row * g.per_group, i = (first + row) * g.channels + c;
    const double w = weight_of(v, c) * factor_of(g, v, first + row, c);
    const double left = mean[blockIdx.x] - add_of(g, v, first + row, c) - affine.center[i];
    gradient.gain[i] = static_cast<float>(r * w);
    gradient.tilt[i] = static_cast<float>(-r * r * mean_gn);
    gradient.level[i] = static_cast<float>(r * r * mean_gn * left - r * mean_g);
    sums[3 * i + 2] = r * (w * sums[3 * i] - length * mean_g - sums[3 * i + 2] * mean_gn);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) input_gradient_kernel(Geometry g, const T* dy, const T* x, const T* x2,
                                                                  Affine affine, Gradient gradient, T* dx, T* dx2) {
  Lane l;
  if (!locate(g, l)) return;
  const T* from = l.second ? x2 : x;
  T* to = l.second ? dx2 : dx;
  const float center = affine.center[l.vector], slope = affine.slope[l.vector], offset = affine.offset[l.vector];
  const float gain = gradient.gain[l.vector], tilt = gradient.tilt[l.vector], level = gradient.level[l.vector];
  for (int i = 0; i < l.count; i += kTile) {
    const int n = min(kTile, l.count - i);
    float v[kTile], d[kTile];
    load(from + l.x + i * l.x_step, l.x_step, n, v);
    load(dy + l.y + i * l.y_step, l.y_step, n, d);
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      const float centered = v[j] - center;
      v[j] = through_activation(d[j], centered * slope + offset, g.silu) * gain + (centered * tilt + level);
    }
    store(to + l.x + i * l.x_step, l.x_step, n, v);
  }
}

// Gradients of weight and bias, a thread per channel.
__global__ void __launch_bounds__(kThreads)
    channel_gradient_kernel(Geometry g, Vectors v, const double* sums, float* dweight, float* dbias) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= g.channels) return;
  double weight = 0, bias = 0;
  for (int64_t segment = 0; segment < g.batch * g.segments; ++segment) {
    const double* from = sums + 3 * (segment * g.channels + c);
    const double factor = factor_of(g, v, segment, c);
    weight += factor * from[1], bias += factor * from[0];
  }
  if (dweight != nullptr) dweight[c] = static_cast<float>(weight);
  if (dbias != nullptr) dbias[c] = static_cast<float>(bias);
}

// Gradients of scale, shift or add (which = 0, 1, 2), a thread per element of the (batch, frames, channels) output.
__global__ void __launch_bounds__(kThreads)
    frame_gradient_kernel(Geometry g, Vectors v, const double* sums, int which, int64_t frames, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= g.batch * frames * g.channels) return;
  const int64_t row = i / g.channels, c = i - row * g.channels;
  const int64_t folded = frames > 1 ? 1 : g.segments;
  double total = 0;
  for (int64_t segment = row * folded; segment < (row + 1) * folded; ++segment) {
    const double* from = sums + 3 * (segment * g.channels + c);
    total += which == 0 ? weight_of(v, c) * from[1] + bias_of(v, c) * from[0] : which == 1 ? from[0] : from[2];
  }
  out[i] = static_cast<float>(total);
}

int64_t frames_of(const MaybeTensor& t) { return t.has_value() ? t->size(1) : 1; }

Geometry geometry(const Tensor& x, const MaybeTensor& x2, int64_t groups, int64_t frames, bool per_frame, bool silu) {
  Geometry g;
  g.channels_last = !(x.is_contiguous() && (!x2.has_value() || x2->is_contiguous()));
  g.silu = silu, g.batch = x.size(0), g.groups = groups;
  g.c1 = x.size(1), g.c2 = x2.has_value() ? x2->size(1) : 0;
  g.channels = g.c1 + g.c2, g.per_group = g.channels / groups;
  int64_t positions = 1;
  for (int64_t d = 2; d < x.dim(); ++d) positions *= x.size(d);
  g.segments = per_frame || frames > 1 ? x.size(2) : 1;
  g.length = positions / std::max<int64_t>(g.segments, 1);
  g.unit_segments = per_frame ? 1 : g.segments;
  g.units = per_frame ? g.batch * g.segments : g.batch;
  // Channels-last lanes go alone: short chunks where there is little work, so that all multiprocessors get some.
  g.chunk = !g.channels_last ? 1024 : g.vectors() * g.length < (int64_t{1} << 22) ? 64 : 256;
  g.chunks = vdiff::ceil_div(g.length, g.chunk);
  return g;
}

MaybeTensor as_float(const MaybeTensor& t) {
  if (!t.has_value() || t->scalar_type() == vdiff::ScalarType::Float) return t;
  return torch::stable::to(*t, vdiff::ScalarType::Float);
}

// Owns the float32 copies that `view` points at.
struct FloatVectors {
  MaybeTensor weight, bias, scale, shift, add;

  Vectors view() const {
    using vdiff::data;
    return {data<float>(weight), data<float>(bias), data<float>(scale), data<float>(shift),
            data<float>(add),    frames_of(scale),  frames_of(shift)};
  }
};

Tensor scratch(const Tensor& x, int64_t n, vdiff::ScalarType dtype = vdiff::ScalarType::Float) {
  return torch::stable::new_empty(x, std::vector<int64_t>{n}, dtype);
}

Affine affine_in(const Geometry& g, const Tensor& t) {
  float* data = vdiff::mutable_data<float>(t);
  return {data, data + g.vectors(), data + 2 * g.vectors()};
}

// An output for [x | x2] in their layout.
Tensor empty_joint(const Geometry& g, const Tensor& x, const MaybeTensor& x2) {
  if (!x2.has_value()) return torch::stable::empty_like(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape[1] = g.channels;
  if (!g.channels_last) return torch::stable::new_empty(x, shape);
  std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  Tensor y = torch::stable::new_empty(x, shape);
  for (int64_t d = x.dim() - 1; d > 1; --d) y = torch::stable::transpose(y, d, d - 1);
  return y;
}

int64_t blocks(int64_t threads) { return vdiff::ceil_div(threads, kThreads); }

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                                           const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                           const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add,
                                           bool per_frame, bool silu) {
  const Geometry g = geometry(x, x2, num_groups, std::max(frames_of(scale), frames_of(shift)), per_frame, silu);
  Tensor y = empty_joint(g, x, x2);
  const std::vector<int64_t> shape{g.units, g.groups};
  Tensor mean = torch::stable::new_empty(x, shape, vdiff::ScalarType::Float), rstd = torch::stable::empty_like(mean);
  if (g.empty()) return {y, torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  const FloatVectors vectors{as_float(weight), as_float(bias), as_float(scale), as_float(shift), as_float(add)};
  const Tensor partial = scratch(x, 2 * g.partials(), vdiff::ScalarType::Double), maps = scratch(x, 3 * g.vectors());
  const Affine affine = affine_in(g, maps);
  const cudaStream_t stream = vdiff::current_stream(x);
  const int64_t ctas = blocks(g.warps() * kWarp);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    const T *from = vdiff::data<T>(x), *from2 = vdiff::data<T>(x2);
    moments_kernel<T><<<ctas, kThreads, 0, stream>>>(g, from, from2, vdiff::mutable_data<double>(partial));
    statistics_kernel<<<g.units * g.groups, kThreads, 0, stream>>>(g, vectors.view(), vdiff::data<double>(partial), eps,
                                                                   vdiff::mutable_data<float>(mean),
                                                                   vdiff::mutable_data<float>(rstd), affine);
    apply_kernel<T><<<ctas, kThreads, 0, stream>>>(g, from, from2, affine, vdiff::mutable_data<T>(y));
  });
  vdiff::check_launch();
  return {y, mean, rstd};
}

// A zeroed float32 gradient of the shape of `like`, no elements where it is absent.
Tensor float_gradient(const MaybeTensor& like, const Tensor& x) {
  if (!like.has_value()) return scratch(x, 0);
  const std::vector<int64_t> shape(like->sizes().begin(), like->sizes().end());
  return torch::stable::new_zeros(x, shape, vdiff::ScalarType::Float);
}

// The gradient in the dtype of `like`.
Tensor finished(const Tensor& gradient, const MaybeTensor& like, const Tensor& x) {
  const auto dtype = like.has_value() ? like->scalar_type() : x.scalar_type();
  return dtype == vdiff::ScalarType::Float ? gradient : torch::stable::to(gradient, dtype);
}

float* target(const Tensor& t) { return t.numel() > 0 ? vdiff::mutable_data<float>(t) : nullptr; }

struct VectorGradients {
  Tensor weight, bias, scale, shift, add;

  void launch(const Geometry& g, const Vectors& v, const double* sums, cudaStream_t stream) const {
    if (target(weight) != nullptr || target(bias) != nullptr) {
      channel_gradient_kernel<<<blocks(g.channels), kThreads, 0, stream>>>(g, v, sums, target(weight), target(bias));
    }
    const Tensor* framed[] = {&scale, &shift, &add};
    const int64_t frames[] = {v.scale_frames, v.shift_frames, 1};
    for (int which = 0; which < 3; ++which) {
      if (target(*framed[which]) == nullptr) continue;
      frame_gradient_kernel<<<blocks(framed[which]->numel()), kThreads, 0, stream>>>(g, v, sums, which, frames[which],
                                                                                     target(*framed[which]));
    }
  }
};

template <class T>
void launch_backward(const Geometry& g, const Vectors& v, const Tensor& dy, const Tensor& x, const MaybeTensor& x2,
                     const Tensor& mean, const Tensor& rstd, const Tensor& dx, const Tensor& dx2,
                     const VectorGradients& gradients) {
  const cudaStream_t stream = vdiff::current_stream(x);
  const Tensor partial = scratch(x, 3 * g.partials()), maps = scratch(x, 3 * g.vectors());
  const Tensor slopes = scratch(x, 3 * g.vectors()), sums = scratch(x, 3 * g.vectors(), vdiff::ScalarType::Double);
  const Affine affine = affine_in(g, maps), lines = affine_in(g, slopes);
  const Gradient gradient{lines.center, lines.slope, lines.offset};
  const float *m = vdiff::data<float>(mean), *r = vdiff::data<float>(rstd);
  const T *grad = vdiff::data<T>(dy), *from = vdiff::data<T>(x), *from2 = vdiff::data<T>(x2);
  double* s = vdiff::mutable_data<double>(sums);
  const int64_t ctas = blocks(g.warps() * kWarp), folds = g.batch * g.segments * vdiff::ceil_div(g.channels, kWarp);
  affine_kernel<<<blocks(g.vectors()), kThreads, 0, stream>>>(g, v, m, r, affine);
  sums_kernel<T><<<ctas, kThreads, 0, stream>>>(g, grad, from, from2, affine, vdiff::mutable_data<float>(partial));
  fold_kernel<<<folds, kThreads, 0, stream>>>(g, v, m, r, affine, vdiff::data<float>(partial), s);
  gradient_kernel<<<g.units * g.groups, kThreads, 0, stream>>>(g, v, m, r, affine, s, gradient);
  input_gradient_kernel<T><<<ctas, kThreads, 0, stream>>>(g, grad, from, from2, affine, gradient,
                                                          vdiff::mutable_data<T>(dx), vdiff::mutable_data<T>(dx2));
  gradients.launch(g, v, s, stream);
  vdiff::check_launch();
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(const Tensor& dy, const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                   const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& mean, const Tensor& rstd,
                   const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add, bool per_frame,
                   bool silu) {
  const Geometry g = geometry(x, x2, num_groups, std::max(frames_of(scale), frames_of(shift)), per_frame, silu);
  const Tensor dx = torch::stable::empty_like(x);
  const Tensor dx2 = x2.has_value() ? torch::stable::empty_like(*x2) : scratch(x, 0, x.scalar_type());
  const VectorGradients d{float_gradient(weight, x), float_gradient(bias, x), float_gradient(scale, x),
                          float_gradient(shift, x), float_gradient(add, x)};
  if (!g.empty()) {
    const FloatVectors vectors{as_float(weight), as_float(bias), as_float(scale), as_float(shift), as_float(add)};
    VDIFF_CUDA_DISPATCH(x.scalar_type(), T,
                        { launch_backward<T>(g, vectors.view(), dy, x, x2, mean, rstd, dx, dx2, d); });
  }
  return {dx,
          dx2,
          finished(d.weight, weight, x),
          finished(d.bias, bias, x),
          finished(d.scale, scale, x),
          finished(d.shift, shift, x),
          finished(d.add, add, x)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("group_norm_silu_forward", TORCH_BOX(&forward));
  m.impl("group_norm_silu_backward", TORCH_BOX(&backward));
}
