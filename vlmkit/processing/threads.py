"""Calls made ahead of their results, in as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Ahead:
    """`with Ahead() as ahead`: each `ahead(call, ...)` begins at once; `()` of what it gives is the result, or raises.

    At the end what has not begun never begins. With one thread a call is made where it stands.
    """

    def __enter__(self) -> Ahead:
        threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(threads, "vlmkit") if threads > 1 else None
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, call: Callable[..., T], *given: Any) -> Callable[[], T]:
        if self.pool is not None:
            return self.pool.submit(copy_context().run, call, *given).result  # limits hold there, too
        done = call(*given)
        return lambda: done
