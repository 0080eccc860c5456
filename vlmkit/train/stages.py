"""What a stage trains: whose weights, how fast, from which step on. All else is frozen."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ..checkpoint.quantize import Quantized, quantized
from ..errors import PresetError, ResumeError
from .muon import Muon
from .parallel import like

if TYPE_CHECKING:
    from ..compose.preset import Learns, Run, Schedule
    from ..model.vlm import VLM

ODD, SALT, PIECE = 0x1E3779B97F4A7C15, 0x5555, 1 << 22  # what mixes bits, and how many numbers are looked at at once
BIT = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def stages(run: Run) -> dict[str, Run]:
    """The stages of a run, each a run by itself; one without a name where it has none."""
    if not run.stages:
        return {"": run}
    found = {}
    for stage in run.stages:
        said: dict[str, Any] = {name: value for name in type(stage).model_fields
                                if name != "name" and (value := getattr(stage, name)) is not None}
        if "batch" in said:
            said.setdefault("tokens", None)
        found[stage.name] = run.model_copy(update={**said, "stages": ()})
    return found


def chosen(model: nn.Module, train: dict[str, Learns]) -> dict[str, str]:
    """The weights that a stage names: weight -> section. Where sections lie in each other, the inner one counts."""
    found: dict[str, str] = {}
    for section in sorted(train, key=len):
        names = {n: p for n, p in model.named_parameters() if (n + ".").startswith(section + ".")}
        if not names:
            there = ", ".join(name for name, part in model.named_children() if [*part.parameters()])
            raise PresetError(f"nothing with weights is called {section!r} in this model", where="train",
                              hint=f"sections: {there}")
        if train[section].lora:
            names = {n: p for n, p in names.items() if ".lora_" in n}
        if (layers := train[section].layers) is not None:
            inside = {id(p) for block in blocks(model, section, layers) for p in block.parameters()}
            names = {n: p for n, p in names.items() if id(p) in inside}
        found |= dict.fromkeys(names, section)
    return found


def blocks(model: nn.Module, section: str, layers: str | None) -> list[nn.Module]:
    """Those of a part's blocks that a slice such as `16:` names; all when there is none."""
    every = list(getattr(model.get_submodule(section), "blocks", ()))
    first, _, last = (layers or ":").partition(":")
    found = every[int(first) if first else None : int(last) if last else None]
    if not found:
        raise PresetError(f"{section} has {len(every)} blocks; {layers or 'they'} are none of them",
                          where=f"train.{section}", hint="layers: \"-4:\" are the last four")
    return found


