"""What a device is asked: the most memory that was held, and to be ready."""

from __future__ import annotations

import sys

import torch


def wait() -> None:
    """Until all that was asked of an accelerator is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def peak(device: torch.device) -> int:
    """Bytes: of a GPU what torch held there, else of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
