"""VideoDiT: sizes, shapes, errors, conditions, positions, saving, memory, and agreement of its backends."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

import vdiff_fast as vf
from tests.checks import relative_error
from tests.models.helpers import assert_as_close_as_the_reference, gradients, small_dit, steps, video
from vdiff_fast.models import VideoDiT
from vdiff_fast.nn import sincos_grid, sincos_positions
from vdiff_fast.nn.patch_embedding import patchify, unpatchify

ATTENTION = ("interleaved", "divided", "joint")
POSITIONS = ("rope", "sincos", "none")


def dit_parameters(width: int, depth: int, patch: int) -> int:
    """DiT's parameters on 32x32x4 latents with 1000 classes and a learned variance, without its position table."""
    linear = [(4 * patch**2, width), (256, width), (width, width), (width, 8 * patch**2), (width, 2 * width)]
    linear += depth * [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width), (width, 6 * width)]
    return sum(i * o + o for i, o in linear) + 1001 * width


@pytest.mark.parametrize("attention", ["interleaved", "joint"])
@pytest.mark.parametrize(
    ("name", "patch", "width", "depth", "millions"),
    [
        ("s", 2, 384, 12, 32.963), ("s", 4, 384, 12, 32.9), ("s", 8, 384, 12, 33.0), ("b", 2, 768, 12, 130.5),
        ("b", 4, 768, 12, 130.4), ("l", 2, 1024, 24, 458.1), ("xl", 2, 1152, 28, 675.1), ("xl", 8, 1152, 28, 675.8),
    ],
)  # fmt: skip
def test_parameter_counts_are_those_of_dit(
    name: str, patch: int, width: int, depth: int, millions: float, attention: str
) -> None:
    options = {"patch": (1, patch, patch), "in_channels": 4, "out_channels": 8, "num_classes": 1000}
    with torch.device("meta"):
        model = VideoDiT.preset(name, attention=attention, **options)
    count = sum(p.numel() for p in model.parameters())
    assert count == dit_parameters(width, depth, patch)
    positions = sincos_grid(32 // patch, 32 // patch, width).numel()  # a parameter there, computed here
    assert (count + positions) / 1e6 == pytest.approx(millions, rel=5e-3)


def test_presets_by_name() -> None:
    config = VideoDiT.preset("tiny").config
    assert (config.width, config.depth) == (192, 6)


def test_a_new_model_predicts_zero_and_its_blocks_are_the_identity() -> None:
    model = VideoDiT(width=48, depth=2, heads=3, context_dim=6, cond_channels=4, num_classes=2)
    x, t = video(), steps()
    conditions = {"context": video((2, 5, 6), 1), "cond": video((2, 4, 4, 12, 8), 2), "y": torch.tensor([0, 1])}
    assert torch.equal(model(x, t, **conditions), torch.zeros_like(x))
    seen = []
    for layer in (*model.blocks, model.final_layer):
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].closed()))
    model(x, t, **conditions)
    # Between the blocks over space and over time the frames get their places.
    assert torch.equal(seen[2], seen[1])
    places = (seen[1] - seen[0]).detach()
    torch.testing.assert_close(places, sincos_positions(torch.arange(4), 48)[:, None].expand_as(places))


@pytest.mark.parametrize(("attention", "positions"), list(product(ATTENTION, POSITIONS)))
def test_every_parameter_has_a_gradient_and_frames_see_each_other(attention: str, positions: str) -> None:
    for options in ({"adaln": "block", "qk_norm": True}, {"adaln": "shared", "patch": (2, 2, 2)}):
        model = small_dit(attention=attention, positions=positions, num_classes=5, context_dim=6, **options)
        x, t = video(), steps()
        # The null context is one key, whose weight is 1 whatever the query: its gradient is zero, and needs more keys.
        x.requires_grad_()
        labels, context = torch.tensor([1, 5]), video((2, 5, 6), 1)
        y, told = model(x, t, y=labels), model(x, t, y=labels, context=context)
        assert y.shape == x.shape
        assert vf.layout.is_channels_last(y)
        grads = torch.autograd.grad(((y + told) * video(y.shape, 9)).sum(), [x, *model.parameters()])
        assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in grads)
        (seen,) = torch.autograd.grad(model(x, t)[:, :, 0].square().sum(), x)
        assert (seen[:, :, -1].abs().amax(dim=(1, 2, 3)) > 0).all()
        (seen,) = torch.autograd.grad(model(x, t)[:, :, 0, 0, 0].square().sum(), x)
        assert (seen[:, :, 0, -1, -1].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize(("attention", "positions"), list(product(ATTENTION, POSITIONS)))
def test_positions_tell_frames_rows_and_columns_apart(attention: str, positions: str) -> None:
    """Without positions a model commutes with any order of patches and frames; with positions it does not."""
    model, x, t = small_dit(attention=attention, positions=positions), video((1, 3, 4, 8, 8)), steps(1)
    y = model(x, t)
    for axis, shift in ((2, 1), (3, 2), (4, 2)):
        moved = model(x.roll(shift, axis), t).roll(-shift, axis)
        assert (relative_error(moved, y) < 1e-5) is (positions == "none"), axis


def test_patches_and_back() -> None:
    for patch in ((1, 1, 1), (1, 2, 2), (2, 2, 2), (4, 3, 2)):
        x = video((2, 3, 4, 12, 8))
        tokens = patchify(x, patch)
        assert tokens.shape == (2, 4 // patch[0], 96 // (patch[1] * patch[2]), 3 * patch[0] * patch[1] * patch[2])
        assert torch.equal(unpatchify(tokens, patch, 4, 12, 8), x)
    first = patchify(video((1, 2, 2, 4, 4)), (2, 2, 2))[0, 0, 1].reshape(2, 2, 2, 2)
    assert torch.equal(first, video((1, 2, 2, 4, 4))[0, :, :, :2, 2:].permute(1, 2, 3, 0))


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2), (4, 4, 4)])
def test_one_frame_is_an_image(attention: str, patch: tuple[int, int, int]) -> None:
    model = small_dit(attention=attention, patch=patch)
    y, grads = gradients(model, video((1, 3, 1, 8, 12)), steps(1))
    assert y.shape == (1, 3, 1, 8, 12)
    assert vf.layout.is_channels_last(y)
    assert all(torch.isfinite(g).all() for g in grads)
    images = video((4, 3, 1, 8, 8))
    apart = torch.cat([model(images[i : i + 1], steps(4)[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model(images, steps(4)), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 63, 64), r"frame 63x64: height must be a multiple of 4, the patch; use 64 \(--size\), or pad"),
        ((2, 3, 4, 64, 31), r"frame 64x31: width must be a multiple of 2, the patch; use 32 \(--size\), or pad"),
        ((2, 3, 5, 8, 8), "5 frames are not a multiple of the patch's 2; use 6, 4, or 1, an image"),
        ((2, 4, 4, 8, 8), r"x must be \(B, 3, T, H, W\), got \(2, 4, 4, 8, 8\)"),
        ((2, 3, 8, 8), r"x must be \(B, 3, T, H, W\), got \(2, 3, 8, 8\)"),
    ],
)
def test_sizes_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_dit(patch=(2, 4, 2))(torch.zeros(shape), steps())


