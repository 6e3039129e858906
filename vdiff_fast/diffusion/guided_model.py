"""A model with the inputs of classifier-free guidance, called once on the doubled batch or twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vdiff_fast.diffusion.guidance import Guidance
from vdiff_fast.diffusion.modulation import ModulationTable, context_keys_values

Model = Callable[..., Tensor]


class GuidedModel:
    """(prediction, unconditional prediction) at x and step i.

    What does not change during a sampling run is made before it: the doubled inputs of a joint call, the modulations
    of all steps where the model has `modulations`, and the keys and values of its cross-attention where it has
    `keys_values`.

    Args:
        model: model(x, t, **inputs).
        inputs: by name; those that are None are left out.
        guidance: what the unconditional call gets, and whether both calls are one.
    """

    def __init__(self, model: Model, inputs: Mapping[str, Any], guidance: Guidance) -> None:
        self.model = model
        self.given, self.without = _pair(inputs, guidance.uncond)
        paired = self.given.keys() == self.without.keys()
        paired = paired and all(self.given[name].shape == self.without[name].shape for name in self.given)
        if guidance.batch == "joint" and not paired:
            raise ValueError(
                "guidance in a joint batch needs an unconditional tensor of the same shape for every input, such as "
                f"uncond={{'y': null_class}}; got {sorted(self.without)} for {sorted(self.given)}"
            )
        self.joint = paired and guidance.batch != "split"
        self._may_split = guidance.batch == "auto"
        self.both = {n: torch.cat([v, self.without[n]]) for n, v in self.given.items()} if self.joint else {}
        self._ends: Tensor | None = None
        self._tables: dict[str, ModulationTable | None] = {}
        self._kept: dict[str, dict[str, tuple[Tensor, ...]]] = {}

    def prepare(self, timesteps: Tensor, batch: int, guided: bool, unguided: bool, ends: Tensor | None = None) -> None:
        """Make the modulations of every step, and keys and values, for the calls that a run makes.

        `ends` are where the steps end, of a sampler that tells the model.
        """
        self._ends = ends
        if guided and self.joint:
            self._prepare("both", timesteps, 2 * batch, self.both)
        if unguided or (guided and not self.joint):
            self._prepare("given", timesteps, batch, self.given)
        if guided and not self.joint:
            self._prepare("without", timesteps, batch, self.without)

    def _prepare(self, name: str, timesteps: Tensor, batch: int, inputs: dict[str, Tensor]) -> None:
        self._tables[name] = ModulationTable.of(self.model, timesteps, batch, inputs.get("y"), self._ends)
        kept = context_keys_values(self.model, batch, inputs.get("context"))
        self._kept[name] = {"keys_values": kept} if kept else {}

    def __call__(self, x: Tensor, t: Tensor, step: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
        """t and step are 0-d tensors on the device of x."""
        if not guided:
            return self._run("given", x, t, step, self.given), None
        if self.joint:
            try:
                prediction, uncond = self._run("both", torch.cat([x, x]), t, step, self.both).chunk(2)
                return prediction, uncond
            except torch.OutOfMemoryError:
                if not self._may_split:
                    raise
            # The doubled batch does not fit: its activations are gone, and every later step splits.
            self.joint = False
            self._tables.clear()
            self._kept.clear()
        prediction = self._run("given", x, t, step, self.given)
        return prediction, self._run("without", x, t, step, self.without)

    def _run(self, name: str, x: Tensor, t: Tensor, step: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        table, kept = self._tables.get(name), self._kept.get(name, {})
        arguments: dict[str, Any] = {key: value for key, value in inputs.items() if key != "context" or not kept}
        if table is not None:
            arguments["modulation"] = table.row(step)
        if self._ends is not None:
            arguments["r"] = self._ends.index_select(0, step.reshape(1)).expand(len(x))
        return self.model(x, t.expand(len(x)), **arguments, **kept)


def _pair(inputs: Mapping[str, Any], uncond: Mapping[str, Any] | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of both calls: an int among the unconditional ones fills the shape of its partner; the rest is shared."""
    given = {name: value for name, value in inputs.items() if value is not None}
    replaced = dict.fromkeys(("y", "context", "context_mask")) if uncond is None else dict(uncond)
    unknown = set(replaced) - set(inputs)
    if unknown:
        raise ValueError(f"uncond has {', '.join(sorted(unknown))}; it may name {', '.join(inputs)}")
    for name, value in replaced.items():
        if isinstance(value, int) and name in given:
            replaced[name] = torch.full_like(given[name], value)
    return given, {name: value for name, value in (given | replaced).items() if value is not None}
