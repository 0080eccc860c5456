"""What may be behind weights that do not fit: seen from names and shapes alone (C26 to C28)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlmkit.checkpoint.keys import Plan, Table, compare
from vlmkit.checkpoint.tensors import Stored
from vlmkit.types import Rule

RULES = [Rule("model.layers.{i}.up.weight", "decoder.blocks.{i}.up.weight"),
         Rule("model.layers.{i}.down.weight", "decoder.blocks.{i}.down.weight"), Rule("model.buffer", None)]
WANTED = {f"decoder.blocks.{i}.{name}.weight": torch.empty(shape, device="meta")
          for i in range(2) for name, shape in (("up", (8, 4)), ("down", (4, 8)))}


def planned(shapes: dict[str, tuple[int, ...]], kind: str = "F32") -> Plan:
    stored = {name: Stored(Path("x"), kind, shape, 0) for name, shape in shapes.items()}
    return compare(Table(RULES), stored, WANTED, lambda name: False)


def named(before: str = "", up: tuple[int, ...] = (8, 4), down: tuple[int, ...] = (4, 8)) -> dict[str, tuple[int, ...]]:
    return {f"{before}model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in (("up", up),
                                                                                                ("down", down))}


def test_what_fits_needs_no_guess() -> None:
    assert planned(named()) == Plan({o: planned(named()).pieces[o] for o in WANTED}, [], [], [], "")


@pytest.mark.parametrize("before", ["base_model.model.", "module.", "_orig_mod."])
def test_a_prefix_that_a_wrapper_left(before: str) -> None:
    plan = planned({**named(before), f"{before}model.buffer": (1,)})
    assert len(plan.unknown) == 5
    assert plan.guess == f"5 of these names are known without {before!r}: rename them"


def test_names_of_another_model() -> None:
    assert planned(named() | {"model.layers.0.up.lora_A.weight": (1, 4), "other.weight": (2,)}).guess == ""


def test_matrices_that_lie_the_other_way() -> None:
    assert planned(named(up=(4, 8), down=(8, 4))).guess.startswith("the matrices are transposed")


def test_another_size() -> None:
    assert planned(named(up=(16, 6), down=(6, 16))).guess.startswith("these weights are of another size")
    one = named() | {"model.layers.0.up.weight": (9, 4)}
    assert planned(one).guess == ""


@pytest.mark.parametrize(("shape", "kind"), [((32,), "F32"), ((4, 8), "F32"), ((1, 8, 4), "F32"), ((8, 1), "F32"),
                                             ((), "F32"), ((8, 4), "I32"), ((8, 4), "BOOL")])
def test_only_the_same_shape_and_kind_fits(shape: tuple[int, ...], kind: str) -> None:
    """Flattened, transposed, one that would be broadcast, integers: each is told, none is bent."""
    plan = planned(named() | {"model.layers.0.up.weight": shape}, kind)
    assert f"model.layers.0.up.weight is {list(shape)} {kind}, wanted [8, 4] float as" in plan.unlike[0]
