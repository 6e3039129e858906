"""Each codec equals diffusers' own calls; cut in chunks and tiles it stays within diffusers' own seams."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.codecs.tiny import CODEC_NAMES, make_codec
from vdiff_fast.codecs import CodecError, limit_memory, load_codec
from vdiff_fast.codecs.codec import Codec
from vdiff_fast.codecs.memory import bytes_of


def _video(codec: Codec, steps: int = 1, batch: int = 2, side: int = 32) -> Tensor:
    frames = 1 + steps * codec.compression[0] * codec.kind.group if codec.compression[0] > 1 else 3
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, frames, side, side, generator=generator) * 2 - 1


def _own_encode(module: object, video: Tensor, per_frame: bool) -> tuple[Tensor, Tensor]:
    given = video.transpose(1, 2).flatten(0, 1) if per_frame else video
    distribution = module.encode(given).latent_dist  # type: ignore[attr-defined]
    back = (distribution.mean, distribution.logvar)
    if not per_frame:
        return back
    mean, logvar = (x.unflatten(0, (len(video), -1)).transpose(1, 2) for x in back)
    return mean, logvar


def _own_decode(module: object, z: Tensor, name: str) -> Tensor:
    images = z.transpose(1, 2).flatten(0, 1)
    if name == "AutoencoderKLTemporalDecoder":
        return module.decode(images, num_frames=z.shape[2]).sample.unflatten(0, (len(z), -1)).transpose(1, 2)  # type: ignore[attr-defined]
    if name == "AutoencoderKL":
        return module.decode(images).sample.unflatten(0, (len(z), -1)).transpose(1, 2)  # type: ignore[attr-defined]
    return module.decode(z).sample  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CODEC_NAMES)
@torch.no_grad()
def test_encode_and_decode_equal_diffusers_own_calls(name: str, tmp_path: Path) -> None:
    module = make_codec(name, tmp_path)
    codec = load_codec(tmp_path)
    video = _video(codec)
    mean, logvar = codec.encode(video)
    for ours, theirs in zip((mean, logvar), _own_encode(module, video, codec.kind.per_frame)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert mean.shape[2:] == codec.latent_shape(*video.shape[2:])
    decoded = codec.decode(mean)
    torch.testing.assert_close(decoded, _own_decode(module, mean, name), rtol=1e-5, atol=1e-5)
    assert decoded.shape == video.shape == (*video.shape[:2], *codec.pixel_shape(*mean.shape[2:]))
    torch.testing.assert_close(codec.denormalise(codec.normalise(mean)), mean)


def test_an_image_codec_in_chunks_of_frames_equals_the_whole(tmp_path: Path) -> None:
    make_codec("AutoencoderKL", tmp_path)
    codec = load_codec(tmp_path)
    video = _video(codec)
    whole = codec.encode(video)
    codec.chunk_frames = 1
    for part, of_whole in zip(codec.encode(video), whole):
        torch.testing.assert_close(part, of_whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CODEC_NAMES if name != "AutoencoderKLTemporalDecoder"])
@torch.no_grad()
def test_tiles_are_blended_by_diffusers(name: str, tmp_path: Path) -> None:
    module = make_codec(name, tmp_path)
    codec = load_codec(tmp_path)
    z = codec.encode(_video(codec, batch=1, side=64)).mean
    whole = codec.decode(z)
    codec.tile(32, 32)
    tiled = codec.decode(z)
    assert tiled.shape == whole.shape
    # A random decoder sees as far as its receptive field: seams differ, and a tile's own corner does not.
    assert not torch.equal(tiled, whole)
    codec.kind.tile(module, 32, 32)  # type: ignore[misc]
    torch.testing.assert_close(tiled, _own_decode(module, z, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_memory_is_flat_over_length(name: str, tmp_path: Path) -> None:
    make_codec(name, tmp_path)
    codec = load_codec(tmp_path)
    limit_memory(codec, 1 << 30, 64, 64)
    largest: list[int] = []

    def watch(_module: object, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            largest[-1] = max(largest[-1], output.numel())

    leaves = [m for m in codec.module.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(watch) for m in leaves]
    time = codec.compression[0]
    # Hunyuan and LTX decode 16 frames at a time, with what lies before the first of them.
    for latents in (24 // time, 40 // time):  # both even, for CogVideoX
        largest.append(0)
        codec.decode(torch.zeros(1, codec.latent_channels, latents + 1, 2, 2))
    for hook in hooks:
        hook.remove()
    assert largest[0] == largest[1] > 0


def test_a_bound_on_memory_sets_chunks_and_then_tiles(tmp_path: Path) -> None:
    make_codec("AutoencoderKL", tmp_path)
    codec = load_codec(tmp_path)
    frame = bytes_of(codec, 64, 64, 1)
    assert limit_memory(codec, 3 * frame, 64, 64) == (3, 64, 64)
    assert codec.chunk_frames == 3
    frames, height, width = limit_memory(codec, frame // 3, 64, 64)
    assert (frames, height, width) == (1, 32, 32)
    assert codec.module.use_tiling
    with pytest.raises(CodecError, match="smallest call needs about 1 MiB"):
        limit_memory(codec, 10, 64, 64)


def test_lengths_and_sizes_that_a_codec_cannot_take_name_the_nearest(tmp_path: Path) -> None:
    make_codec("AutoencoderKLWan", tmp_path)
    codec = load_codec(tmp_path)
    with pytest.raises(CodecError, match=r"16 frames: AutoencoderKLWan takes 1 \+ 4 k frames; use 13 or 17"):
        codec.latent_shape(16, 32, 32)
    with pytest.raises(CodecError, match="width that is a multiple of 8; use 32 or 40"):
        codec.encode(torch.zeros(1, 3, 5, 32, 36))
    with pytest.raises(CodecError, match="height that is a multiple of 8; use 8"):
        codec.latent_shape(1, 4, 32)
    with pytest.raises(CodecError, match=r"decodes latents \(B, 4, t, h, w\), got \(1, 8, 1, 2, 2\)"):
        codec.decode(torch.zeros(1, 8, 1, 2, 2))
    with pytest.raises(CodecError, match=r"encodes videos \(B, 3, T, H, W\)"):
        codec.encode(torch.zeros(1, 1, 1, 32, 32))


def test_a_folder_that_holds_no_codec(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="no such folder"):
        load_codec(tmp_path / "absent")
    with pytest.raises(CodecError, match=r"holds no config\.json"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(CodecError, match="is a UNet2DModel; codecs are AutoencoderKL"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CodecError, match="is no JSON"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(CodecError, match="cannot be loaded"):
        load_codec(tmp_path)


def test_the_fingerprint_tells_weights_apart_and_not_folders(tmp_path: Path) -> None:
    module = make_codec("AutoencoderKL", tmp_path / "a" / "vae")
    make_codec("AutoencoderKL", tmp_path / "b")
    first, second = load_codec(tmp_path / "a"), load_codec(tmp_path / "b", patched=False)
    assert first.fingerprint == second.fingerprint
    with torch.no_grad():
        module.decoder.conv_out.bias += 1e-3
    module.save_pretrained(tmp_path / "c")
    assert load_codec(tmp_path / "c").fingerprint != first.fingerprint
