"""Weights of DiT, Latte and diffusers' models in VideoDiT: the same outputs and the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.plain_dit import PlainDiT
from tests.checks import relative_error
from tests.models.helpers import steps, video
from vdiff_fast.models import VideoDiT, convert

TOLERANCE = 1e-4
PLAIN: dict[str, Any] = {"size": 12, "patch": 2, "channels": 4, "out_channels": 8, "width": 48, "depth": 4, "heads": 3}


def awake(module: nn.Module) -> nn.Module:
    """Every trained parameter drawn anew, those that start at zero too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def assert_same(
    theirs: nn.Module,
    run: Callable[[Tensor], Tensor],
    ours: VideoDiT,
    own: Callable[[Tensor], Tensor],
    x: Tensor,
    mapped: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    """Outputs, and gradients of the input and of every parameter; theirs are renamed as the weights were."""
    their_x, our_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, actual = run(their_x), own(our_x)
    assert expected.std() > 0.1
    assert relative_error(actual, expected) < TOLERANCE
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    cotangent = video(tuple(expected.shape), 5)
    expected.backward(cotangent)
    actual.backward(cotangent)
    torch.testing.assert_close(our_x.grad, their_x.grad, rtol=TOLERANCE, atol=TOLERANCE)
    absent = {name for name, p in theirs.named_parameters() if p.grad is None and p.requires_grad}
    assert not absent
    gradients = mapped({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    own_gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            own_gradients.pop(name), gradient, rtol=TOLERANCE, atol=TOLERANCE * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert set(own_gradients) <= {"null_context"}


@pytest.mark.parametrize("num_classes", [0, 5])
def test_dit_by_its_published_names(num_classes: int) -> None:
    plain = awake(PlainDiT(**PLAIN, num_classes=num_classes))
    model = convert.from_dit(plain.state_dict(), heads=3)
    assert (model.config.attention, model.config.num_classes) == ("joint", num_classes)
    labels = torch.tensor([1, 5]) if num_classes else None
    x, t = video((2, 4, 12, 12)), steps()
    assert_same(
        plain, lambda x: plain(x, t, labels), model, lambda x: model(x[:, :, None], t, y=labels)[:, :, 0], x,
        convert.dit_weights,
    )  # fmt: skip


def test_dit_becomes_a_video_model_whose_attention_over_time_is_closed() -> None:
    plain = awake(PlainDiT(**PLAIN, num_classes=5))
    model = convert.from_dit(plain.state_dict(), heads=3, attention="divided")
    x, t, labels = video((2, 4, 1, 12, 12)), steps(), torch.tensor([1, 5])
    torch.testing.assert_close(model(x, t, y=labels)[:, :, 0], plain(x[:, :, 0], t, labels), rtol=1e-4, atol=1e-4)
    model(x, t, y=labels).square().sum().backward()
    rows = model.modulation.weight.grad.unflatten(0, (-1, 48))
    assert rows[5].abs().max() > 0, "the closed gate learns"
    assert rows[3].abs().max() == 0, "nothing passes it before"


@pytest.mark.parametrize("num_classes", [0, 5])
def test_latte_by_its_published_names(num_classes: int) -> None:
    plain = awake(PlainDiT(**PLAIN, num_classes=num_classes, frames=3))
    model = convert.from_latte(plain.state_dict(), heads=3)
    labels = torch.tensor([1, 5]) if num_classes else None
    x, t = video((2, 3, 4, 12, 12)), steps()
    assert_same(
        plain, lambda x: plain(x, t, labels), model, lambda x: model(x.transpose(1, 2), t, y=labels).transpose(1, 2), x,
        convert.dit_weights,
    )  # fmt: skip


def small_diffusers_dit(**changes: Any) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    options = {
        "num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 3,
        "sample_size": 12, "patch_size": 2, "num_embeds_ada_norm": 5,
    }  # fmt: skip
    return awake(diffusers.DiTTransformer2DModel(**options | changes)).eval()


def summed_embeddings(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """One embedding for all blocks takes the gradients of all of theirs."""
    first = "transformer_blocks.0.norm1.emb."
    for name in [name for name in gradients if name.startswith(first)]:
        copies = [name.replace("blocks.0.", f"blocks.{i}.") for i in range(3)]
        gradients[name] = torch.stack([gradients[copy] for copy in copies]).sum(0)
    return convert.diffusers_dit_weights(gradients, block_embeddings=False)


@pytest.mark.parametrize("equal", [False, True], ids=["own_embeddings", "equal_embeddings"])
def test_diffusers_dit(equal: bool) -> None:
    theirs = small_diffusers_dit()
    if equal:
        for block in theirs.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    model = convert.from_diffusers(theirs)
    assert model.config.block_embeddings is not equal
    x, t, labels = video((2, 4, 12, 12)), steps(), torch.tensor([1, 5])
    mapped = summed_embeddings if equal else lambda g: convert.diffusers_dit_weights(g, block_embeddings=True)
    assert_same(
        theirs, lambda x: theirs(x, t, labels).sample, model, lambda x: model(x[:, :, None], t, y=labels)[:, :, 0], x,
        mapped,
    )  # fmt: skip


def small_diffusers_latte(**changes: Any) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    options = {
        "num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "cross_attention_dim": 48, "caption_channels": 20, "attention_bias": True, "sample_size": 12, "patch_size": 2,
        "activation_fn": "gelu-approximate", "norm_type": "ada_norm_single", "norm_elementwise_affine": False,
        "norm_eps": 1e-6, "video_length": 3,
    }  # fmt: skip
    return awake(diffusers.LatteTransformer3DModel(**options | changes)).eval()


@pytest.mark.parametrize("frames", [3, 1], ids=["video", "image"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_diffusers_latte(frames: int, bias: bool) -> None:
    theirs = small_diffusers_latte(attention_bias=bias)
    model = convert.from_diffusers(theirs)
    x, t, context = video((2, 4, frames, 12, 12)), steps(), video((2, 7, 20), 3)

    def mapped(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        found = convert.diffusers_latte_weights(gradients)
        kept = ("qkv.bias", "q.bias", "kv.bias") if not bias else ()
        for name in [n for n in found if n.endswith(kept)] if kept else []:
            found[name] = model.get_parameter(name).grad  # theirs has no such bias
        return found

    assert_same(
        theirs, lambda x: theirs(x, t, context).sample, model, lambda x: model(x, t, context=context), x, mapped
    )


def test_what_cannot_be_converted() -> None:
    state = PlainDiT(**PLAIN).state_dict()
    with pytest.raises(ValueError, match=r"width 48 is not one of DiT's \(384, 768, 1024, 1152\); give the number"):
        convert.from_dit(state)
    with pytest.raises(ValueError, match=r"no place for text_embedding_projection\.1\.bias"):
        convert.from_latte(state | {"text_embedding_projection.1.bias": torch.zeros(48)}, heads=3)
    with pytest.raises(ValueError, match="pos_embed is not the sin-cos table"):
        convert.from_dit(state | {"pos_embed": state["pos_embed"] + 0.1}, heads=3)
    with pytest.raises(ValueError, match="activation_fn is 'geglu'; VideoDiT computes 'gelu-approximate' alone"):
        convert.from_diffusers(small_diffusers_latte(activation_fn="geglu"))
    with pytest.raises(TypeError, match=r"from_diffusers knows DiTTransformer2DModel and .*, got Linear"):
        convert.from_diffusers(nn.Linear(2, 2))


def test_widths_of_dit_tell_their_heads() -> None:
    model = convert.from_dit(
        PlainDiT(size=4, patch=2, channels=4, out_channels=8, width=384, depth=1, heads=6).state_dict()
    )
    assert (model.config.heads, model.config.patch, model.config.mlp_ratio) == (6, (1, 2, 2), 4.0)
