"""Checks for the four kinds that compute: tower, projector, packer, decoder."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from .outcomes import MODELS, Skipped, promise, want
from .subjects import floats, tensors, to

HALF = 0.15  # of what float32 gives, as the largest difference in bfloat16


def weights(part: Any) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict([*part.named_parameters(), *part.named_buffers()]) if isinstance(part, nn.Module) else {}


def learned(part: Any) -> dict[str, nn.Parameter]:
    if not (isinstance(part, nn.Module) and (found := dict(part.named_parameters()))):
        raise Skipped("it has no weights")
    return found


def same(one: list[Tensor], other: list[Tensor], said: str, atol: float = 2e-5, rtol: float = 2e-4) -> None:
    """Two lists of results, compared in float32: sums may be added up in another order."""
    want([x.shape for x in one] == [x.shape for x in other],
         f"{said}: {[list(x.shape) for x in one]} and {[list(x.shape) for x in other]}")
    for a, b in zip(one, other, strict=True):
        far = float((a.detach().float() - b.detach().float()).abs().max()) if a.numel() else 0.0
        close = torch.allclose(a.detach().float(), b.detach().float(), atol=atol, rtol=rtol)
        want(close, f"{said}: they differ by up to {far:.2g}")


def answer(case: Any, part: Any, x: Any) -> list[Tensor]:
    with torch.no_grad():
        out: list[Tensor] = case.run(part, x)
    return out


@promise(*MODELS)
def builds_on_meta(case: Any) -> None:
    """Built on the meta device it takes no memory: every weight is there, by the same name and shape."""
    meta, real = weights(case.make("meta")), weights(case.make())
    want(not (held := [name for name, t in meta.items() if not t.is_meta]), f"on another device: {', '.join(held)}")
    want({n: t.shape for n, t in meta.items()} == {n: t.shape for n, t in real.items()}, "names or shapes differ")


@promise(*MODELS)
def runs_on_meta(case: Any) -> None:
    """On the meta device it gives the shapes that it gives elsewhere, so nothing it does looks at values."""
    part = case.make()
    x = case.draw(part)
    out = answer(case, case.make("meta"), to(x, "meta"))
    want(all(t.is_meta for t in out), "gives values from tensors without any")
    real = [list(t.shape) for t in answer(case, part, x)]
    want([list(t.shape) for t in out] == real, f"{[list(t.shape) for t in out]} on meta, {real} on the host")


@promise(*MODELS)
def gives_finite_numbers(case: Any) -> None:
    """On random input, fresh weights give numbers, no NaN and no infinity."""
    part = case.make()
    want(all(t.isfinite().all() for t in answer(case, part, case.draw(part))), "a NaN or an infinity")


@promise(*MODELS)
def starts_from_the_seed(case: Any) -> None:
    """Built twice from one seed it has the same weights."""
    one, two = weights(case.make(seed=3)), weights(case.make(seed=3))
    differ = [name for name, t in one.items() if not torch.equal(t, two[name])]
    want(not differ, f"differ: {', '.join(differ[:5])}")


@promise(*MODELS)
def answers_the_same_twice(case: Any) -> None:
    """In eval mode the same input gives the same numbers, to the bit: no drop-out, no memory of the last call."""
    part = case.make()
    x, other = case.draw(part), case.draw(part, 1)
    first = answer(case, part, x)
    answer(case, part, other)
    want(all(torch.equal(a, b) for a, b in zip(first, answer(case, part, x), strict=True)), "it answers differently")


@promise(*MODELS)
def batch_is_single(case: Any) -> None:
    """What comes together gives what each gives alone."""
    part = case.make()
    x = case.draw(part)
    together = answer(case, part, x)
    for alone, pick in case.single(part, x):
        same(pick(together), answer(case, part, alone), "together and alone")


@promise(*MODELS)
def inputs_stay(case: Any) -> None:
    """It does not write into what it is given."""
    part = case.make()
    x = case.draw(part)
    before = [t.clone() for t in tensors(x)]
    answer(case, part, x)
    want(all(torch.equal(a, b) for a, b in zip(before, tensors(x), strict=True)), "the input was changed")


@promise(*MODELS)
def weights_come_back(case: Any) -> None:
    """Its weights, through safetensors and into another one, make that one the same."""
    part = case.make(seed=1)
    learned(part)
    stored = save({name: t.clone().contiguous() for name, t in part.state_dict().items()})
    other = case.make(seed=2)
    other.load_state_dict(load(stored))
    x = case.draw(part)
    same(answer(case, part, x), answer(case, other, x), "with the same weights")


@promise(*MODELS)
def loads_onto_meta(case: Any) -> None:
    """Built on meta and given weights, as loading does, it is whole: what no file holds, `materialize` computes."""
    part, other = case.make(), case.make("meta")
    other.load_state_dict(part.state_dict(), assign=True) if learned(part) else None
    if compute := getattr(other, "materialize", None):
        compute()
    lost = [name for name, t in weights(other).items() if t.is_meta]
    want(not lost, f"still without values: {', '.join(lost[:5])}")
    x = case.draw(part)
    same(answer(case, part, x), answer(case, other, x), "built and loaded")


@promise(*MODELS)
def runs_in_bfloat16(case: Any) -> None:
    """Built and fed in bfloat16 it answers in bfloat16 (logits in float32), near to what float32 gives."""
    part, half = case.make(), case.make(dtype=torch.bfloat16)
    if isinstance(part, nn.Module):
        half.load_state_dict(part.state_dict())
    x = floats(case.draw(part), lambda t: t.bfloat16())
    exact = answer(case, part, floats(x, lambda t: t.float()))
    out = answer(case, half, x)
    want(out[0].dtype == torch.bfloat16, f"gives {out[0].dtype}")
    for a, b in zip(exact, out, strict=True):
        far = float((a - b.float()).abs().max() / a.abs().max().clamp(min=1e-6))
        want(far < HALF, f"differs by {far:.0%} of the largest number")


@promise(*MODELS)
def moves_between_devices(case: Any) -> None:
    """Moved with `.to`, it computes where its weights and inputs are; nothing is left behind."""
    part = case.make()
    x = case.draw(part)
    before = answer(case, part, x)
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        moved = part.to(found) if isinstance(part, nn.Module) else part
        same(before, [t.cpu() for t in answer(case, moved, to(x, str(found)))], f"on the host and on {found}",
             atol=1e-2, rtol=1e-2)
    gone = part.to("meta") if isinstance(part, nn.Module) else part
    want(all(t.is_meta for t in answer(case, gone, to(x, "meta"))), "a result stayed behind")


@promise(*MODELS)
def every_weight_learns(case: Any) -> None:
    """A gradient that is finite reaches every weight, and what feeds the part."""
    part = case.make().train() if isinstance(made := case.make(), nn.Module) else made
    x = floats(case.draw(part), lambda t: t.requires_grad_())
    fed = [t for t in tensors(x) if t.requires_grad]
    out = case.run(part, x)
    want(all(t.requires_grad for t in out if fed or weights(part)), "the way back is cut")
    torch.stack([t.float().square().mean() for t in out]).sum().backward()
    grown = list(part.named_parameters()) if isinstance(part, nn.Module) else []
    lost = [name for name, p in grown if p.grad is None or not p.grad.isfinite().all()]
    want(not lost, f"no gradient: {', '.join(lost[:5])}")
    if fed and case.differentiable:
        want(fed[0].grad is not None and fed[0].grad.abs().max() > 0, "no gradient reaches what feeds it")


@promise(*MODELS)
def frozen_stays_frozen(case: Any) -> None:
    """Frozen, its weights get no gradient and nothing is recorded; what feeds it still learns through it."""
    part = case.make()
    learned(part)
    part.requires_grad_(False)
    want(not any(t.requires_grad for t in case.run(part, case.draw(part))), "something in it is recorded all the same")
    if case.differentiable:
        x = floats(case.draw(part), lambda t: t.requires_grad_())
        sum(t.float().square().mean() for t in case.run(part, x)).backward()
        fed = next(t for t in tensors(x) if t.requires_grad)
        want(fed.grad is not None and fed.grad.abs().max() > 0, "no gradient passes through it")
    want(all(p.grad is None for p in part.parameters()), "a frozen weight got a gradient")


@promise(*MODELS)
def learns_after_answering(case: Any) -> None:
    """After an answer in inference mode it can still learn: nothing it keeps from one is in the way of the other."""
    part = case.make()
    learned(part)
    x = case.draw(part)
    with torch.inference_mode():
        case.run(part, x)
    torch.stack([t.float().mean() for t in case.run(part, x)]).sum().backward()


@promise(*MODELS)
def leaves_switches_alone(case: Any) -> None:
    """Building and running it changes no switch that others share: default dtype, gradients, threads, random state."""

    def switches() -> list[Any]:
        return [torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
                torch.are_deterministic_algorithms_enabled(), torch.get_default_device()]

    before = switches()
    config, state = case.config, torch.get_rng_state()
    part = config.build(**case.given())
    torch.set_rng_state(state)
    if isinstance(part, nn.Module):
        part.eval()
    answer(case, part, case.draw(part))
    drawn, after = not torch.equal(state, torch.get_rng_state()), switches()
    torch.set_rng_state(state)
    torch.set_default_dtype(before[0])
    torch.set_grad_enabled(before[1])
    torch.use_deterministic_algorithms(before[3])
    torch.set_default_device(before[4])
    want(before == after, f"{before} became {after}")
    want(not drawn, "in eval mode it draws from everybody's random numbers")


@promise("tower", "projector", "decoder")
def compiles(case: Any) -> None:
    """What repeats (or the whole, where nothing does) goes through torch.compile and gives what it gives without."""
    part = case.make()
    x = case.draw(part)
    before = answer(case, part, x)
    torch._dynamo.reset()
    try:
        (part.blocks[0] if hasattr(part, "blocks") else part).compile(backend="eager")
        same(before, answer(case, part, x), "compiled and not")
    finally:
        torch._dynamo.reset()


@promise(*MODELS)
def shards(case: Any) -> None:
    """Under fully_shard (one process, gloo) it gives what it gives whole, and learns."""
    part = case.make()
    learned(part)
    x = case.draw(part)
    before = answer(case, part, x)
    with group(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of views that nobody writes into
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (1,))
        blocks = [block for block in getattr(part, "blocks", ()) if any(True for _ in block.parameters())]
        for block in blocks:
            fully_shard(block, mesh=mesh)
        if not hasattr(part, "embed"):  # a decoder's ends are called by themselves
            fully_shard(part, mesh=mesh)
        out = case.run(part, x)
        same(before, out, "sharded and whole")
        torch.stack([t.float().square().mean() for t in out]).sum().backward()


@contextmanager
def group() -> Iterator[None]:
    """A process group of one, unless there is one."""
    if dist.is_initialized():
        yield
        return
    store = HashStore()  # of this process: no port, no file
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
    try:
        yield
    finally:
        dist.destroy_process_group()


@promise(*MODELS)
def travels_to_workers(case: Any) -> None:
    """Built on meta it goes to another process and back and still counts: data workers plan with it."""
    part = case.make("meta")
    x = to(case.draw(part), "meta")
    again = pickle.loads(pickle.dumps(part))
    shapes = [[t.shape for t in answer(case, each, x)] for each in (part, again)]
    want(shapes[0] == shapes[1], "it counts otherwise there")


@promise(*MODELS)
def hides_no_tensor(case: Any) -> None:
    """What it keeps is a weight or a buffer: another tensor is neither saved, nor moved, nor cast."""
    part = case.make()
    learned(part)
    answer(case, part, case.draw(part))
    loose = [f"{at}.{name}".strip(".") for at, module in part.named_modules()
             for name, value in vars(module).items() if isinstance(value, Tensor)]
    want(not loose, f"plain tensors: {', '.join(loose)}")
