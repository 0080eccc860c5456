"""Calls made ahead of their results, in as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Ahead:
    """`with Ahead() as ahead`: each `ahead(call, ...)` begins ahead; `()` of what it gives is the result, or raises.

    The newest call waits: for the next one, which sends it to a thread, or for a result, when whoever asks makes it.
    So a single call costs no thread. At the end what has not begun never begins.
    """

    def __enter__(self) -> Ahead:
        self.threads = torch.get_num_threads()
        self.pool: ThreadPoolExecutor | None = None
        self.newest: tuple[Future[Any], Callable[[], Any]] | None = None
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, call: Callable[..., T], *given: Any) -> Callable[[], T]:
        if self.newest is not None and self.threads > 1:
            self.pool = self.pool or ThreadPoolExecutor(self.threads, "vlmkit")
            self.pool.submit(_make, self.newest[0], self.newest[1])
        elif self.newest is not None:
            _make(*self.newest)
        made: Future[T] = Future()
        self.newest = made, partial(copy_context().run, call, *given)  # limits hold there, too
        return partial(self._result, made)

    def _result(self, made: Future[T]) -> T:
        if self.newest is not None:
            newest, self.newest = self.newest, None
            _make(*newest)
        return made.result()


def _make(made: Future[Any], call: Callable[[], Any]) -> None:
    try:
        made.set_result(call())
    except Exception as error:
        made.set_exception(error)
