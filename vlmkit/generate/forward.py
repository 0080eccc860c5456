"""What one step computes: pictures and clips of new prompts, then all pieces in one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from ..model.features import FeatureCache
from .needs import Model
from .request import Request
from .rows import Rows
from .steps import Steps


class Piece(NamedTuple):
    """What one request brings to a step: `length` tokens behind those that are in the cache."""

    request: Request
    length: int

    @property
    def last(self) -> bool:
        """Whether nothing that is known follows, so that the next token can be chosen."""
        return self.request.done + self.length == len(self.request.tokens)


def encode(model: Model, rows: Rows, requests: Sequence[Request], features: FeatureCache | None) -> None:
    """What requests show, as far as their rows do not hold it: one call for all of them."""
    starts = [rows.held(request) for request in requests]
    visuals = [v for r, (first, _) in zip(requests, starts, strict=True) for v in r.prompt.visuals[first:]]
    if not visuals:
        return
    encoded = iter(model.encode(visuals, features))
    for request, (first, skip) in zip(requests, starts, strict=True):
        own = [next(encoded) for _ in request.prompt.visuals[first:]]
        given, wanted = sum(map(len, own)) - skip, int((request.prompt.slots >= request.done).sum())
        if given != wanted:
            raise ShapeError(f"{wanted} slots but {given} visual tokens ({[len(tokens) for tokens in own]}); "
                             "the prompt was planned with another packer than the model's")
        rows.shown(request, first, [len(tokens) for tokens in own])
        request.seen = (own[0] if len(own) == 1 else torch.cat(own))[skip:]


def forward(model: Model, rows: Rows, pieces: Sequence[Piece], steps: Steps | None = None) -> Tensor:
    """Run the row; the logits of those whose prompt is read, nobody looks at others.   [speaking, vocab]"""
    if steps is not None and all(piece.length == 1 and piece.last and piece.request.seen is None for piece in pieces):
        speaking = [piece.request for piece in pieces]
        found = steps([r.tokens[r.done] for r in speaking], [r.row for r in speaking], rows.cache)
        if found is not None:
            for request in speaking:
                request.done += 1
            return found
    ids: list[int] = []
    slots: list[Tensor] = []
    seen: list[Tensor] = []
    lens = [0] * len(rows.rows)
    for request, length in pieces:
        start = request.done
        if request.seen is not None:
            prompt = request.prompt.slots
            first, last = torch.searchsorted(prompt, torch.tensor([start, start + length])).tolist()
            before = len(prompt) - len(request.seen)
            slots.append(prompt[first:last] + (len(ids) - start))
            seen.append(request.seen[first - before : last - before])
        ids += request.tokens[start : start + length]
        lens[request.row] = length
    device = rows.cache[0].k.device
    given = torch.tensor(ids, device=device)
    x = model.splice(given, torch.cat(slots).to(device), seen) if seen else model.decoder.embed(given)
    counts, brief = torch.tensor(lens), getattr(model.decoder, "brief", False)
    hidden = model.decoder(x, counts, rows.cache, **({"ends": True} if brief else {}))
    hidden = hidden if brief else hidden[(counts.cumsum(0) - 1)[counts > 0]]
    read = [at for at, piece in enumerate(pieces) if piece.last]
    logits = model.logits(hidden if len(read) == len(hidden) else hidden[read]) if read else hidden[:0]
    for request, length in pieces:
        request.done += length
        if request.done >= request.start:
            request.seen = None
    return logits
