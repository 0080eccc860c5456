"""A block without the ceremony of modules: a third of a small model's time goes into calling them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from operator import is_
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.nn.modules import module as everywhere


class Bare:
    """The blocks' own `forward`s on plain namespaces, for as long as the modules are what they were.

    Weights are not copied: a cast, a move and an optimiser's step are seen. Who puts another layer in the place of one
    (an adapter, a quantised one) finds it called as the module it is; while anybody hooks in, all are.

    instead  an attribute's name -> what stands in the place of its value
    """

    def __init__(self, blocks: nn.ModuleList, plain: Iterable[type], **instead: Callable[[Any], Any]) -> None:
        modules = [module for block in blocks for module in block.modules()]
        self.tables: list[dict[str, Any]] = [blocks._modules]
        self.tables += [table for m in modules for table in (m._parameters, m._modules) if table]
        self.found = [value for table in self.tables for value in table.values()]
        self.hooks = [everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks]
        self.hooks += [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.blocks = [bare(block, tuple(plain), instead) for block in blocks]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the modules makes its own

    @property
    def holds(self) -> bool:
        """Whether nothing was replaced and nobody watches."""
        now = chain.from_iterable(table.values() for table in self.tables)
        return not any(self.hooks) and all(map(is_, now, self.found))


def bare(module: nn.Module, plain: tuple[type, ...], instead: Mapping[str, Callable[[Any], Any]]
         ) -> Callable[..., Any]:
    """What a module computes; itself where its class is not one of `plain`, or its forward is not its class's."""
    if type(module) not in plain or "forward" in vars(module):
        return module
    space = {name: value for name, value in vars(module).items() if name[0] != "_"} | module._parameters
    space |= {name: other(space[name]) for name, other in instead.items() if name in space}
    inner = {name: child if child is None else bare(child, plain, instead) for name, child in module._modules.items()}
    return partial(type(module).forward, SimpleNamespace(**space, **inner))
