"""VideoUNet: shapes, errors, conditions, positions, saving, and agreement of its backends."""

from __future__ import annotations

import pytest
import torch

import vdiff_fast as vf
from tests.checks import relative_error
from tests.models.helpers import assert_as_close_as_the_reference, gradients, small_unet, steps, video
from vdiff_fast.models import VideoUNet


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 2.0), ("small", 35.0), ("base", 350.0)], ids=["tiny", "small", "base"]
)
def test_parameter_counts_of_the_presets(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = VideoUNet.preset(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)


def test_a_new_model_predicts_zero_and_its_temporal_layers_are_the_identity() -> None:
    x, t = video(), steps()
    assert torch.equal(VideoUNet.preset("tiny", num_groups=4)(x, t), torch.zeros_like(x))
    model = VideoUNet.preset("tiny", per_frame=True, grid=False, temporal_conv=(True, True, True))
    torch.nn.init.normal_(model.conv_out.weight)
    for module in model.modules():
        if isinstance(module, vf.models.video_unet.ResidualBlock):
            torch.nn.init.normal_(module.conv_2.weight, std=0.05)
    frame = model(x[:, :, 2:3], t).detach()
    torch.testing.assert_close(model(x, t)[:, :, 2:3], frame, rtol=1e-4, atol=1e-4 * float(frame.abs().max()))


@pytest.mark.parametrize("positions", ["bias", "rope", "none"])
@pytest.mark.parametrize("modulation", ["add", "scale_shift"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_every_parameter_has_a_gradient_and_frames_see_each_other(
    positions: str, modulation: str, per_frame: bool
) -> None:
    model = small_unet(positions=positions, modulation=modulation, per_frame=per_frame, num_classes=5)
    x, t = video(), steps()
    y, grads = gradients(model, x, t, y=torch.tensor([1, 5]))
    assert y.shape == x.shape
    assert vf.layout.is_channels_last(y)
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in grads)
    x.requires_grad_()
    (seen,) = torch.autograd.grad(model(x, t)[:, :, 0].square().sum(), x)
    assert (seen[:, :, -1].abs().amax(dim=(1, 2, 3)) > 0).all()


def test_one_frame_is_an_image() -> None:
    model = small_unet()
    y, grads = gradients(model, video((1, 3, 1, 8, 12)), steps(1))
    assert y.shape == (1, 3, 1, 8, 12)
    assert all(torch.isfinite(g).all() for g in grads)
    images = video((4, 3, 1, 8, 8))
    apart = torch.cat([model(images[i : i + 1], steps(4)[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model(images, steps(4)), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 63, 64), r"frame 63x64: height must be a multiple of 4; use 64 \(--size\), or pad"),
        ((2, 3, 4, 64, 30), r"frame 64x30: width must be a multiple of 4; use 32 \(--size\), or pad"),
        ((2, 3, 36, 8, 8), "36 frames > 32 learned positions; use sample_long or a RoPE model"),
        ((2, 4, 4, 8, 8), r"x must be \(B, 3, T, H, W\), got \(2, 4, 4, 8, 8\)"),
        ((2, 3, 8, 8), r"x must be \(B, 3, T, H, W\), got \(2, 3, 8, 8\)"),
    ],
)
def test_sizes_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoUNet.preset("tiny")(torch.zeros(shape), steps())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"channels": (100, 200), "num_groups": 32},
            "level 0: 100 channels are not divisible by 32 groups; .* 25, 20, 10",
        ),
        ({"head_dim": 12}, "level 0: 16 channels are not divisible by head_dim 12; largest divisors below: 8, 4, 2"),
        ({"blocks": (1, 1, 1)}, r"blocks \(1, 1, 1\) needs one entry per level of channels \(16, 32\)"),
        ({"positions": "absolute"}, "positions 'absolute' must be one of bias, rope, none"),
        ({"modulation": "multiply"}, "modulation 'multiply' must be one of add, scale_shift"),
    ],
)
def test_configs_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_unet(**changes)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    x, t = video(), steps()
    model, recomputing = small_unet(), small_unet(gradient_checkpointing=True)
    saved: dict[bool, int] = {}
    for checkpointed, m in ((False, model), (True, recomputing)):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda v, s=sizes: s.append(v.numel()) or v, lambda v: v):
            m(x, t).sum()
        saved[checkpointed] = sum(sizes)
    assert saved[True] < 0.5 * saved[False]
    for expected, actual in zip(gradients(model, x, t)[1], gradients(recomputing, x, t)[1]):
        assert torch.equal(actual, expected)


def test_fused_backends_are_as_close_to_float64_as_the_reference() -> None:
    assert_as_close_as_the_reference(small_unet())


def test_bf16_autocast_returns_the_dtype_of_x() -> None:
    model, x, t = small_unet(), video(), steps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, grads = gradients(model, x, t)
    assert y.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in grads)
    assert relative_error(y, model(x, t)) < 0.05
