"""Language decoders."""

from vlmkit.hookspecs import Part, hookimpl


@hookimpl
def vlmkit_parts() -> list[Part]:
    return [Part("decoder", "transformer", "vlmkit.parts.decoders.transformer")]
