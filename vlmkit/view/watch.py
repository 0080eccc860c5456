"""Look at what passes named points of a model while it runs.

    with watch(model, "image.features") as seen:
        model(batch)
    seen["image.features"]      # a list, one tensor for each time it passed

The points are `nn.Identity` modules: `image.features`, `image.tokens`, and, with `attention="eager"`,
`decoder.blocks.*.attn.weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..errors import VlmkitError


@contextmanager
def watch(model: nn.Module, *names: str, keep: Callable[[Tensor], Tensor] = Tensor.detach
          ) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what passes the points of these names; `*` stands for anything. `keep` picks what is stored."""
    found = {point: module for point, module in model.named_modules() if any(fnmatchcase(point, n) for n in names)}
    for name in names:
        if not any(fnmatchcase(point, name) for point in found):
            raise VlmkitError(f"no point named {name!r} to watch", hint=f"there are: {', '.join(points(model))}")
    seen: dict[str, list[Tensor]] = {point: [] for point in found}
    hooks = [module.register_forward_hook(_collect(seen[point], keep)) for point, module in found.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def points(model: nn.Module) -> list[str]:
    """Names of the points there are; those of parts, such as timm's own, are left out."""
    return [name for name, module in model.named_modules()
            if type(module) is nn.Identity and not name.startswith(("tower.", "image.tower.", "video.tower."))]


def _collect(into: list[Tensor], keep: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, result: Any) -> None:
        into.append(keep(result))
    return hook
