"""vlmkit doctor"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import vlmkit
from vlmkit.plugins import default

from . import console
from .arguments import Json

PACKAGES = ("torch", "torchvision", "timm", "tokenizers", "safetensors", "pillow", "av", "omegaconf", "pydantic",
            "pluggy", "typer", "numpy", "huggingface-hub", "transformers", "peft", "bitsandbytes", "torchao",
            "flash-attn")  # fmt: skip


def doctor(json: Json = False) -> None:
    """Versions, devices, backends, checkpoints, plugins."""
    with console.progress("looking at torch and its devices"):
        devices = _devices()
    versions = {"vlmkit": vlmkit.__version__, "python": platform.python_version(), "system": platform.platform(),
                **{name: _version(name) for name in PACKAGES}}  # fmt: skip
    backends, cpu = _attention(devices), halves()
    manager = default()
    broken = [b._asdict() for b in manager.broken]
    formats = {entry.name: entry.summary for entry in vlmkit.parts("format")}
    if json:
        return console.document({"versions": versions, "devices": devices, "cpu": cpu, "attention": backends,
                                 "formats": formats, "hub": _hub(), "plugins": manager.packages,
                                 "broken": broken})  # fmt: skip
    console.columns([(name, version or "not installed") for name, version in versions.items()], ("versions", ""))
    print()
    console.columns([(d["device"], d["name"], console.amount(d["memory"])) for d in devices], ("devices", "", ""))
    print()
    console.columns([(name, f"{x['matrix']:.1f}x float32 in prompts, {x['vector']:.1f}x in single tokens")
                     for name, x in cpu.items()], ("speed on the cpu", ""))  # fmt: skip
    print()
    console.columns(backends.items(), ("attention", ""))
    print()
    console.columns([("native", "vlmkit's own folders"), *formats.items()], ("checkpoints", ""))
    print()
    console.columns(_hub().items(), ("hub", ""))
    print()
    outside = [(name, package) for name, package in manager.packages.items() if package != "vlmkit"]
    console.columns(outside or [("no plugins installed", "")], ("plugins", ""))
    for plugin in manager.broken:
        console.warn(f"error: plugin {plugin.plugin} ({plugin.package}) is broken: {plugin.reason}")


def _devices() -> list[dict[str, Any]]:
    import torch

    threads = torch.get_num_threads()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    name = f"{platform.machine()}, {threads} thread{'s' * (threads != 1)}"
    found = [{"device": "cpu", "name": name, "memory": pages}]
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        found.append({"device": f"cuda:{i}", "name": about.name, "memory": about.total_memory})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "memory": pages})
    return found


def _hub() -> dict[str, str]:
    """Where hub ids are looked up. A token is never shown."""
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    models = sum(1 for _ in cache.glob("models--*")) if cache.is_dir() else 0
    return {"cache": f"{cache}, {models} model{'s' * (models != 1)}",
            "network": "off: HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "used for what the cache lacks",
            "token": "set" if get_token() else "none, which public models do not need"}  # fmt: skip


def _attention(devices: list[dict[str, Any]]) -> dict[str, str]:
    """What each backend says of the first GPU and bfloat16; without a GPU, of the CPU and float32."""
    import torch

    from vlmkit.model.assemble import HEAD
    from vlmkit.parts.attention.auto import best

    gpu = next((d["device"] for d in devices if d["device"] != "cpu"), None)
    device, dtype = torch.device(gpu or "cpu"), torch.bfloat16 if gpu else torch.float32
    found = {entry.name: _usable(entry, device, dtype, HEAD) for entry in vlmkit.parts("attention")}
    taken = type(best(device, dtype, HEAD)).__module__.rpartition(".")[2]
    return {name: f"{text}, takes {taken}" if name == "auto" else text for name, text in found.items()}


def _usable(entry: Any, *place: Any) -> str:
    """Can it be built, and serve there?   place: device, dtype, width of a head"""
    try:
        ask = getattr(entry.build(entry.config()), "unfit", None)
        why = ask and ask(*place)
    except Exception as error:
        why = error
    return f"not usable: {why}" if why else "usable"


def halves() -> dict[str, dict[str, float]]:
    """How many times as fast as float32 a linear layer is on this CPU, for 128 rows and for one."""
    import torch
    from torch.nn.functional import linear

    def seconds(dtype: Any, rows: int) -> float:
        x, weight = (torch.full((n, 1024), 0.5, dtype=dtype) for n in (rows, 4096))
        spent = []
        for _ in range(4):  # the first one prepares
            start = time.perf_counter()
            linear(x, weight)
            spent.append(time.perf_counter() - start)
        return min(spent)

    whole = {rows: seconds(torch.float32, rows) for rows in (128, 1)}
    return {str(dtype).removeprefix("torch."): {name: round(whole[rows] / seconds(dtype, rows), 2)
                                                for name, rows in (("matrix", 128), ("vector", 1))}
            for dtype in (torch.bfloat16, torch.float16)}  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
