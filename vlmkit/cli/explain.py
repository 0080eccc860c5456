"""vlmkit explain PRESET [WORDS] FILE --out report.html"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.errors import VlmkitError

from . import console
from .arguments import Out
from .tokens import skeleton, split

if TYPE_CHECKING:
    from vlmkit.compose.preset import Preset
    from vlmkit.view.page import Panel
    from vlmkit.view.trace import Trace


def explain(
    words: Annotated[
        list[str],
        typer.Argument(metavar="PRESET [WORDS]... FILE", help="A preset, key=value, then a picture or a clip."),
    ],
    out: Out = Path("explain.html"),
    ask: Annotated[
        str | None, typer.Option(help="Also answer this, and draw what each word looked at; needs the weights.")
    ] = None,
) -> None:
    """Draw how a picture or clip becomes tokens.

    Tiles, padding that is thrown away, the order of tokens, newlines, and the shape after each step.
    """
    preset, files = split(words)
    if len(files) != 1:
        raise typer.BadParameter("one picture or clip at a time")
    with console.progress(f"drawing {files[0].name}"):
        from vlmkit.view import explain, page, visual

        model = skeleton(preset)
        planned = visual.plan(model, files[0])
        panels, origin = explain.panels(model, planned, planned.cut())
        if ask is not None and origin is None:
            raise VlmkitError("its packer has weights, so nobody can tell which patches a token is made of",
                              where="--ask", hint="leave --ask out")
        if ask is not None and origin is not None:
            panels.insert(-1, _asked(preset, files[0], planned.layout.kind, ask, origin))
        about = f"{planned.tokens:,} tokens. {preset.about.strip()}"
        page.write(out, f"{files[0].name} in {preset.name}", about, panels)
    print(f"{planned.tokens:,} tokens; wrote {out}")


def _asked(preset: Preset, file: Path, kind: str, question: str, origin: Trace) -> Panel:
    import vlmkit
    from vlmkit.view.explain import looking

    model, processor = vlmkit.load(preset, attention="eager")
    return looking(model, processor, file, kind, question, origin)
