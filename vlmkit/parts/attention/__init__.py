"""Attention backends: causal self-attention over sequences laid end to end."""

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> list[Part]:
    here = "vlmkit.parts.attention"
    return [Part("attention", name, f"{here}.{name}") for name in ("eager", "sdpa")]
