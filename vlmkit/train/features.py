"""What frozen towers saw, kept by content in memory-mapped files: no tile goes through a tower twice."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..model.memory import wait
from ..types import Features
from .stages import mark

if TYPE_CHECKING:
    from ..compose.preset import Run
    from ..contracts import VisionTower
    from ..model.vlm import VLM

SHARD = 64 << 20  # bytes that wait in memory before they are written
MOST = 64 << 30  # bytes of all files, and never more than half of what the disk has left
WATCHED = 6  # calls that are timed, behind one that warms up
PAYS = 0.5  # of the tower's time that looking up may take

Told = Callable[[str], None]


@contextmanager
def keeping(model: VLM, run: Run, folder: Path, again: bool = True, told: Told = lambda text: None
            ) -> Iterator[Kept | None]:
    """While it lasts, what a frozen tower makes of a tile is looked up, in files that other runs may share.

    again  whether tiles come more than once, here or in a run that shares the folder; else `auto` keeps nothing
    """
    how = run.machine.features
    if how == "off" or run.machine.shard != "none" or (how == "auto" and not again):
        yield None  # where layers are shared out every process must run them, whatever it knows already
        return
    kept = Kept(model, run, folder, how == "auto", told)
    model.kept = kept.see
    try:
        yield kept
    finally:
        model.kept = None
        kept.flush()


class Kept:
    """A shelf for each frozen tower; a tower that learns is left alone from then on."""

    def __init__(self, model: VLM, run: Run, folder: Path, auto: bool, told: Told) -> None:
        streams = [stream for stream in (run.video, run.image) if stream is not None and stream.tower is not None]
        configs = [run.tower, *(stream.tower for stream in streams if stream.tower)]
        self.about = json.dumps([config.model_dump(mode="json", serialize_as_any=True) for config in configs])
        self.folder, self.auto, self.told = folder, auto, told
        self.shelves: dict[int, Shelf] = {}

    def see(self, tower: VisionTower, pixels: Tensor) -> Features:
        """uint8 [tiles, 3, side, side] -> tokens [tiles, prefix + rows * cols, width]"""
        if tower.training or any(p.requires_grad for p in tower.parameters()):  # type: ignore[attr-defined]
            return tower(pixels)
        shelf = self.shelves.get(id(tower))
        if shelf is None:
            shelf = self.shelves[id(tower)] = Shelf(tower, self.about, self.folder, self.auto, self.told)
        return shelf.see(pixels)

    def flush(self) -> None:
        """Write what is not written yet. A training does so when it saves."""
        for shelf in self.shelves.values():
            shelf.flush()


class Place(NamedTuple):
    """Where the tokens of a tile are.   tokens [many, frames, tokens, width], mapped;   mark: of those of this tile"""

    tokens: Tensor
    row: int
    mark: int


class Shelf:
    """What one tower saw: digest of pixels -> tokens.

    It measures in its first calls what the tower and what looking up takes, and stops where that does not pay.
    """

    def __init__(self, tower: VisionTower, about: str, folder: Path, auto: bool, told: Told) -> None:
        self.tower, self.auto, self.told = tower, auto, told
        self.frames = getattr(tower, "frames", 1)
        self.folder = folder / _identity(tower, about)
        self.on, self.checked, self.calls, self.hits, self.misses = True, False, 0, 0, 0
        self.seconds = {"tower": 0.0, "look": 0.0}
        self.tiles = {"tower": 0, "look": 0}
        self.places: dict[bytes, Place] = {}
        self.fresh: dict[bytes, Tensor] = {}  # [frames, tokens, width]
        self.read: set[str] = set()
        self.shape: tuple[int, int, int] | None = None  # rows, cols, prefix
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.room = min(MOST, shutil.disk_usage(self.folder).free // 2)
            self._open()
        except OSError as error:
            self._stop(f"{folder} cannot be used: {error.strerror}")

    def see(self, pixels: Tensor) -> Features:
        if not self.on or len(pixels) % self.frames:
            return self._ask(pixels)
        groups = pixels.unflatten(0, (-1, self.frames))
        keys, found = self._timed("look", len(groups), lambda: self._look(groups))
        self.hits += sum(key in found for key in keys)
        new = {key: at for at, key in reversed(list(enumerate(keys))) if key not in found}
        if not new:
            assert self.shape is not None
            return self._lay([found[key] for key in keys], pixels.device)
        self.misses += len(new)
        missing = groups[sorted(new.values())]
        made = self._timed("tower", len(missing), lambda: self._ask(missing.flatten(0, 1)))
        self.shape = made.rows, made.cols, made.prefix
        if self.auto and not self._steady(missing, made):
            return self._ask(pixels)
        for key, tokens in zip(sorted(new, key=new.__getitem__), made.tokens.cpu().unflatten(0, (-1, self.frames)),
                               strict=True):
            found[key] = tokens.clone()
            if self.room:
                self.fresh[key] = found[key]
        result: Features = self._timed("look", 0, lambda: self._lay([found[key] for key in keys], pixels.device))
        if sum(tokens.nbytes for tokens in self.fresh.values()) >= SHARD:
            self.flush()
        self._judge()
        return result

    def _ask(self, pixels: Tensor) -> Features:
        """The tower's answer, to the last bit what looking it up gives.

        On a CPU a tile alone goes twice: some layers sum one in another order than several. And what is looked up lies
        in one piece, as a slice without its class token does not: the next layer would sum that in another order, too.
        """
        alone = pixels.device.type == "cpu" and len(pixels) == self.frames
        made = self.tower(torch.cat([pixels, pixels]) if alone else pixels)
        return made._replace(tokens=made.tokens[: len(pixels)].contiguous())

    def _look(self, groups: Tensor) -> tuple[list[bytes], dict[bytes, Tensor]]:
        keys = [hashlib.sha256(group.numpy().data).digest() for group in groups.cpu().contiguous()]
        found = {key: tokens for key in dict.fromkeys(keys) if (tokens := self._find(key)) is not None}
        return keys, found

    def _find(self, key: bytes) -> Tensor | None:
        """[frames, tokens, width], only to be read; what is damaged is forgotten."""
        if key in self.fresh:
            return self.fresh[key]
        if (place := self.places.get(key)) is None:
            return None
        tokens = place.tokens[place.row]
        if mark(tokens) != place.mark:
            del self.places[key]
            return None
        return tokens

    def _lay(self, found: list[Tensor], device: torch.device) -> Features:
        assert self.shape is not None
        return Features(torch.cat(found).to(device), *self.shape)

    def _steady(self, missing: Tensor, made: Features) -> bool:
        """On a CPU a resumed training is the same to the last bit: then two tiles must be what they are among many."""
        if self.checked or made.tokens.device.type != "cpu" or len(missing) < 3:
            return True
        self.checked = True
        if torch.equal(self._ask(missing[:2].flatten(0, 1)).tokens, made.tokens[: 2 * self.frames]):
            return True
        self._stop("this tower's numbers depend on how many tiles it sees at once")
        return False

    def _timed(self, what: str, tiles: int, call: Callable[[], Any]) -> Any:
        if not 0 < self.calls <= WATCHED or not self.auto:
            return call()
        wait()
        begun = time.perf_counter()
        result = call()
        wait()
        self.seconds[what] += time.perf_counter() - begun
        self.tiles[what] += tiles
        return result

    def _judge(self) -> None:
        """After some calls with new tiles: is looking up worth it?"""
        self.calls += 1
        if not self.auto or self.calls != WATCHED + 1:
            return
        each = {what: self.seconds[what] / max(1, self.tiles[what]) for what in self.seconds}
        if each["look"] > PAYS * each["tower"]:
            times = [f"{1e3 * each[what]:.2g} ms" for what in ("tower", "look")]
            self._stop("the tower takes {} for a tile, looking it up {}".format(*times))

    def _stop(self, why: str) -> None:
        self.on = False
        self.fresh.clear()
        self.told(f"what the tower sees is not kept: {why}")

    def flush(self) -> None:
        """Write what is new: beside its place, then renamed. Take in what others wrote."""
        fresh, self.fresh = self.fresh, {}
        if not fresh:
            return
        tokens = torch.stack(list(fresh.values()))
        keys = torch.frombuffer(bytearray(b"".join(fresh)), dtype=torch.uint8).view(-1, 32)
        marks = torch.tensor([mark(one) for one in tokens])
        name = secrets.token_hex(8)
        beside = self.folder / f".{name}.part"
        try:
            used = sum(file.stat().st_size for file in self.folder.parent.rglob("*.safetensors"))
            if used + tokens.nbytes > self.room:
                self.room = 0
                self.told(f"{self.folder.parent} is full: what the tower sees from here on is not kept")
                return
            save_file({"tokens": tokens, "keys": keys, "marks": marks}, beside, {"shape": json.dumps(self.shape)})
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            beside.replace(self.folder / f"{name}.safetensors")
            self._open()
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                beside.unlink()
            self._stop(f"it cannot be written: {error}")

    def _open(self) -> None:
        """Map files that are new here; one that is not what it should be is left alone."""
        for file in sorted(self.folder.glob("*.safetensors")):
            if file.name in self.read:
                continue
            self.read.add(file.name)
            with suppress(SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError):
                with safe_open(file, "pt") as opened:
                    tokens, keys, marks = (opened.get_tensor(name) for name in ("tokens", "keys", "marks"))
                    rows, cols, prefix = json.loads(opened.metadata()["shape"])
                if tokens.ndim != 4 or keys.shape != (len(tokens), 32) or marks.shape != (len(tokens),):
                    continue
                self.shape = int(rows), int(cols), int(prefix)
                for at, (key, number) in enumerate(zip(keys.numpy(), marks.tolist(), strict=True)):
                    self.places.setdefault(key.tobytes(), Place(tokens, at, number))


def _identity(tower: VisionTower, about: str) -> str:
    """Of the tower's fields and weights, and of what computes: another one of them is another folder."""
    weights = tower.state_dict()  # type: ignore[attr-defined]
    devices = sorted({str(tensor.device.type) for tensor in weights.values()})
    digest = hashlib.sha256(f"{torch.__version__} {devices} {tower.side} {type(tower).__qualname__} {about}".encode())
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
