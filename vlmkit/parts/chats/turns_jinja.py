"""A style of turns as a jinja chat template, for engines that read nothing else: the same words, the same text."""

from __future__ import annotations

import json
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .turns import Style

VIDEOS = '("video", "video_url")'
KINDS = '("image", "image_url", "input_image", "video", "video_url")'

WHOLE = """\
{%- set state = namespace(opening=$opening, first=true, open=false, seen=false) -%}
{%- for message in messages -%}
$words{%- if message["role"] == "system" -%}
{%- if not loop.first -%}{{- raise_exception("a system turn can only come first") -}}{%- endif -%}
$system{%- set state.opening = $framed if said else "" -%}
{%- else -%}
$early$apart{%- if message["role"] == "assistant" -%}
$assistant
{%- else -%}
$user
{%- endif -%}
{%- endif -%}
{%- endfor -%}
$early{%- if add_generation_prompt -%}{{- $reply -}}{%- endif -%}
"""
EARLY = '{{- state.opening -}}{%- set state.opening = "" -%}\n'  # before the first turn, not inside it
USER = '{{- $whole -}}\n{%- set state.opening = "" -%}{%- set state.first = false -%}'
ASSISTANT = "$before{%- generation -%}{{- $learned -}}{%- endgeneration -%}$after"
APART = "$shown{%- if said -%}\n$user\n$answer\n{%- endif -%}\n"

# What a message says. `seen`: a visual stands before this part; `open`: and no space does.
WORDS = """\
{%- set state.open = false -%}{%- set state.seen = false -%}
{%- set said -%}
{%- if message["content"] is string -%}$text
{%- else -%}
{%- for part in message["content"] -%}
{%- if part is mapping and part["type"] in $kinds -%}
$visual
{%- else -%}
$part
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endset -%}
"""
LINE = '("\\n" if state.open else "")'
SHOWN = "\n{%- set state.open = true -%}{%- set state.seen = true -%}"
PART = """\
{%- set text = part if part is string else part["text"] -%}
{%- if text -%}
{{- ("\\n" if state.seen and text[0] | trim else "") ~ text -}}
{%- set state.open = text[-1] | trim != "" -%}{%- set state.seen = false -%}
{%- endif -%}"""
BARE = '{{- part if part is string else part["text"] -}}'


def write(style: Style, image: str, video: str) -> str:
    """The template. `image`, `video`: what stands for a visual in the text."""
    opening = "".join((style.opening[0], style.system, style.opening[1])) if style.system else ""
    every = _words(style, image, video)
    texts, shown = _words(style, image, video, shown=False), _words(style, image, video, texts=False)
    user, assistant = _user(style), _assistant(style, "said")
    apart = ""
    if style.apart:
        apart = _fill(APART, shown=shown, user=user, answer=_assistant(style, _text(style.apart)))
    answered = texts if style.apart else every
    asked = texts if style.apart else shown if style.silent else every
    once = asked == answered == every  # then a message is read before it is known whose it is
    return _fill(
        WHOLE, opening=_text(opening), reply=_text(style.reply), early="" if style.inside else EARLY, apart=apart,
        words=every if once else "", system="" if once else every, user=user if once else asked + user,
        framed=_joined(_text(style.opening[0]), "said", _text(style.opening[1])),
        assistant=assistant if once else answered + assistant)


def _user(style: Style) -> str:
    before, after = map(_text, style.user)
    if style.first is not None:
        before = f"({_text(style.first)} if state.first else {before})"
    return _fill(USER, whole=_joined(before, "state.opening", "said", after))


def _assistant(style: Style, said: str) -> str:
    before, closing, after = map(_text, style.assistant)
    return _fill(ASSISTANT, before=_put(before), learned=_joined(said, closing), after=_put(after))


def _words(style: Style, image: str, video: str, shown: bool = True, texts: bool = True) -> str:
    """What puts a message's words into `said`: all of them, or only what is shown, or only what is not."""
    lines = not style.silent
    place = f'({_text(video)} if part["type"] in {VIDEOS} else {_text(image)})'
    before, after = map(_text, style.visual)
    visual = _put(_joined(LINE if lines else '""', before, place, after)) + SHOWN * lines
    part = "" if not texts else PART if lines else BARE
    return _fill(WORDS, kinds=KINDS, visual=visual if shown else "", part=part,
                 text='{{- message["content"] -}}' if texts else "")


def _fill(template: str, /, **given: str) -> str:
    return Template(template).substitute(given)


def _joined(*texts: str) -> str:
    return " ~ ".join(text for text in texts if text != '""')


def _put(text: str) -> str:
    return "" if text == '""' else f"{{{{- {text} -}}}}"


def _text(text: str) -> str:
    """A literal of jinja, whose strings are written like JSON's."""
    return json.dumps(text, ensure_ascii=False)