@pytest.mark.parametrize("options", [{}, {"adaln": "shared"}, {"block_embeddings": True}], ids=str)
def test_modulations_made_before_take_the_place_of_t_and_y(options: dict) -> None:
    model, x, t, y = small_dit(num_classes=3, **options), video(), steps(), torch.tensor([0, 2])
    rows = model.modulations(t, y)
    assert rows.shape == (2, 14 * 48)
    assert torch.equal(model(x, torch.zeros_like(t), modulation=rows), model(x, t, y=y))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width 48 over 5 heads .* multiple of 8; numbers of heads that do: 1, 2, 3, 6"),
        ({"depth": 3}, "depth 3 must be even for interleaved attention; use 4"),
        ({"patch": (2, 2)}, r"patch \(2, 2\) must be three sizes from 1"),
        ({"positions": "learned"}, "positions 'learned' must be one of rope, sincos, none"),
        ({"attention": "axial"}, "attention 'axial' must be one of interleaved, divided, joint"),
        ({"adaln": "shared", "block_embeddings": True}, "cannot have block_embeddings"),
    ],
)
def test_configs_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_dit(**changes)


@pytest.mark.parametrize("attention", ATTENTION)
def test_gradient_checkpointing_changes_no_gradient(attention: str) -> None:
    x, t = video(), steps()
    options = {"attention": attention, "context_dim": 6, "num_classes": 2}
    model, recomputing = small_dit(**options), small_dit(**options, gradient_checkpointing=True)
    saved = [saved_bytes(m, x, t) for m in (model, recomputing)]
    assert saved[1] < 0.5 * saved[0]
    for expected, actual in zip(gradients(model, x, t)[1], gradients(recomputing, x, t)[1]):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def saved_bytes(model: VideoDiT, x: torch.Tensor, t: torch.Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            alive.append(value)  # a freed address could come again
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        model(x, t).sum()
    return sum(kept.values())


@pytest.mark.parametrize(
    ("attention", "positions"), [("interleaved", "rope"), ("divided", "sincos"), ("joint", "rope")]
)
def test_fused_backends_are_as_close_to_float64_as_the_reference(attention: str, positions: str) -> None:
    model = small_dit(attention=attention, positions=positions, qk_norm=True)
    assert_as_close_as_the_reference(model)


@pytest.mark.parametrize("attention", ATTENTION)
def test_bf16_autocast_returns_the_dtype_of_x(attention: str) -> None:
    model, x, t = small_dit(attention=attention, qk_norm=True), video(), steps()
    exact, exact_gradients = gradients(model, x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, grads = gradients(model, x, t)
        with vf.use_backend("reference"):
            reference, reference_gradients = gradients(model, x, t)
    assert y.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in grads)
    assert relative_error(y, exact) < max(0.03, 2 * relative_error(reference, exact))
    for g, r, e in zip(grads, reference_gradients, exact_gradients):
        assert relative_error(g, e) < max(0.05, 2 * relative_error(r, e))


def test_block_embeddings_equal_the_shared_ones_when_equal() -> None:
    shared = small_dit(num_classes=3)
    own = VideoDiT(replace(shared.config, block_embeddings=True))
    state = {n: v for n, v in shared.state_dict().items() if not n.startswith(("conditioning", "modulation"))}
    for i in range(2):
        own.conditioning[i].load_state_dict(shared.conditioning[0].state_dict())
    for kind in ("weight", "bias"):
        rows = getattr(shared.modulation, kind).split([6 * 48, 6 * 48, 2 * 48])
        state |= {f"modulation.{i}.{kind}": part for i, part in enumerate(rows)}
    missing, unexpected = own.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("conditioning") for name in missing)
    x, t, y = video(), steps(), torch.tensor([0, 2])
    torch.testing.assert_close(own(x, t, y=y), shared(x, t, y=y), rtol=1e-5, atol=1e-5)
