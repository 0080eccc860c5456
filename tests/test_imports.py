"""What lists, finds or describes must not import what computes."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "timm", "av", "transformers", "torchvision", "PIL", "numpy")
PROBE = """
import sys
{code}
print("found:", *[name for name in {heavy!r} if name in sys.modules])
"""
MAIN = "from vlmkit.cli.main import main\nassert main({words!r}) == 0"


@pytest.mark.parametrize("code", [
    "import vlmkit",
    "import vlmkit; vlmkit.Part, vlmkit.hookimpl, vlmkit.VlmkitError, vlmkit.Limits",
    "import vlmkit; vlmkit.presets(), vlmkit.parts()",
    MAIN.format(words=["--help"]),
    MAIN.format(words=["--version"]),
    MAIN.format(words=["check", "--help"]),
    MAIN.format(words=["parts"]),
    MAIN.format(words=["parts", "packer", "--json"]),
    MAIN.format(words=["presets"]),
    MAIN.format(words=["plugins"]),
    MAIN.format(words=["limits"]),
])  # fmt: skip
def test_is_light(code: str) -> None:
    program = PROBE.format(code=code, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "found:"


def test_every_public_name_is_there() -> None:
    import vlmkit

    assert {*vlmkit.__all__, "registry", "errors"} <= set(dir(vlmkit))
    assert [name for name in dir(vlmkit) if not hasattr(vlmkit, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vlmkit.nothing  # noqa: B018
