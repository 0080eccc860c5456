"""Several datasets as one, each with its share."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vlmkit.contracts import PartConfig, PartOf
from vlmkit.errors import DataError


class Share(BaseModel):
    """One of the datasets."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    data: Annotated[PartConfig, PartOf("dataset")] = Field(description="any dataset, also another mixture")
    name: str = Field("", description="what it is called where conversations are told of; its number when empty")
    weight: float | None = Field(None, gt=0, description="its share of the conversations, in proportion to the others'")


class Config(PartConfig):
    """Datasets, and how much of each."""

    of: tuple[Share, ...] = Field(min_length=1, description="datasets: `data`, `name`, `weight`. Without weights each "
                                  "conversation comes once in an epoch; with weights none is cut: the dataset that is "
                                  "largest for its weight comes once, the others again and again beside it")

    @field_validator("of")
    @classmethod
    def _weighed(cls, of: tuple[Share, ...]) -> tuple[Share, ...]:
        if 0 < sum(share.weight is not None for share in of) < len(of):
            raise ValueError("give a weight to all of them or to none")
        return of


class Mixture:
    """One dataset behind the other; whoever trains on them shuffles."""

    def __init__(self, config: Config) -> None:
        self.parts = [share.data.build() for share in config.of]
        self.names = [share.name or str(at) for at, share in enumerate(config.of)]
        sizes = [len(part) for part in self.parts]
        if not all(sizes):
            raise DataError("there is no conversation in it", where=f"data.of[{sizes.index(0)}]")
        weights = [share.weight or size for share, size in zip(config.of, sizes, strict=True)]
        once = max(size / weight for size, weight in zip(sizes, weights, strict=True))
        self.counts = [round(weight * once) for weight in weights]
        self.ends = list(accumulate(self.counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, at: int) -> list[dict[str, Any]]:
        if not 0 <= at < len(self):
            raise IndexError(at)
        part, inner = self._find(at)
        found: list[dict[str, Any]] = self.parts[part][inner]
        return found

    @property
    def epochs(self) -> dict[str, float]:
        """How often each dataset comes in one epoch of all."""
        return {name: count / len(part) for name, count, part in zip(self.names, self.counts, self.parts, strict=True)}

    def place(self, at: int) -> str:
        part, inner = self._find(at)
        named = getattr(self.parts[part], "place", None)
        return f"{self.names[part]}: {named(inner) if named else f'conversation {inner}'}"

    def _find(self, at: int) -> tuple[int, int]:
        part = bisect_right(self.ends, at)
        return part, (at - self.ends[part] + self.counts[part]) % len(self.parts[part])


def build(config: Config) -> Mixture:
    return Mixture(config)


EXAMPLE: dict[str, Any] = {"of": [{"data": {"use": "scenes"}, "weight": 1.0}]}
