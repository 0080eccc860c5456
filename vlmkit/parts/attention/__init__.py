"""Attention backends: causal self-attention over sequences laid end to end."""

from vlmkit.hookspecs import Part, hookimpl

NAMES = ("auto", "eager", "flash", "flash3", "flash4", "flex", "sdpa", "varlen")


@hookimpl
def vlmkit_parts() -> list[Part]:
    here = "vlmkit.parts.attention"
    return [Part("attention", name, f"{here}.{name}") for name in NAMES]
