"""Checks for what speaks: decoder, attention backend, chat template."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmkitError
from ..types import KVCache, Learned, Said, Seen, Turn
from .modules import answer, same
from .outcomes import Skipped, promise, want
from .subjects import dice

HEADS, KV_HEADS, HEAD = 4, 2, 16


@promise("decoder")
def tells_its_size(case: Any) -> None:
    """It has width, vocab, context and blocks, and they are true of what it gives."""
    part = case.make()
    sizes = part.width, part.vocab, part.context
    want(all(isinstance(n, int) and n > 0 for n in sizes), f"width, vocab, context are {sizes!r}")
    x = case.draw(part)
    tokens = x[0]
    hidden, logits = answer(case, part, x)
    want(hidden.shape == tokens.shape, f"{list(tokens.shape)} became {list(hidden.shape)}")
    want(list(logits.shape) == [len(tokens), part.vocab], f"logits are {list(logits.shape)}, vocab is {part.vocab}")
    want(logits.dtype == torch.float32, f"logits are {logits.dtype}, not float32")


@promise("decoder")
def embeds_its_vocabulary(case: Any) -> None:
    """`embed` has a row of its width for every id below `vocab`, and the rows differ."""
    part = case.make()
    with torch.no_grad():
        rows = part.embed(torch.arange(part.vocab))
    want(list(rows.shape) == [part.vocab, part.width], f"[{part.vocab}, {part.width}] wanted, got {list(rows.shape)}")
    want(not torch.equal(rows[0], rows[-1]), "its rows are all the same")


@promise("decoder")
def looks_back_only(case: Any) -> None:
    """A later token changes nothing before it, and everything from it on."""
    part = case.make()
    tokens, ids, lens = case.draw(part)
    other = tokens.clone()
    other[2] += 1
    before, after = (answer(case, part, (x, ids, lens))[0] for x in (tokens, other))
    same([before[:2], before[4:]], [after[:2], after[4:]], "before the change, and in the next sequence")
    want(all(not torch.allclose(before[i], after[i], atol=1e-6) for i in (2, 3)), "a token is not looked at")


@promise("decoder")
def caches_what_it_saw(case: Any) -> None:
    """With a cache, in pieces and token by token, it gives what it gives at once; a row of length 0 rests."""
    part = case.make()
    tokens, ids, _ = case.draw(part)
    cache = part.cache(3, 12)
    want(len(cache) == len(part.blocks), f"{len(part.blocks)} blocks, {len(cache)} caches")
    whole = answer(case, part, (tokens[:5], ids[:5], torch.tensor([5])))[0]
    with torch.no_grad():
        tokens = tokens + part.embed(ids)
        first = part(torch.cat([tokens[:3], tokens[5:7]]), torch.tensor([3, 2, 0]), cache)
        want(cache[0].lens.tolist() == [3, 2, 0], f"3, 2 and 0 tokens later its lens are {cache[0].lens.tolist()}")
        rest = [part(tokens[i : i + 1], torch.tensor([1, 0, 0]), cache) for i in (3, 4)]
    same([whole], [torch.cat([first[:3], *rest])], "in pieces and at once")
    want(cache[0].lens.tolist() == [5, 2, 0], f"two tokens later its lens are {cache[0].lens.tolist()}")
    if getattr(part, "brief", False):
        with torch.no_grad():
            ends = part(torch.cat([tokens[:3], tokens[5:7]]), torch.tensor([3, 2, 0]), part.cache(3, 12), ends=True)
        same([first[[2, 4]]], [ends], "at the ends alone and as part of the whole")


@promise("decoder")
def blocks_run_in_order(case: Any) -> None:
    """`blocks` are modules of its own; each runs once, the first one first."""
    part = case.make()
    ran = list[int]()
    own = set(part.modules())
    want(len(part.blocks) and all(block in own for block in part.blocks), "blocks are modules of the decoder")
    for at, block in enumerate(part.blocks):
        block.register_forward_hook(lambda *_, at=at: ran.append(at))
    answer(case, part, case.draw(part))
    want(ran == list(range(len(part.blocks))), f"they ran as {ran}")


def _written_out(q: Tensor, k: Tensor, v: Tensor, lens: Tensor, window: int | None) -> Tensor:
    """Causal attention, sequence by sequence, from its definition.   q [total, heads, head] -> the same"""
    out = []
    for a, b, c in zip(*(x.split(lens.tolist()) for x in (q, k, v)), strict=True):
        b, c = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (b, c))
        scores = torch.einsum("ihd,jhd->hij", a, b) / q.shape[2] ** 0.5
        back = torch.arange(len(a))[:, None] - torch.arange(len(a))
        hidden = (back < 0) | (back >= (window or len(a)))
        out.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, -torch.inf).softmax(-1), c))
    return torch.cat(out)


def _backend(case: Any) -> Any:
    made = case.make()
    ask = getattr(made, "unfit", None)
    if ask and (why := ask(torch.device("cpu"), torch.float32, HEAD)):
        raise Skipped(f"here it {why}")
    return made


@promise("attention")
def attends_as_written(case: Any) -> None:
    """Rows of sequences, shared heads, with and without a window: what the definition gives."""
    attend, rng = _backend(case), Random(0)
    for _ in range(4):
        lens = torch.tensor([rng.randint(1, 9) for _ in range(rng.randint(1, 4))])
        total, window = int(lens.sum()), rng.choice([None, 1, 3])
        q, k, v = (torch.randn(total, heads, HEAD, generator=dice(total)) for heads in (HEADS, KV_HEADS, KV_HEADS))
        with torch.no_grad():
            same([_written_out(q, k, v, lens, window)], [attend(q, k, v, lens, None, window)],
                 f"lens {lens.tolist()}, window {window}")


@promise("attention")
def attends_from_a_cache(case: Any) -> None:
    """Tokens that come later see those in the cache, as if all had come at once; resting rows are left alone."""
    attend, noise = _backend(case), dice(1)
    q, k, v = (torch.randn(6, heads, HEAD, generator=noise) for heads in (HEADS, KV_HEADS, KV_HEADS))
    whole = _written_out(q, k, v, torch.tensor([6]), None)
    room = torch.zeros(2, 8, KV_HEADS, HEAD)
    cache = KVCache(room.clone(), room.clone(), torch.zeros(2, dtype=torch.int64))
    found, at = [], 0
    with torch.no_grad():
        for count in (3, 2, 1):
            some = slice(at, at + count)
            found.append(attend(q[some], k[some], v[some], torch.tensor([0, count]), cache, None))
            at += count
            cache.lens[1] = at
    same([whole], [torch.cat(found)], "from the cache and at once")
    want(not cache.k[0].any(), "it wrote into a row that rests")


@promise("attention")
def attention_learns(case: Any) -> None:
    """Gradients reach queries, keys and values."""
    attend = _backend(case)
    given = [torch.randn(5, heads, HEAD, generator=dice(2)).requires_grad_() for heads in (HEADS, KV_HEADS, KV_HEADS)]
    try:
        attend(*given, torch.tensor([2, 3]), None, None).square().sum().backward()
    except VlmkitError as why:
        raise Skipped(f"here it {why.what}") from None
    lost = [n for n, x in zip("qkv", given, strict=True) if x.grad is None or not x.grad.abs().max() > 0]
    want(not lost, f"none for {', '.join(lost)}")


TURNS = [Turn("user", [Seen(0), "What is on <image> this one?"]), Turn("assistant", ["A cat."]),
         Turn("user", ["And here?", Seen(1)])]


@promise("chat")
def writes_what_was_said(case: Any) -> None:
    """Every picture and every word comes out once, in order, as what it is: Seen or Said."""
    pieces = case.make().render(TURNS, True)
    want(all(isinstance(p, str | Said | Seen | Learned) for p in pieces), "a piece is str, Said, Seen or Learned")
    want([p.index for p in pieces if isinstance(p, Seen)] == [0, 1], "pictures are lost, doubled or out of order")
    said = "".join(p.text for p in pieces if isinstance(p, Said))
    for words in ("What is on <image> this one?", "A cat.", "And here?"):
        want(said.count(words) == 1, f"{words!r} is not said exactly once; {said!r} is")


@promise("chat")
def learns_the_answer_only(case: Any) -> None:
    """What the assistant said is learned, and how an answer closes; what a user says never is."""
    pieces = case.make().render(TURNS[:2], False)
    learned = "".join(p.text for p in pieces if isinstance(p, Learned) or (isinstance(p, Said) and p.learned))
    want("A cat." in learned, f"only {learned!r} is learned")
    want("this one" not in learned, "a user's words are learned")


@promise("chat")
def opens_the_reply(case: Any) -> None:
    """`reply` adds what stands before an answer and changes nothing before it; `stops` say what ends one."""
    chat = case.make()
    without, opened = (_flat(chat.render(TURNS, reply)) for reply in (False, True))
    want(opened[: len(without)] == without, "the text before the reply changes")
    want(isinstance(chat.stops, tuple) and all(isinstance(s, str) and s for s in chat.stops),
         f"stops are strings, got {chat.stops!r}")
    want(_flat(chat.render(TURNS, True)) == opened, "it writes otherwise the second time")


def _flat(pieces: list[Any]) -> str:
    return "".join(p if isinstance(p, str) else f"[{p.index}]" if isinstance(p, Seen) else p.text for p in pieces)
