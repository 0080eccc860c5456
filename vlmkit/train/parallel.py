"""One run on several processes: blocks recomputed, compiled, sharded by FSDP2 or split by tensor; outside the model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from ..errors import PresetError, RankError, clean
from ..model.rehearse import count
from ..processing.batch import lay
from ..types import IGNORED, Batch, Layout, Sample, Visual
from .loss import learned

if TYPE_CHECKING:
    from ..compose.preset import Machine, Run
    from ..model.vlm import VLM
    from ..processing.processor import Processor

PATIENCE = timedelta(seconds=300)  # for the slowest of all processes
LOST = re.compile("gloo|NCCL|[Cc]onnection|Broken pipe|[Tt]imed out")  # how torch tells that nobody answers
COLUMNS, ROWS = ("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.up"), ("attn.o", "mlp.down")


class Ranks:
    """The processes of a run, this one among them.   world: 1 for a process by itself

    data   (rank, world) for the feed: those that split a model between them see the same data
    """

    def __init__(self, machine: Machine, device: torch.device) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.mesh: DeviceMesh | None = None
        self.device = device
        if self.world == 1:
            self.data = (0, 1)
            return
        if machine.shard == "none":
            raise PresetError(f"{self.world} processes, and nothing says what they share", where="machine.shard",
                              hint="fsdp shards weights and data; tensor splits the blocks' matrices")
        if device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        self.mesh = init_device_mesh(device.type, (self.world,))
        self.data = (self.rank, self.world) if machine.shard == "fsdp" else (0, 1)

    def check(self, runs: Iterable[Run]) -> None:
        """Raise PresetError for what one process alone can do."""
        for run in runs if self.mesh is not None else ():
            if run.machine.quantize:
                raise PresetError(f"{self.world} processes: matrices of few bits are not shared out",
                                  where="machine.quantize", hint="start one process, or leave it out")
            for section in [name for name, learns in run.train.items() if learns.lora]:
                if run.machine.shard == "tensor":
                    raise PresetError("adapters are not split over processes", where=f"train.{section}.lora",
                                      hint="machine.shard=fsdp shards them")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes; what several of them know alike counts once."""
        if self.mesh is None:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(told)
        return [number / (self.world // self.data[1]) for number in told.tolist()]

    def least(self, tensor: Tensor) -> Tensor:
        """The least of each number over all processes.   [any] -> the same"""
        if self.mesh is None:
            return tensor
        told = tensor.to(self.device)
        dist.all_reduce(told, dist.ReduceOp.MIN)
        return told.to(tensor.device)

    @contextmanager
    def together(self, where: Callable[[], str]) -> Iterator[None]:
        """While it lasts, a process that is gone, or silent for too long, ends the others with a RankError."""
        try:
            yield
        except RuntimeError as error:
            if self.mesh is None or not LOST.search(str(error)):
                raise
            raise RankError(f"rank {self.rank} of {self.world} lost another one: {clean(error)[:200]}", where=where(),
                            hint="why it ended is told by that process; --resume goes on from the last save") from None

    def wait(self) -> None:
        if self.mesh is not None:
            dist.barrier()


class Step(nn.Module):
    """What a step computes, as one call, so that FSDP has all of it inside its root."""

    def __init__(self, model: VLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[..., Tensor], *given: Any) -> Tensor:
        """What a function of the model gives: a loss, log-probabilities."""
        return call(self.model, *given)


def parallelize(model: VLM, step: nn.Module, machine: Machine, mesh: DeviceMesh | None, trained: Iterable[str]) -> None:
    """Compile, recompute and shard the blocks of towers and decoder, in this order.   trained: sections that learn"""
    parts: dict[str, Any] = {"tower": model.tower, "decoder": model.decoder, **dict(_own(model))}
    if mesh is not None and machine.shard == "tensor":
        _split(model, mesh)
    for name, part in parts.items():
        for block in part.blocks:
            if machine.compile:
                block.forward = _compiled(block)
            if machine.recompute and (name == "decoder" or any(t.startswith(name) for t in trained)):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            if mesh is not None and machine.shard == "fsdp":
                fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    if mesh is not None and machine.shard == "fsdp":
        fully_shard(step, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


class Apart:
    """Attention that a compiler leaves alone: it plans by lengths, numbers that are others in each batch."""

    def __init__(self, attend: Any) -> None:
        self.attend = attend

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *given: Any) -> Tensor:
        return self.attend(*given)  # type: ignore[no-any-return]


def _compiled(block: nn.Module) -> Any:
    """What lies before attention as one graph, what lies behind it as another, for any number of tokens."""
    for part in block.modules():
        if (attend := getattr(part, "attend", None)) is not None:
            vars(part)["attend"] = Apart(attend)
    return torch.compile(block.forward, dynamic=True)


def _own(model: VLM) -> Iterator[tuple[str, Any]]:
    """Towers that streams have for themselves."""
    for kind in ("image", "video"):
        if (tower := getattr(getattr(model, kind), "tower", None)) is not None:
            yield f"{kind}.tower", tower


def _split(model: VLM, mesh: DeviceMesh) -> None:
    """Heads and MLP columns over the processes: each computes its share, and one sum joins attention, one the MLP."""
    world = mesh.size()
    blocks: Sequence[Any] = model.decoder.blocks
    for block in blocks:
        names = {name for name, part in block.named_modules() if isinstance(part, nn.Linear)}
        if not {*COLUMNS, *ROWS} <= names or block.attn.kv_heads % world or block.mlp.up.out_features % world:
            raise PresetError(f"the decoder's blocks cannot be split over {world} processes", where="machine.shard",
                              hint="their kv_heads and ffn must be a multiple; fsdp takes any model")
        parallelize_module(block, mesh, {name: ColwiseParallel() for name in COLUMNS}
                           | {name: RowwiseParallel() for name in ROWS})  # fmt: skip
        block.attn.heads, block.attn.kv_heads = block.attn.heads // world, block.attn.kv_heads // world
        for norm in (block.attn.q_norm, block.attn.k_norm):
            if norm is not None:  # it saw the heads of this process only
                norm.weight.register_hook(_summed)


def _summed(gradient: Tensor) -> Tensor:
    """[any] -> its sum over the processes"""
    total = gradient.clone()
    dist.all_reduce(total)
    return total


def undo(model: VLM) -> None:
    """Take back what `parallelize` put on the blocks of a model that was not sharded."""
    for part in (model.tower, model.decoder, *(tower for _, tower in _own(model))):
        for block in part.blocks:
            vars(block).pop("forward", None)
            for inner in block.modules():
                if isinstance(apart := vars(inner).get("attend"), Apart):
                    del vars(inner)["attend"]
                    inner.attend = apart.attend


def filled(batch: Batch, model: VLM, processor: Processor, counts: Sequence[float]) -> Batch:
    """With a blank tile for each kind that another process sees and this one does not: all must run the same blocks.

    counts   pictures and clips on all processes. The tile is a sequence of its own, nothing of it is learned
    """
    mine = {visual.layout.kind for visual in batch.visuals}
    for kind, number in zip(("image", "video"), counts, strict=True):
        if number and kind not in mine:
            stream, (_, tower) = model.stream(kind), model.part(kind, "tower")
            side = tower.side
            frames = Layout("video", side, side, frames=getattr(tower, "frames", 1))
            layout = stream.tiler.plan(side, side, True) if kind == "image" else frames
            ids = torch.zeros(count(processor.skeleton, layout), dtype=torch.int64)
            blank = Visual(torch.zeros(layout.tiles, 3, side, side, dtype=torch.uint8), layout)
            more = lay([Sample(ids, torch.arange(len(ids)), [blank], torch.full_like(ids, IGNORED))])
            labels = [one.labels for one in (batch, more) if one.labels is not None]
            batch = Batch(torch.cat([batch.ids, more.ids]), torch.cat([batch.lens, more.lens]),
                          torch.cat([batch.slots, more.slots + len(batch.ids)]), [*batch.visuals, blank],
                          torch.cat(labels))
    return batch


def tally(batch: Batch) -> list[float]:
    """Learned tokens, pictures and clips of a batch."""
    kinds = [visual.layout.kind for visual in batch.visuals]
    return [learned(batch), kinds.count("image"), kinds.count("video")]


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor as one; every process must ask for it.   [any] -> the same"""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, sharded as another one is, on its device.   [any] -> the same"""
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def clip(weights: Sequence[Tensor], most: float) -> float:
    """Shorten the gradients together to a norm of at most `most`; the norm that they had."""
    sharded = [p for p in weights if isinstance(p, DTensor)]
    groups = [some for some in (sharded, [p for p in weights if not isinstance(p, DTensor)]) if some]
    norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in some if p.grad is not None])) for some in groups]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for some in groups:
        torch.nn.utils.clip_grads_with_norm_(some, most, norm)
    return norm.item()


@contextmanager
def leaving() -> Iterator[None]:
    """End the group of processes with the block."""
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
