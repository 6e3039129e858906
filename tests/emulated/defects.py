"""Defects that are put into our own kernels, to see which leg of proof finds them."""

from __future__ import annotations

from dataclasses import dataclass

_WIDE_ROWS = ("cuda h200 float32 layer_norm_modulate extra width_1153_1",)
_MANY_ROWS = ("cuda h200 float32 qk_norm_rope extra rows_5000_d8",)
_CLUSTERS = ("cuda h200 float32 group_norm_silu extra 64k", "cuda small float32 group_norm_silu extra 16k")
_GRID = ("cuda small80 float32 group_norm_silu extra 64k", "cuda small80 float32 group_norm_silu extra 16k")
_BLOCK = ("cuda h200 float32 group_norm_silu contract everything_clip",)
_MLP = ("cuda h200 float32 timestep_mlp contract ddpm",)
_ATTENTION = ("cuda h200 bfloat16 temporal_attention extra T33_d24",)
_SMALL_ATTENTION = ("cuda h200 bfloat16 temporal_attention extra T9_d24",)


@dataclass(frozen=True)
class Defect:
    """One edit of one file.

    Attributes:
        kind: what a reviewer would call it.
        old, new: the text that stands in the file exactly once, and what stands there instead.
        cases: lines of `cases.Case` that are run with it.
        host: tests that run the same source on the host, or Triton's in the interpreter, where there are any.
        reason: why no leg finds it, where none does.
    """

    name: str
    kind: str
    file: str
    old: str
    new: str
    cases: tuple[str, ...]
    host: tuple[str, ...] = ()
    reason: str = ""

    @property
    def backend(self) -> str:
        return "cuda" if self.file.startswith("csrc/") else "triton"


_RACES = "tests/ops/test_norm_races.py::test_blocks_have_every_barrier_they_need"
_WALKS = "tests/ops/test_adaln_triton.py"
_BLOCKS = "tests/ops/test_group_norm_silu_blocks.py"
_WARPS = "tests/ops/test_temporal_attention_warp.py"
_ROWS, _SLICE = "csrc/cuda/layer_norm.cuh", "csrc/ops/group_norm_silu/cuda_slice.h"
_CTA, _MLP_FILE = "csrc/cuda/cta.cuh", "csrc/ops/timestep_mlp/cuda.cu"
_ATTENTION_FILE, _QK = "csrc/ops/temporal_attention/cuda.cu", "csrc/ops/qk_norm_rope/cuda.cu"

CUDA = (
    Defect(
        "row_sum_without_its_last_barrier", "missing barrier", _ROWS,
        "  __syncthreads();\n  return total;", "  return total;", _WIDE_ROWS,
    ),
    Defect("half_a_warp_is_summed", "wrong shuffle width", _ROWS, "int offset = 16;", "int offset = 8;", _WIDE_ROWS),
    Defect(
        "chunk_reads_one_past_the_row", "off-by-one mask", "csrc/cuda/rows.cuh",
        "v[j] = column + j < width ? to_float", "v[j] = column + j <= width ? to_float", _WIDE_ROWS,
    ),
    Defect(
        "variance_counts_the_tail", "missing tail mask", _ROWS,
        "x[k][j] = column + j < width ? x[k][j] - high : 0.0f;", "x[k][j] = x[k][j] - high;", _WIDE_ROWS,
    ),
    Defect(
        "column_sums_without_a_barrier", "missing barrier", "csrc/cuda/column_sums.cuh",
        "  __syncthreads();\n  if (threadIdx.y > 0) return;", "  if (threadIdx.y > 0) return;", _MANY_ROWS,
    ),
    Defect(
        "first_part_counts_twice", "double counted row", "csrc/cuda/column_sums.cuh",
        "for (unsigned row = 1; row < blockDim.y", "for (unsigned row = 0; row < blockDim.y", _MANY_ROWS,
    ),
    Defect("head_by_the_wrong_stride", "wrong stride", _QK, "p.h * x.h;", "p.h * x.s;", (
        "cuda h200 float32 qk_norm_rope contract both-d40",
    )),
    Defect(
        "vectors_are_not_awaited", "dropped wait_group", "csrc/cuda/norm.h",
        "cta.wait(kStages - ++done);", "++done;", _BLOCK, (_RACES,),
    ),
    Defect(
        "one_group_too_few_is_awaited", "wrong wait_group", "csrc/cuda/norm.h",
        "cta.wait(kStages - ++done);", "cta.wait(kStages - done++);", _BLOCK, (_RACES,),
    ),
    Defect(
        "every_rank_reads_itself", "wrong cluster rank", _SLICE,
        "*cta.peer(own, static_cast<int>(i))", "*cta.peer(own, slice.rank)", _CLUSTERS, (_BLOCKS,),
    ),
    Defect(
        "cluster_reads_before_it_is_written", "missing cluster barrier", _SLICE,
        "      if (plan.slices > 1) cta.cluster_sync();\n      fold<V>(", "      fold<V>(", _CLUSTERS, (_RACES,),
    ),
    Defect(
        "block_leaves_while_it_is_read", "missing cluster barrier at the exit", _SLICE,
        "      if (plan.slices > 1) cta.cluster_sync();  // no block", "      // no block", _CLUSTERS, (_RACES,),
    ),
    Defect(
        "arrivals_are_not_zeroed", "counter not zeroed", "csrc/ops/group_norm_silu/cuda.cu",
        "torch::stable::new_zeros(x, std::vector<int64_t>{plan.all_tiles()}",
        "torch::stable::new_empty(x, std::vector<int64_t>{plan.all_tiles()}", _GRID,
    ),
    Defect("arrival_releases_nothing", "missing release", _CTA, "red.release.gpu", "red.relaxed.gpu", _GRID),
    Defect("await_acquires_nothing", "missing acquire", _CTA, "ld.acquire.gpu", "ld.relaxed.gpu", _GRID),
    Defect(
        "block_arrives_before_it_has_written", "missing barrier", _CTA,
        "    __syncthreads();\n    if (threadIdx.x == 0) asm volatile(\"red",
        "    if (threadIdx.x == 0) asm volatile(\"red", _GRID,
    ),
    Defect(
        "moments_merge_without_the_count", "wrong Welford merge", "csrc/ops/group_norm_silu/math.h",
        "delta * delta * fraction * count;", "delta * delta * fraction;", _BLOCK, (_BLOCKS,),
    ),
    Defect("products_of_the_wrong_rows", "swapped operand of mma", _ATTENTION_FILE,
        '"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}',
        '"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%6,%5,%7}, {%8,%9}',
        _SMALL_ATTENTION, (_WARPS,),
    ),
    Defect(
        "keys_before_all_queries", "missing barrier", _ATTENTION_FILE,
        "    attention.backward_queries();\n    __syncthreads();", "    attention.backward_queries();", _ATTENTION,
        (_WARPS,),
    ),
    Defect(
        "sums_begin_with_what_was_there", "stale shared memory", _ATTENTION_FILE,
        "  for (int i = threadIdx.x % 32; i < Attention::kSums; i += 32) sums[i] = 0.0f;\n", "", _SMALL_ATTENTION,
    ),
    Defect(
        "product_forgets_earlier_columns", "lost accumulate", _MLP_FILE,
        "sums[s] = fmaf(w, x[s][c], sums[s]);", "sums[s] = w * x[s][c];", _MLP,
    ),
    Defect(
        "second_layer_before_the_first", "missing grid barrier", _MLP_FILE,
        "cooperative_groups::this_grid().sync();", ";", _MLP,
    ),
)  # fmt: skip

