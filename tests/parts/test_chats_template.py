"""Chat templates: the text transformers renders, speech that stays speech, and templates that mean harm."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from vlmkit.errors import PlaceholderError, TemplateError
from vlmkit.limits import Limits
from vlmkit.parts.chats.kitchen import kitchen
from vlmkit.parts.chats.template import EXAMPLE, Config, build
from vlmkit.types import Learned, Said, Seen, Turn

MEDIA = (
    "{% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'video' %}{{ '<video>\n' }}{% endfor %}"
)
TEXTS = "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}"
TEMPLATES = {  # section 4.3 of the family reference
    "vicuna": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content[0].text + ' ' }}{% else %}"
              "{{ m.role.upper() + ': ' }}" + MEDIA + "{% if m.role == 'assistant' %}{% generation %}" + TEXTS +
              "{{ ' ' }}{% endgeneration %}{% else %}" + TEXTS + "{{ ' ' }}{% endif %}{% endif %}{% endfor %}"
              "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "mistral": "{% for m in messages %}{% if m.role == 'system' %}{{ '<<SYS>>\n' + m.content[0].text }}"
    "{{ '\n<</SYS>>\n\n' }}"
               "{% elif m.role == 'user' %}{{ '[INST] ' }}" + MEDIA + TEXTS + "{{ ' [/INST]' }}{% else %}{{ ' ' }}"
               + TEXTS + "{{ '<\\\\s> ' }}{% endif %}{% endfor %}",
    "onevision": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}" + MEDIA
    + "{% if m.role != 'assistant' %}"
                 + TEXTS + "{% else %}{% generation %}" + TEXTS + "{% endgeneration %}{% endif %}{{ '<|im_end|>\n' }}"
                 "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "trims": "{%- for m in messages %}\n    {{- '[' ~ m.role ~ ']' }}\n  " + MEDIA + "{{ m.content[-1].text | trim }}\n"
             "{% endfor %}\n{{ messages | length }} {{ bos_token }} {{ [1, 'é<'] | tojson }}\n",
    "words only": "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
}  # fmt: skip
TALK = [
    Turn("system", ["Be 简短."]),
    Turn("user", [Seen(0), Seen(1), " What is it? \n"]),
    Turn("assistant", ["Été, 🙂 a cat"]),
    Turn("user", ["and this"]),
]


def text(pieces: list) -> str:
    return "".join(f"<{p.kind}>" if isinstance(p, Seen) else p if isinstance(p, str) else p.text for p in pieces)


def render(source: str, turns: list[Turn], reply: bool = True, **config: object) -> list:
    return build(Config(text=source, **config)).render(turns, reply)


def as_messages(turns: list[Turn]) -> list[dict]:
    return [
        {
            "role": t.role,
            "content": [{"type": p.kind} if isinstance(p, Seen) else {"type": "text", "text": p} for p in t.content],
        }
        for t in turns
    ]


@pytest.mark.parity
@pytest.mark.parametrize("reply", [True, False])
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "words only"])
def test_text_and_learned_spans_are_those_of_transformers(name: str, reply: bool) -> None:
    chat = pytest.importorskip("transformers.utils.chat_template_utils")
    source = TEMPLATES[name]
    theirs, spans = chat.render_jinja_template(
        [as_messages(TALK)],
        chat_template=source,
        add_generation_prompt=reply,
        return_assistant_tokens_mask=True,
        bos_token="<s>",
    )
    pieces = render(source, TALK, reply, bos="<s>")
    assert text(pieces) == theirs[0]
    if "generation %}" in source:
        learned = [p.text for p in pieces if isinstance(p, Learned) or (isinstance(p, Said) and p.learned)]
        assert "".join(learned) == "".join(theirs[0][start:end] for start, end in spans[0])


def test_places_are_given_in_order() -> None:
    turns = [Turn("user", [Seen(0), Seen(1, "video"), Seen(2), "q"])]
    seen = [p for p in render(TEMPLATES["onevision"], turns) if isinstance(p, Seen)]
    assert seen == [Seen(0), Seen(2), Seen(1, "video")]  # all pictures first, as the template writes them


def test_the_stop_behind_an_answer_is_learned() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }} </s>{% endfor %}"
    turns = [Turn("user", ["q"]), Turn("assistant", ["a"]), Turn("user", ["</s>"])]
    pieces = render(source, turns, stops=("</s>",))
    assert pieces == [
        "user: ",
        Said("q"),
        " </s>assistant: ",
        Said("a", True),
        Learned(" </s>"),
        "user: ",
        Said("</s>"),
        " </s>",
    ]


SPECIAL = [
    "<image>",
    "<video>",
    "</s>",
    "<|im_end|>",
    "{{ messages }}",
    "{% raw %}",
    "[/INST]",
    "\U000f0000",
    "\U0010fffc\U0010fffd",
    "a\u202eb\x00c",
    "é" * 50,
]


@pytest.mark.parametrize("said", SPECIAL)
@pytest.mark.parametrize("name", ["vicuna", "onevision", "trims", "words only"])
def test_speech_stays_speech(name: str, said: str) -> None:
    turns = [Turn("user", [Seen(0), f"x {said} y"]), Turn("assistant", [said]), Turn("user", [said])]
    pieces = render(TEMPLATES[name], turns, bos="<s>")
    assert [p for p in pieces if isinstance(p, Seen)] == [Seen(0)]
    assert [p.text for p in pieces if isinstance(p, Said)] == [f"x {said} y", said, said]


def test_a_template_that_reads_words_gets_words() -> None:
    turns = [Turn("user", [Seen(0), "q"]), Turn("assistant", ["a"])]
    assert text(render(TEMPLATES["words only"], turns, bos="<s>")) == "<s>user: <image>\nq\nassistant: a\n"


def test_dropped_and_doubled_places_are_told_with_both_numbers() -> None:
    """C44"""
    for source, places in (("{{ messages[0].content[-1].text }}", 0), ("<image>" + TEMPLATES["vicuna"], 2)):
        with pytest.raises(PlaceholderError, match=f"{places} places for 1 image"):
            render(source, [Turn("user", [Seen(0), "q"])])


BAD = {  # C42, C43
    "attribute": "{{ ''.__class__.__mro__ }}", "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "globals": "{{ cycler.__init__.__globals__ }}",
    "namespace": "{% set n = namespace(__class__=1) %}", "mutation": "{{ messages.clear() }}",
    "syntax": "line one\n{{ messages", "refusal": "{{ raise_exception('no\x1b[2J') }}",
    "memory": "{{ 'a' * 10 ** 9 }}", "output": "{{ 'a' * (5 * 1024 * 1024) }}", "padding": "{{ '%1000000000d' % 1 }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_harm_is_one_clear_error(name: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        render(BAD[name], [Turn("user", ["q"])])
    assert time.perf_counter() - started < 4
    assert "\x1b" not in str(caught.value)
    if name == "syntax":
        assert str(caught.value).startswith("template:2: ")
    assert text(render(EXAMPLE["text"], [Turn("user", ["q"])])) == "USER: q ASSISTANT:"


def test_a_template_that_takes_for_ever_is_killed() -> None:
    source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    started = time.perf_counter()
    with Limits(template_render_seconds=0.3), pytest.raises(TemplateError, match=r"template\.render_seconds"):
        render(source, [Turn("user", ["q"])])
    assert time.perf_counter() - started < 3
    assert text(render(EXAMPLE["text"], [Turn("user", ["q"])])) == "USER: q ASSISTANT:"


def test_the_child_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", "canary-value")
    kitchen.stop()
    render(EXAMPLE["text"], [Turn("user", ["q"])])
    assert kitchen._child is not None
    assert b"canary-value" not in Path(f"/proc/{kitchen._child.pid}/environ").read_bytes()


def _forked(queue: multiprocessing.Queue) -> None:
    queue.put(text(render(EXAMPLE["text"], [Turn("user", ["forked"])])))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_and_forks_do_not_mix_answers() -> None:
    def ask(at: int) -> bool:
        return text(render(EXAMPLE["text"], [Turn("user", [f"q{at}"])])) == f"USER: q{at} ASSISTANT:"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(100)))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_forked, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == "USER: forked ASSISTANT:"
    child.join(10)
    assert child.exitcode == 0
    assert ask(0)


def test_files_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_text(EXAMPLE["text"])
    assert text(build(Config(file=str(path))).render([Turn("user", ["q"])], True)) == "USER: q ASSISTANT:"
    for bad in ({}, {"text": "a", "file": "b"}):
        with pytest.raises(ValidationError, match="either"):
            Config(**bad)
    with pytest.raises(TemplateError):
        build(Config(file=str(tmp_path)))
    with pytest.raises(TemplateError, match=r"template\.max_bytes"):
        build(Config(text="x" * 300_000))
