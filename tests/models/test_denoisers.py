"""What holds of VideoUNet and VideoDiT alike: layouts, conditions, their errors, injection, saving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.checks import relative_error
from tests.models.helpers import SMALL, SMALL_DIT, gradients, small_dit, small_unet, steps, video
from vdiff_fast.models import VideoDiT, VideoUNet

Make = Callable[..., Any]
NETWORKS = {"unet": small_unet, "dit": small_dit}
EVERY_CONDITION = {"num_classes": 3, "context_dim": 6, "cond_channels": 4}

both = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
injections = pytest.mark.parametrize("injection", ["input", "blocks"])


@pytest.mark.parametrize(
    ("kind", "names"), [(VideoUNet, "tiny, small, base"), (VideoDiT, "tiny, s, b, l, xl")], ids=NETWORKS
)
def test_unknown_preset_names_the_known_ones(kind: Any, names: str) -> None:
    with pytest.raises(ValueError, match=f"unknown preset 'huge'; choose from {names}"):
        kind.preset("huge")


@both
def test_any_layout_gives_the_same_answer(make: Make) -> None:
    model, x, t = make(), video(), steps()
    y = model(x.contiguous(memory_format=torch.channels_last_3d), t)
    assert torch.equal(model(x, t), y)
    assert torch.equal(model(x.transpose(3, 4).contiguous().transpose(3, 4), t), y)


@both
def test_conditions_that_the_model_was_not_built_for(make: Make) -> None:
    x, t = video(), steps()
    plain, full = make(), make(**EVERY_CONDITION)
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
    with pytest.raises(ValueError, match=r"keys_values holds 7 tensors, the model has .* cross-attentions"):
        full(x, t, keys_values=(x,) * 7)
    with pytest.raises(ValueError, match="condition_injection 'attention' must be one of input, blocks"):
        make(condition_injection="attention")


@both
@injections
def test_conditions_change_the_prediction_and_none_is_the_null_condition(make: Make, injection: str) -> None:
    model = make(**EVERY_CONDITION, condition_injection=injection)
    x, t = video(), steps()
    null = model(x, t)
    cond, context, labels = video((2, 4, 4, 12, 8), 1), video((2, 5, 6), 2), torch.tensor([0, 2])
    for conditions in ({"y": labels}, {"context": context}, {"cond": cond}):
        assert relative_error(model(x, t, **conditions), null) > 1e-3
    assert torch.equal(model(x, t, y=torch.tensor([3, 3])), null)
    tokens = model.null_context.expand(2, 5, 6)
    torch.testing.assert_close(model(x, t, context=tokens), null)
    torch.testing.assert_close(model(x, t, cond=torch.zeros_like(cond)), null)


@both
@pytest.mark.parametrize("length", [5, 40])  # the library's attention over few tokens, and torch's over many
def test_what_a_context_mask_hides_is_not_read(make: Make, length: int) -> None:
    model, x, t = make(context_dim=6), video(), steps()
    context, mask = video((2, length, 6), 2), torch.arange(length).expand(2, -1) < torch.tensor([[length], [3]])
    seen = model(x, t, context=context, context_mask=mask)
    assert relative_error(seen, model(x, t, context=context)) > 1e-4
    torch.testing.assert_close(seen[1:], model(x[1:], t[1:], context=context[1:, :3]))
    torch.testing.assert_close(seen[:1], model(x[:1], t[:1], context=context[:1]))
    # Keys and values made before are masked alike.
    torch.testing.assert_close(model(x, t, keys_values=model.keys_values(context), context_mask=mask), seen)
    with pytest.raises(ValueError, match="context_mask was given without a context"):
        model(x, t, context_mask=mask)
    with pytest.raises(ValueError, match=rf"context_mask must be \(2, {length}\)"):
        model(x, t, context=context, context_mask=mask[:, 1:])
    with pytest.raises(TypeError, match="context_mask must be bool"):
        model(x, t, context=context, context_mask=mask.long())


@both
def test_keys_and_values_made_before_take_the_place_of_the_context(make: Make) -> None:
    model, x, t, context = make(context_dim=6), video(), steps(), video((2, 5, 6), 2)
    made = model.keys_values(context)
    layers = [block.cross_attn for block in model.blocks_in_order() if block.cross_attn is not None]
    assert len(made) == len(layers) > 0
    assert torch.equal(model(x, t, keys_values=made), model(x, t, context=context))
    null = tuple(tensor.expand(2, -1, -1) for tensor in model.keys_values())
    torch.testing.assert_close(model(x, t, keys_values=null), model(x, t))
    assert make().keys_values() == ()


@pytest.mark.parametrize(
    ("make", "new"),
    [(small_unet, lambda **c: VideoUNet(**SMALL, **c)), (small_dit, lambda **c: VideoDiT(**SMALL_DIT, **c))],
    ids=NETWORKS,
)
def test_injection_starts_as_the_model_without_and_acts_in_every_block(make: Make, new: Make) -> None:
    plain, model = make(), new(cond_channels=4, condition_injection="blocks")
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("injection." in name or name.startswith("condition.") for name in missing)
    x, t, cond = video(), steps(), video((2, 4, 4, 12, 8), 1)
    assert torch.equal(model(x, t, cond=cond), plain(x, t))
    assert torch.equal(model(x, t), plain(x, t))
    for block in model.blocks_in_order():
        before = model(x, t, cond=cond)
        torch.nn.init.normal_(block.injection.scale.weight, std=0.1)
        scaled = model(x, t, cond=cond)
        torch.nn.init.normal_(block.injection.shift.weight, std=0.1)
        assert min(relative_error(scaled, before), relative_error(model(x, t, cond=cond), scaled)) > 1e-4


@both
@injections
def test_gradients_reach_every_parameter_through_the_condition(make: Make, injection: str) -> None:
    """Also recomputed, where the condition's features are an input of every checkpointed block."""
    options = {"cond_channels": 4, "condition_injection": injection}
    x, t, cond = video(), steps(), video((2, 4, 4, 12, 8), 1)
    y, grads = gradients(make(**options), x, t, cond=cond)
    assert all(g.abs().max() > 0 for g in grads)
    again, recomputed = gradients(make(**options, gradient_checkpointing=True), x, t, cond=cond)
    torch.testing.assert_close(again, y, rtol=1e-5, atol=1e-5)
    for a, b in zip(recomputed, grads):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small_unet, {"modulation": "scale_shift", "positions": "rope"}),
        (small_dit, {"positions": "rope", "adaln": "shared", "patch": (2, 2, 2), "condition_injection": "blocks"}),
    ],
    ids=NETWORKS,
)
def test_state_dict_and_config_round_trip(make: Make, options: dict[str, Any]) -> None:
    model = make(3, num_classes=2, **options)
    config = type(model.config).from_dict(model.config.to_dict())
    assert config == model.config
    copy = type(model)(config)
    copy.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()})
    x, t = video(), steps()
    assert torch.equal(copy(x, t), model(x, t))
    with pytest.raises(ValueError, match=f"{type(config).__name__} has no widths; it has in_channels"):
        type(config).from_dict({"widths": [1]})
