"""vlmkit's own folder: preset.yaml, model.safetensors, tokenizer.json, lock.json. It explains itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors.torch import save_file

from .. import __version__, limits, plugins, registry
from ..compose.preset import Preset
from ..contracts import PartConfig
from ..errors import CheckpointCorruptError, CheckpointFormatError, WeightsError
from .tensors import ONE, once

if TYPE_CHECKING:
    from ..model.vlm import VLM
    from ..processing.processor import Processor

PRESET, TOKENIZER, LOCK = "preset.yaml", "tokenizer.json", "lock.json"
MODEL = frozenset(Preset.model_fields)


def is_native(folder: Path) -> bool:
    return (folder / PRESET).is_file() and (folder / LOCK).is_file()


def save(model: VLM, processor: Processor, folder: str | Path) -> Path:
    """Write a folder that `load` reads back. It appears whole or not at all; an older one is replaced whole."""
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_native(folder))):
        raise WeightsError("is already there and is no vlmkit checkpoint; nothing was written", where=folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(model, processor, beside)
        _swap(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _write(model: VLM, processor: Processor, folder: Path) -> None:
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / ONE, metadata={"format": "pt"})
    (folder / PRESET).write_text(_describe(processor.preset), "utf-8")
    processor.tokenizer.save(folder / TOKENIZER)
    seal(folder, processor.preset)
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)
    folder.chmod(0o755)  # mkdtemp makes it private


def seal(folder: Path, preset: Preset) -> None:
    """Write the lock file of a folder: what is in it, and with which versions it was made."""
    files = {file.name: digest(file) for file in sorted(folder.iterdir()) if file.name != LOCK}
    lock = {"versions": _versions(preset), "files": files}
    (folder / LOCK).write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", "utf-8")


def _describe(preset: Preset) -> str:
    """The preset as YAML, reading its tokenizer and weights from its own folder; how it was trained stays outside."""
    said = {name: value for name, value in preset.dump().items() if name in MODEL}
    said["tokenizer"] = (said["tokenizer"] or {}) | {"from": "."}
    said["weights"] = [{"from": ".", "format": "native"}]
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=110)


def _swap(beside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    try:
        beside.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path) -> None:
    """Compare every file with the lock's length and SHA-256."""
    wanted = _locked(folder / LOCK)
    unlocked = {PRESET, TOKENIZER, *(file.name for file in folder.glob("*.safetensors*"))} - set(wanted)
    if unlocked:
        raise CheckpointFormatError(f"says nothing about {', '.join(sorted(unlocked))}", where=folder / LOCK)
    for name, (size, sha256) in wanted.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointFormatError(f"{name!r} is in the lock file but not in the folder", where=folder)
        found = digest(file)
        if (found["bytes"], found["sha256"]) != (size, sha256):
            raise CheckpointCorruptError(f"sha256 {found['sha256'][:12]}… over {found['bytes']} bytes, written as "
                                         f"{sha256[:12]}… over {size}", where=file,
                                         hint="copy the folder again, or pass verify=False if you changed it yourself")


def _locked(file: Path) -> dict[str, tuple[int, str]]:
    """What a lock file says.   name -> (bytes, sha256)"""
    if (size := file.stat().st_size) > (most := limits.current().ckpt_max_config_bytes):
        raise CheckpointFormatError("too large", where=file, limit=most, got=size, setting="ckpt.max_config_bytes")
    try:
        files = json.loads(file.read_text("utf-8"), object_pairs_hook=once)["files"].items()
        return {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, RecursionError):
        raise CheckpointFormatError("is not a lock file", where=file) from None


def digest(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": sha256}


def _versions(preset: Preset) -> dict[str, str]:
    """Of vlmkit, torch, and every package that gave a part."""
    owners = {entry.module: plugins.default().packages.get(entry.plugin, "") for entry in registry.entries()}
    packages = {owners.get(type(part).__module__, "").partition(" ")[0] for part in _parts(preset)}
    found = {"vlmkit": __version__, "torch": version("torch")}
    for name in sorted(packages - {"", "vlmkit"}):
        found[name] = version(name)
    return found


def _parts(node: Any) -> list[PartConfig]:
    fields = [getattr(node, name) for name in type(node).model_fields] if hasattr(type(node), "model_fields") else []
    below = [part for value in fields for item in (value if isinstance(value, tuple | list) else [value])
             for part in _parts(item)]
    return [node, *below] if isinstance(node, PartConfig) else below


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
