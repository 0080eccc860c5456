"""The other side of `sandbox.py`: one child process, started when first needed, replaced when it had to be killed."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vlmkit.errors import TemplateError
from vlmkit.limits import current

SCRIPT = Path(__file__).with_name("sandbox.py")


class Kitchen:
    """Where templates are rendered. A fork gets a child of its own."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew, as after a fork: the child and the lock are the parent's."""
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, source: str, given: dict[str, Any], where: str) -> str:
        """The text of a template, within the limits of time, memory and length."""
        limits = current()
        request = json.dumps({"source": source, "given": given, "most": limits.template_max_output}, ensure_ascii=False)
        try:
            reply = self._ask(request.encode("utf-8", "surrogatepass") + b"\n", limits.template_render_seconds)
        except TimeoutError:
            raise TemplateError("takes too long", where=where, limit=limits.template_render_seconds, got="more",
                                setting="template.render_seconds") from None
        except (OSError, ValueError):
            raise TemplateError("its process ended", where=where, limit=limits.template_max_memory, got="more",
                                setting="template.max_memory") from None
        if "limit" in reply:
            setting = reply["limit"]
            raise TemplateError("grows too large", where=where, setting=setting, got="more",
                                limit=getattr(limits, setting.replace(".", "_")))
        if "error" in reply:
            raise TemplateError(reply["error"], where=f"{where}:{reply['line']}" if reply.get("line") else where)
        text: str = reply["text"]
        return text

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def _ask(self, line: bytes, seconds: float) -> dict[str, Any]:
        with self._lock:
            child = self._started()
            try:
                until = time.monotonic() + seconds
                _write(child, line)
                reply: dict[str, Any] = json.loads(_read_line(child, until))
                return reply
            except BaseException:
                self.stop()
                raise

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.stop()
            path = os.pathsep.join(p for p in sys.path if p)
            self._child = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT), str(current().template_max_memory)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PYTHONPATH": path}, close_fds=True)
            _write(self._child, b'{"source": "", "given": {}, "most": 0}\n')  # starting is not the template's time
            _read_line(self._child, time.monotonic() + 60)
        return self._child


def _write(child: subprocess.Popen[bytes], line: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(line)
    child.stdin.flush()


def _read_line(child: subprocess.Popen[bytes], until: float) -> bytes:
    """One line, or TimeoutError."""
    assert child.stdout is not None
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(child.stdout.fileno(), 1 << 20)
        if not part:
            raise OSError("the child ended")
        parts.append(part)
    return b"".join(parts)


kitchen = Kitchen()
atexit.register(kitchen.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=kitchen.forget)
