"""The autoencoders of diffusers that are known, one record each, and loading one from a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff_fast.codecs.codec import Codec, CodecError, Kind


def _image_compression(module: Any) -> tuple[int, int, int]:
    factor = 2 ** (len(module.config.block_out_channels) - 1)
    return 1, factor, factor


def _wan_compression(module: Any) -> tuple[int, int, int]:
    config = module.config
    return config.scale_factor_temporal, config.scale_factor_spatial, config.scale_factor_spatial


def _cogvideox_compression(module: Any) -> tuple[int, int, int]:
    factor = 2 ** (len(module.config.block_out_channels) - 1)
    return int(module.config.temporal_compression_ratio), factor, factor


def _own_compression(module: Any) -> tuple[int, int, int]:
    space = module.spatial_compression_ratio
    return module.temporal_compression_ratio, space, space


def _first_blocks(module: Any) -> int:
    return max(module.config.block_out_channels[:2])


def _tile_image(module: Any, height: int, width: int) -> None:
    # Diffusers' tiles of images are square, and it blends a quarter of each.
    side = min(height, width)
    module.enable_tiling()
    module.tile_sample_min_size = side
    module.tile_latent_min_size = side // _image_compression(module)[1]


def _tile_cogvideox(module: Any, height: int, width: int) -> None:
    module.enable_tiling(height, width, 0.25, 0.25)
    factor = _cogvideox_compression(module)[1]
    module.tile_latent_min_height, module.tile_latent_min_width = height // factor, width // factor


def _tile_strided(module: Any, height: int, width: int) -> None:
    factor = module.spatial_compression_ratio
    # Strides are whole latents: what overlaps is at least one, and else a quarter.
    strides = [max(1, side // factor * 3 // 4) * factor for side in (height, width)]
    module.enable_tiling(
        tile_sample_min_height=height, tile_sample_min_width=width,
        tile_sample_stride_height=strides[0], tile_sample_stride_width=strides[1],
    )  # fmt: skip


def _decode_with_frames(module: Any, z: Tensor) -> Tensor:
    """Of Stable Video Diffusion: its decoder sees the frames of a chunk together."""
    frames = z.shape[2]
    images = z.transpose(1, 2).flatten(0, 1)
    return module.decode(images, num_frames=frames).sample.unflatten(0, (-1, frames)).transpose(1, 2)


def _decode_ltx(module: Any, z: Tensor) -> Tensor:
    # Where the decoder is conditioned on a time it denoises a last step; 0 is the pipeline's default.
    temb = z.new_zeros(len(z)) if module.config.timestep_conditioning else None
    return module.decode(z, temb).sample


def _cut_frames(module: Any) -> None:
    module.use_framewise_decoding = True  # for encoding, too


CODECS = {
    kind.name: kind
    for kind in (
        Kind("AutoencoderKL", _image_compression, _first_blocks, per_frame=True, tile=_tile_image),
        Kind(
            "AutoencoderKLTemporalDecoder", _image_compression, _first_blocks, per_frame=True,
            decode=_decode_with_frames,
        ),
        Kind(
            "AutoencoderKLWan", _wan_compression, lambda m: 2 * (m.config.decoder_base_dim or m.config.base_dim),
            frames_in_flight=4, tile=_tile_strided,
        ),
        Kind(
            "AutoencoderKLCogVideoX", _cogvideox_compression, _first_blocks, frames_in_flight=8, tile=_tile_cogvideox,
            group=2,
        ),
        Kind("AutoencoderKLHunyuanVideo", _own_compression, _first_blocks, tile=_tile_strided),
        Kind(
            "AutoencoderKLLTXVideo", _own_compression, _first_blocks, decode=_decode_ltx, tile=_tile_strided,
            cut_frames=_cut_frames,
        ),
    )
}  # fmt: skip


def class_name_of(folder: Path, what: str, error: type[ValueError]) -> str:
    """The class that a folder's config.json names.

    Raises:
        the given error: there is no such folder or file, or it names no class.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise error(f"{folder}: no such folder; give one that holds {what} (config.json and its weights)")
    if not path.is_file():
        raise error(f"{folder}: holds no config.json, so it is no {what}; give the folder that save_pretrained made")
    try:
        content = json.loads(path.read_text())
        return str(content.get("_class_name") or (content.get("architectures") or [""])[0])
    except (ValueError, AttributeError) as problem:
        raise error(f"{path}: is no JSON of a model ({problem})") from None


def load_codec(
    folder: str | os.PathLike[str], *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    patched: bool = True,
) -> Codec:  # fmt: skip
    """The codec of a local folder, as `save_pretrained` left it; of a whole pipeline, that of its folder vae/.

    Nothing is downloaded.

    Args:
        folder: see above.
        device, dtype: where and in which dtype it computes.
        patched: let it run on this library's kernels, see `vdiff_fast.patch`.

    Raises:
        CodecError: no such folder, another class than those of `CODECS`, or weights that do not fit.
        ImportError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("codecs are diffusers' autoencoders: pip install diffusers") from error
    path = Path(folder)
    if not (path / "config.json").is_file() and (path / "vae").is_dir():
        path = path / "vae"
    name = class_name_of(path, "an autoencoder", CodecError)
    if name not in CODECS:
        raise CodecError(f"{path}: is a {name or 'model of no named class'}; codecs are {', '.join(CODECS)}")
    try:
        module = getattr(diffusers, name).from_pretrained(path, torch_dtype=dtype, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise CodecError(f"{path}: the {name} cannot be loaded: {' '.join(str(error).split())}") from error
    return codec_of(module.to(device), folder=path, patched=patched)


def codec_of(module: Any, *, folder: Path | None = None, patched: bool = True) -> Codec:
    """The codec of an autoencoder that is loaded already; it is put in evaluation mode.

    Raises:
        CodecError: the class is none of `CODECS`.
    """
    from vdiff_fast.patch import patch

    name = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in CODECS), None)
    if name is None:
        raise CodecError(f"{type(module).__name__} is no codec; codecs are {', '.join(CODECS)}")
    module.eval().requires_grad_(False)
    if patched:
        patch(module)
    return Codec(module, CODECS[name], folder)
