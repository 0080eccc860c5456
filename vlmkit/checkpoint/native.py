"""vlmkit's own folder: preset.yaml, model.safetensors, tokenizer.json, lock.json. It explains itself."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .. import __version__, limits, plugins, registry
from ..compose.preset import Preset
from ..contracts import PartConfig
from ..errors import CheckpointCorruptError, CheckpointFormatError, WeightsError
from ..parts.formats.files import parse
from . import shards
from .files import inside
from .whole import replacing

if TYPE_CHECKING:
    from ..model.vlm import VLM
    from ..processing.processor import Processor

PRESET, TOKENIZER, TEMPLATE, LOCK = "preset.yaml", "tokenizer.json", "chat_template.jinja", "lock.json"
BESIDES = 1 << 16  # bytes for the preset, the lock and headers
MODEL = frozenset(Preset.model_fields)


def is_native(folder: Path) -> bool:
    return (folder / PRESET).is_file() and (folder / LOCK).is_file()


def save(model: VLM, processor: Processor, folder: str | Path, max_shard_size: int = 5_000_000_000) -> Path:
    """Write a folder that `load` reads back. It appears whole or not at all; an older one is replaced whole.

    max_shard_size   bytes of weights in one file; a larger model becomes several and an index
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_native(folder))):
        raise WeightsError("is already there and is no vlmkit checkpoint; nothing was written", where=folder)
    tensors = model.state_dict()
    with replacing(folder, shards.size(tensors) + len(processor.tokenizer.source) + BESIDES) as beside:
        written = shards.write(tensors, beside, max_shard_size)
        (beside / PRESET).write_text(_describe(processor.preset, beside), "utf-8")
        processor.tokenizer.save(beside / TOKENIZER)
        seal(beside, processor.preset, written)
    return folder


def seal(folder: Path, preset: Preset, known: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Write the lock file of a folder: what is in it, and with which versions it was made.

    known   file -> bytes and sha256, of those that need not be read again
    """
    known = known or {}
    files = {f.name: known.get(f.name) or digest(f) for f in sorted(folder.iterdir()) if f.name != LOCK}
    lock = {"versions": _versions(preset), "files": files}
    (folder / LOCK).write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", "utf-8")


def _describe(preset: Preset, folder: Path) -> str:
    """The preset as YAML, reading its tokenizer, its weights and its files from its own folder, where the files are
    put; how it was trained stays outside.
    """
    said = {name: _beside(value, folder) for name, value in preset.dump().items() if name in MODEL}
    said["tokenizer"] = (said["tokenizer"] or {}) | {"from": "."}
    said["weights"] = [{"from": ".", "format": "native"}]
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=110)


def _beside(node: Any, folder: Path) -> Any:
    """What parts name as `file`, copied into the folder and named there; a chat template becomes such a file."""
    if isinstance(node, list):
        return [_beside(child, folder) for child in node]
    if not isinstance(node, dict):
        return node
    said = {key: _beside(child, folder) for key, child in node.items()}
    template = said.get("use") == "template"
    if template and isinstance(said.get("text"), str):
        (folder / TEMPLATE).write_bytes(said["text"].encode())
        said |= {"text": None, "file": TEMPLATE}
    elif "use" in said and isinstance(said.get("file"), str):
        there = {PRESET, TOKENIZER, LOCK, *(file.name for file in folder.iterdir())}
        name = TEMPLATE if template else re.sub(r"[^\w.-]", "_", Path(said["file"]).name, flags=re.ASCII)
        said["file"] = f"{len(there)}-{name}" if name in there else name
        shutil.copyfile(node["file"], folder / said["file"])
    return said


def verify(folder: Path) -> None:
    """Compare every file with the lock's length and SHA-256."""
    wanted = _locked(inside(folder, LOCK))
    unlocked = {PRESET, TOKENIZER, *(file.name for file in folder.glob("*.safetensors*"))} - set(wanted)
    if unlocked:
        raise CheckpointFormatError(f"says nothing about {', '.join(sorted(unlocked))}", where=folder / LOCK)
    for name, (size, sha256) in wanted.items():
        file = inside(folder, name)
        try:
            found = digest(file)
        except OSError as error:
            raise CheckpointFormatError(f"cannot be read: {error.strerror}", where=file) from None
        if (found["bytes"], found["sha256"]) != (size, sha256):
            raise CheckpointCorruptError(f"sha256 {found['sha256'][:12]}… over {found['bytes']} bytes, written as "
                                         f"{sha256[:12]}… over {size}", where=file,
                                         hint="copy the folder again, or pass verify=False if you changed it yourself")


def _locked(file: Path) -> dict[str, tuple[int, str]]:
    """What a lock file says.   name -> (bytes, sha256)"""
    if (size := file.stat().st_size) > (most := limits.current().ckpt_max_config_bytes):
        raise CheckpointFormatError("too large", where=file, limit=most, got=size, setting="ckpt.max_config_bytes")
    told = parse(file.read_bytes(), file, "is no lock file")
    try:
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in told["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise CheckpointFormatError("is no lock file", where=file) from None


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
        with suppress(PackageNotFoundError):  # a plugin that was not installed has none
            found[name] = version(name)
    return found


def _parts(node: Any) -> list[PartConfig]:
    fields = [getattr(node, name) for name in type(node).model_fields] if hasattr(type(node), "model_fields") else []
    below = [part for value in fields for item in (value if isinstance(value, tuple | list) else [value])
             for part in _parts(item)]
    return [node, *below] if isinstance(node, PartConfig) else below