_RMS = "vdiff_fast/ops/rms_norm_silu/kernels_triton.py"
_GROUP = "vdiff_fast/ops/group_norm_silu/kernels_triton.py"
_ADALN = "vdiff_fast/ops/_common/triton/layer_norm.py"

TRITON = (
    Defect(
        "rows_past_the_tile_are_stored", "missing tail mask", _RMS,
        '''    mask = (c + local < channels)[:, None] & (r < here)[None, :]
    at = tile_offsets(local, r, channels, positions, CHANNELS_LAST)
    origin = element_offset(sample, tl.cast(c, tl.int64), start, channels, positions, CHANNELS_LAST)
    tl.store''',
        '''    mask = (c + local < channels)[:, None] & (r < here + 1)[None, :]
    at = tile_offsets(local, r, channels, positions, CHANNELS_LAST)
    origin = element_offset(sample, tl.cast(c, tl.int64), start, channels, positions, CHANNELS_LAST)
    tl.store''', ("triton sm_90 float32 rms_norm_silu contract strided",),
    ),
    Defect(
        "square_is_fused_into_its_sum", "sum in which lanes round differently", _RMS,
        "tl.sum(rounded_product(dp * slope, xhat), 0)", "tl.sum(dp * slope * xhat, 0)",
        ("triton sm_90 float32 rms_norm_silu contract wide-channels_last",),
    ),
    Defect(
        "chunk_means_merge_without_counts", "wrong Welford merge", _GROUP,
        "m2 + counts * apart * apart, 0.0)", "m2 + apart * apart, 0.0)",
        ("triton sm_90 float32 group_norm_silu contract everything_clip",),
    ),
    Defect(
        "rows_of_the_next_run_count_twice", "double counted row", _ADALN,
        "count = tl.minimum(walk, length - within)", "count = walk",
        ("triton sm_90 float32 layer_norm_modulate contract frame",), (_WALKS,),
    ),
    Defect(
        "gradient_of_queries_is_transposed", "swapped operand of a product",
        "vdiff_fast/ops/temporal_attention/triton.py",
        "dq = _dot(dlogits, k)", "dq = _dot(tl.permute(dlogits, (0, 2, 1)), k)",
        ("triton sm_90 bfloat16 temporal_attention contract options-T8",),
    ),
    Defect(
        "only_the_last_head_block_is_summed", "lost accumulate", "vdiff_fast/ops/qk_norm_rope/triton.py",
        "sums += tl.sum(tl.sum(", "sums = tl.sum(tl.sum(", ("triton sm_90 float32 qk_norm_rope contract both-d8",),
        ("tests/ops/test_qk_norm_rope_triton.py",),
    ),
    Defect(
        "statistics_wait_for_no_tile", "off-by-one mask", _GROUP,
        "first = valid & (local % group_channels == 0)", "first = (local % group_channels == 0)",
        ("triton sm_90 float32 group_norm_silu contract one_per_group",),
    ),
)  # fmt: skip

DEFECTS = (*CUDA, *TRITON)
