"""What the networks' configurations share: plain values in and out, and the condition's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from typing_extensions import Self

InjectionKind = Literal["input", "blocks"]


@dataclass(frozen=True)
class SavedConfig:
    """A configuration that a trainer can save."""

    if TYPE_CHECKING:
        cond_channels: int
        condition_injection: InjectionKind

    @property
    def injects(self) -> bool:
        """Whether the blocks are scaled and shifted by `cond`."""
        return bool(self.cond_channels) and self.condition_injection == "blocks"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that YAML and JSON can hold; `from_dict` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is no field; the message lists the fields.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def check_choices(config: SavedConfig, **kinds: Any) -> None:
    """Raise ValueError where a field is none of the values of its Literal, `condition_injection` too."""
    for name, kind in {**kinds, "condition_injection": InjectionKind}.items():
        if getattr(config, name) not in get_args(kind):
            raise ValueError(f"{name} {getattr(config, name)!r} must be one of {', '.join(get_args(kind))}")
