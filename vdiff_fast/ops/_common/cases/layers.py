"""Layers of real models, as benchmarks run them: norms over (B, C, T, H, W) or (N, C, H, W), tokens (B, T, S, D)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NormLayer:
    """`gpu`: too large for two CPU cores."""

    name: str
    shape: tuple[int, ...]
    num_groups: int
    per_frame: bool = False
    gpu: bool = False


GROUP_NORM_LAYERS = (
    NormLayer("video_diffusion_64", (2, 64, 16, 32, 32), 8),
    NormLayer("modelscope_level0", (1, 320, 16, 32, 32), 32),
    NormLayer("modelscope_level2", (1, 1280, 16, 8, 8), 32),
    NormLayer("animatediff_level1", (16, 640, 16, 16), 32),
    NormLayer("animatediff_up_skip", (16, 960, 16, 16), 32),
    NormLayer("svd_level3", (14, 1280, 9, 16), 32),
    NormLayer("sd_vae_mid", (1, 512, 64, 64), 32),
    NormLayer("animatediff_level0", (16, 320, 64, 64), 32),
    NormLayer("svd_level0", (14, 320, 72, 128), 32, gpu=True),
    NormLayer("svd_temporal", (1, 320, 14, 72, 128), 32, gpu=True),
    NormLayer("hunyuan_vae", (1, 128, 20, 256, 256), 32, gpu=True),
    NormLayer("cogvideox_vae_per_frame", (1, 256, 8, 240, 360), 32, per_frame=True, gpu=True),
)

RMS_NORM_LAYERS = (
    NormLayer("lucidrains_64", (2, 64, 16, 32, 32), 1),
    NormLayer("wan_vae_384", (1, 384, 4, 30, 52), 1),
    NormLayer("wan_vae_96", (1, 96, 8, 240, 416), 1, gpu=True),
)


@dataclass(frozen=True)
class TokenLayer:
    """Tokens (B, T, S, D) of a diffusion transformer; `vectors` of modulation per sample. `gpu`: as above."""

    name: str
    shape: tuple[int, ...]
    vectors: int = 1
    gpu: bool = False


TOKEN_LAYERS = (
    TokenLayer("dit_tiny", (8, 8, 64, 192)),
    TokenLayer("dit_xl", (8, 1, 256, 1152)),
    TokenLayer("latte", (1, 16, 256, 1152)),
    TokenLayer("latte_per_frame", (1, 16, 256, 1152), vectors=16),
    TokenLayer("cogvideox_part", (1, 1, 1110, 3072)),
    TokenLayer("latte_batch", (4, 16, 256, 1152), gpu=True),
    TokenLayer("cogvideox_5b", (1, 1, 8308, 3072), gpu=True),
    TokenLayer("wan_per_frame", (1, 21, 1560, 5120), vectors=21, gpu=True),
)


@dataclass(frozen=True)
class AttentionLayer:
    """Tokens (B, T, S, heads, d); `gpu`: too large for two CPU cores."""

    name: str
    batch: int
    frames: int
    positions: int
    heads: int
    head_dim: int
    gpu: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return self.batch, self.frames, self.positions, self.heads, self.head_dim

    @property
    def packed_shape(self) -> tuple[int, int, int, int, int, int]:
        return self.batch, self.frames, self.positions, 3, self.heads, self.head_dim

    @property
    def elements(self) -> int:
        return self.batch * self.frames * self.positions * self.heads * self.head_dim


ATTENTION_LAYERS = (
    AttentionLayer("video_diffusion_16x16", 2, 16, 256, 4, 32),
    AttentionLayer("modelscope_8x8", 1, 16, 64, 20, 64),
    AttentionLayer("animatediff_16x16", 1, 16, 256, 8, 80),
    AttentionLayer("latte_16x16", 1, 16, 256, 16, 72),
    AttentionLayer("short_clip_16x16", 2, 8, 256, 8, 64),
    AttentionLayer("animatediff_24_frames", 1, 24, 256, 8, 80),
    AttentionLayer("long_clip_32_frames", 1, 32, 256, 8, 64),
    AttentionLayer("animatediff_32x32", 1, 16, 1024, 8, 40),
    AttentionLayer("four_clips_16x16", 4, 16, 256, 8, 64),
    AttentionLayer("animatediff_64x64", 1, 16, 4096, 8, 40, gpu=True),
    AttentionLayer("svd_72x128", 2, 14, 9216, 5, 64, gpu=True),
    AttentionLayer("cogvideox_30x45", 1, 13, 1350, 48, 64, gpu=True),
    AttentionLayer("wan_30x52", 1, 21, 1560, 12, 128, gpu=True),
)
