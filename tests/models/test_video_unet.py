"""VideoUNet: shapes, errors, conditions, positions, saving, and agreement of its backends."""

from __future__ import annotations

import pytest
import torch

import vdiff_fast as vf
from tests.checks import relative_error, unit_roundoff
from tests.models.helpers import SMALL, gradients, small_unet, steps, video
from vdiff_fast.models import VideoUNet, VideoUNetConfig
from vdiff_fast.models.video_unet import ConditionInjection


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 2.0), ("small", 35.0), ("base", 350.0)], ids=["tiny", "small", "base"]
)
def test_parameter_counts_of_the_presets(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = VideoUNet.preset(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown preset 'huge'; choose from tiny, small, base"):
        VideoUNet.preset("huge")


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


def test_any_layout_gives_the_same_answer() -> None:
    model, x, t = small_unet(), video(), steps()
    y = model(x.contiguous(memory_format=torch.channels_last_3d), t)
    assert torch.equal(model(x, t), y)
    assert torch.equal(model(x.transpose(3, 4).contiguous().transpose(3, 4), t), y)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 63, 64), "frame 63x64: height must be a multiple of 4; use --resize 64 or --pad"),
        ((2, 3, 4, 64, 30), "frame 64x30: width must be a multiple of 4; use --resize 32 or --pad"),
        ((2, 3, 36, 8, 8), "36 frames > 32 learned positions; use sample_long or a RoPE model"),
        ((2, 4, 4, 8, 8), r"x must be \(B, 3, T, H, W\), got \(2, 4, 4, 8, 8\)"),
        ((2, 3, 8, 8), r"x must be \(B, 3, T, H, W\), got \(2, 3, 8, 8\)"),
    ],
)
def test_sizes_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoUNet.preset("tiny")(torch.zeros(shape), steps())


def test_conditions_that_the_model_was_not_built_for() -> None:
    x, t = video(), steps()
    plain, full = small_unet(), small_unet(num_classes=3, context_dim=6, cond_channels=4)
    with pytest.raises(TypeError, match=r"x must be floating point in \[-1, 1\], got torch.uint8"):
        plain(x.to(torch.uint8), t)
    with pytest.raises(ValueError, match=r"t must be \(2,\), one per video, got \(1,\)"):
        plain(x, t[:1])
    for name, value in (("y", t), ("context", x[:, 0, 0]), ("cond", x)):
        with pytest.raises(ValueError, match=f"{name} was given, but the model was built without it"):
            plain(x, t, **{name: value})
    with pytest.raises(ValueError, match=r"y must be \(2,\), got \(2, 1\)"):
        full(x, t, y=t[:, None])
    with pytest.raises(ValueError, match=r"label 7 is outside 0\.\.2 \(3 is the null class\)"):
        full(x, t, y=torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"context must be \(2, L, 6\), got \(2, 12, 8\)"):
        full(x, t, context=x[:, 0, 0])
    with pytest.raises(ValueError, match=r"cond must be \(2, 4, 4, 12, 8\)"):
        full(x, t, cond=x)


@pytest.mark.parametrize("injection", ["input", "blocks"])
def test_conditions_change_the_prediction_and_none_is_the_null_condition(injection: str) -> None:
    model = small_unet(num_classes=3, context_dim=6, cond_channels=4, condition_injection=injection)
    x, t = video(), steps()
    null = model(x, t)
    cond, context, labels = video((2, 4, 4, 12, 8), 1), video((2, 5, 6), 2), torch.tensor([0, 2])
    for conditions in ({"y": labels}, {"context": context}, {"cond": cond}):
        assert relative_error(model(x, t, **conditions), null) > 1e-3
    assert torch.equal(model(x, t, y=torch.tensor([3, 3])), null)
    tokens = model.null_context.expand(2, 5, 6)
    torch.testing.assert_close(model(x, t, context=tokens), null)
    torch.testing.assert_close(model(x, t, cond=torch.zeros_like(cond)), null)


def test_blocks_are_scaled_and_shifted_by_the_condition_at_every_level_from_zero_on() -> None:
    torch.manual_seed(0)
    model = VideoUNet(**SMALL, cond_channels=4, condition_injection="blocks")
    torch.nn.init.normal_(model.conv_out.weight)
    x, t, cond = video(), steps(), video((2, 4, 4, 12, 8), 1)
    assert torch.equal(model(x, t, cond=cond), model(x, t))
    injections = [m for m in model.modules() if isinstance(m, ConditionInjection)]
    # Two levels of one block, down and up, and two in the middle.
    assert len(injections) == 6
    for injection in injections:
        before = model(x, t, cond=cond)
        torch.nn.init.normal_(injection.scale.weight, std=0.1)
        scaled = model(x, t, cond=cond)
        torch.nn.init.normal_(injection.shift.weight, std=0.1)
        assert min(relative_error(scaled, before), relative_error(model(x, t, cond=cond), scaled)) > 1e-4


@pytest.mark.parametrize("injection", ["input", "blocks"])
def test_gradients_reach_every_parameter_through_the_condition(injection: str) -> None:
    """Also recomputed, where the condition's features are an input of every checkpointed block."""
    options = {"cond_channels": 4, "condition_injection": injection}
    x, t, cond = video(), steps(), video((2, 4, 4, 12, 8), 1)
    y, grads = gradients(small_unet(**options), x, t, cond=cond)
    assert all(g.abs().max() > 0 for g in grads)
    again, recomputed = gradients(small_unet(**options, gradient_checkpointing=True), x, t, cond=cond)
    assert torch.equal(again, y)
    assert all(torch.equal(a, b) for a, b in zip(recomputed, grads))


def test_state_dict_and_config_round_trip() -> None:
    model = small_unet(3, num_classes=2, modulation="scale_shift", positions="rope")
    config = VideoUNetConfig.from_dict(model.config.to_dict())
    assert config == model.config
    copy = VideoUNet(config)
    contiguous = {name: value.contiguous() for name, value in model.state_dict().items()}
    copy.load_state_dict(contiguous)
    x, t = video(), steps()
    assert torch.equal(copy(x, t), model(x, t))
    with pytest.raises(ValueError, match="VideoUNetConfig has no widths; it has in_channels"):
        VideoUNetConfig.from_dict({"widths": [1]})


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
        ({"condition_injection": "attention"}, "condition_injection 'attention' must be one of input, blocks"),
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
    """Output and every gradient, in units of the error that the reference makes in float32."""
    model, x, t = small_unet(), video(), steps()
    fused = gradients(model, x, t)
    with vf.use_backend("reference"):
        eager = gradients(model, x, t)
        exact = gradients(model.double(), x.double(), t)
    names = ["output", "x", *(name for name, _ in model.named_parameters())]
    floor = 8 * unit_roundoff(torch.float32)
    for name, f, e, z in zip(names, [fused[0], *fused[1]], [eager[0], *eager[1]], [exact[0], *exact[1]]):
        error, allowed = relative_error(f, z), 2 * max(relative_error(e, z), floor)
        assert error <= allowed, f"{name}: relative error {error:.2e} > {allowed:.2e}"


def test_bf16_autocast_returns_the_dtype_of_x() -> None:
    model, x, t = small_unet(), video(), steps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, grads = gradients(model, x, t)
    assert y.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in grads)
    assert relative_error(y, model(x, t)) < 0.05