def share(step: int, steps: int, schedule: Schedule) -> float:
    """Linear warm-up, the full rate, then a cosine down to nothing.   share of the full learning rate"""
    rise = max(1, round(schedule.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    fall = max(rise, steps - round(schedule.decay * steps))
    return 0.5 * (1 + math.cos(math.pi * max(0, step - fall) / max(1, steps - fall)))


def marks(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The mark of each tensor; of a sharded one, the same on all processes as that of the whole one."""
    found = {name: mark(tensor) for name, tensor in tensors.items()}
    sharded = [n for n, t in tensors.items() if isinstance(t, DTensor) and any(p.is_shard() for p in t.placements)]
    if sharded:
        sums = torch.tensor([found[name] for name in sharded], device=tensors[sharded[0]].device)
        dist.all_reduce(sums)
        found.update(zip(sharded, sums.tolist(), strict=True))
    return found


def mark(tensor: Tensor) -> int:
    """A number that changes with the bits of a tensor; of a sharded one, those of all ranks sum up to it.   [any]"""
    local = getattr(tensor, "to_local", lambda: tensor)().detach()
    bits = local.contiguous().view(-1).view(BIT[local.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for piece in bits.split(PIECE):
        mixed = (piece.long() ^ SALT) * ODD  # in a plain sum, up here and down there cancel out
        total += ((mixed ^ (mixed >> 29)) * ODD).sum()
    return int(total)


class Learner:
    """The weights that learn, what moves them, and the proof that nothing else moves.

    weights   name -> weight of the model, in its dtype
    masters   name -> the float32 weight that the optimizer moves: the model's own where that is float32
    asked     name -> section of `train`
    """

    def __init__(self, model: VLM, run: Run, dtype: torch.dtype) -> None:
        self.model, self.run = model, run
        if "decoder" in run.train and run.train["decoder"].lora is None and (how := quantized(model)):
            raise PresetError(f"the decoder is quantized, as {how}: its matrices cannot learn", where="train.decoder",
                              hint="give it lora, load it without quantize, or train other sections")
        self.asked = chosen(model, run.train)
        for name, p in model.named_parameters():
            p.requires_grad_(name in self.asked)
        _modes(model)
        quiet = [name for name, part in model.named_modules() if not part.training or isinstance(part, Quantized)]
        self.still = {n for n in model.state_dict() if n.rpartition(".")[0] in quiet}
        self.still |= dict(model.named_parameters()).keys() - self.asked.keys()
        model.requires_grad_(False)
        self.weights = {n: p for n, p in model.named_parameters() if n in self.asked}
        kept = {n: p.detach().float() for n, p in self.weights.items() if dtype != torch.float32}
        model.to(dtype)
        self.weights = {n: p for n, p in model.named_parameters() if n in self.asked}
        self.masters: dict[str, Tensor] = {n: kept.get(n, p) for n, p in self.weights.items()}
        self.optimizers = self._optimizers()

    def _optimizers(self) -> list[Optimizer]:
        """Muon for the matrices between layers, AdamW for all else; or AdamW for all.

        Muon's update is scaled to the size of AdamW's, so one learning rate serves both.
        """
        groups: dict[tuple[bool, str, bool], list[Tensor]] = defaultdict(list)
        for name, p in self.masters.items():
            inner = self.run.optimizer == "muon" and p.ndim == 2 and ".lora_" not in name
            inner = inner and not name.endswith(("embed.weight", "head.weight"))
            groups[inner, self.asked[name], p.ndim > 1].append(p)
        made: list[list[dict[str, Any]]] = [[], []]
        for (inner, section, decays), weights in groups.items():
            learns = self.run.train[section]
            decay = learns.weight_decay if decays else 0.0
            made[inner].append({"params": weights, "lr": learns.rate, "rate": learns.rate, "weight_decay": decay})
        others, matrices = made
        return ([Muon(matrices)] if matrices else []) + (
            [torch.optim.AdamW(others, betas=(0.9, 0.98))] if others else [])

    @property
    def moved(self) -> set[str]:
        """What is another one after this stage: weights that learn, and statistics of their parts; adapters aside."""
        buffers = dict(self.model.named_buffers()).keys() - self.still
        return {n for n in self.asked if ".lora_" not in n} | buffers

    def begin(self, step: int) -> set[str]:
        """Set rates and modes for a step; the names that learn from it on."""
        part = share(step, self.run.steps, self.run.schedule)
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = group["rate"] * part
        new = {n for n, p in self.weights.items()
               if not p.requires_grad and self.run.train[self.asked[n]].from_step <= step}  # fmt: skip
        for name in new:
            self.weights[name].requires_grad_(True)
        if new:
            _modes(self.model)
        return new

    def step(self) -> None:
        """Move the masters by the gradients of the weights, and the weights after them."""
        for name, p in self.weights.items():
            if (master := self.masters[name]) is not p:
                master.grad = None if p.grad is None else p.grad.float()
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for name, p in self.weights.items():
                if self.masters[name] is not p:
                    p.copy_(self.masters[name])
                    self.masters[name].grad = None
                p.grad = None

    def frozen(self) -> dict[str, int]:
        """Name -> mark of what must not change: weights that never learn, and the statistics of their parts."""
        return marks({n: t for n, t in self.model.state_dict().items() if n in self.still})

    def tensors(self, moved: set[str]) -> dict[str, Tensor]:
        """All that a resumed training needs: what has learned by now, buffers, the optimizers'."""
        names = self.moved | self.weights.keys() | moved
        found = {f"model.{n}": t for n, t in self.model.state_dict().items() if n in names}
        found |= {f"master.{n}": t for n, t in self.masters.items() if t is not self.weights[n]}
        for name, slot, tensor in self._slots():
            found[f"optimizer.{name}.{slot}"] = tensor
        return found

    def _slots(self) -> Iterator[tuple[str, str, Tensor]]:
        for name, p in self.masters.items():
            for optimizer in self.optimizers:
                for slot, tensor in optimizer.state.get(p, {}).items():
                    yield name, slot, tensor

    @torch.no_grad()
    def load(self, stored: dict[str, Tensor], moved: set[str]) -> None:
        """Take what `tensors` gave. Compared before anything is copied."""
        mine = {n: t for n, t in self.tensors(moved).items() if not n.startswith("optimizer.")}
        theirs = {n: t for n, t in stored.items() if not n.startswith("optimizer.")}
        wrong = sorted(mine.keys() ^ theirs.keys()) or [n for n in mine if mine[n].shape != theirs[n].shape]
        rest = {n: t for n, t in stored.items() if n not in theirs}
        owner = {n: n.removeprefix("optimizer.").rpartition(".") for n in rest}
        wrong = wrong or [n for n, (name, _, _) in owner.items() if name not in self.masters]
        if wrong:
            raise ResumeError(f"is no state of this run: {len(wrong)} tensors differ, such as {wrong[0]}")
        for name, tensor in theirs.items():
            mine[name].copy_(like(tensor, mine[name]))
        homes = {id(p): o for o in self.optimizers for g in o.param_groups for p in g["params"]}
        for name, tensor in rest.items():
            weight, _, slot = owner[name]
            master = self.masters[weight]
            homes[id(master)].state[master][slot] = tensor.clone() if slot == "step" else like(tensor, master).clone()


def _modes(model: nn.Module) -> None:
    """Training mode where something learns; what is frozen keeps its statistics and drops nothing."""
    model.train()
    for part in model.modules():
        weights = list(part.parameters())
        if weights and not any(p.requires_grad for p in weights):
            part.eval()
