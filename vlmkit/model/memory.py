"""The most memory that was held."""

from __future__ import annotations

import sys

import torch


def peak(device: torch.device) -> int:
    """Bytes: of a GPU what torch held there, else of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
