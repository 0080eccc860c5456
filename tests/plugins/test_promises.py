"""Every check can fail: for each there is a part that is wrong in that one way, and right before it was made wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmkit.errors import PluginContractError
from vlmkit.hookspecs import KINDS
from vlmkit.registry import Entry
from vlmkit.testing import Outcome, check_part, complain, examine, promises

OUTSIDE = Path(__file__).parent / "outside" / "vlmkit_outside"
SOURCES = {kind: (OUTSIDE / f"{name}.py").read_text("utf-8") for kind, name in
           {"tower": "patches", "projector": "gated", "packer": "pooled", "decoder": "parallel"}.items()}  # fmt: skip
SOURCES["decoder"] = SOURCES["decoder"].replace("    block = Block\n", """    block = Block
    def __init__(self, config, attention):
        super().__init__(config, attention)
    def forward(self, x, lens, cache=None):
        return super().forward(x, lens, cache)
""")
HEAD = '''"""One to be made wrong."""
import random
from vlmkit.contracts import PartConfig
from vlmkit.parts.{0} import {1} as theirs
class Config(theirs.Config):
    """As theirs."""
EXAMPLE = theirs.EXAMPLE
'''
SOURCES["tiler"] = HEAD.format("tilers", "square") + '''
class Mine(theirs.Square):
    def cut(self, picture, layout):
        return super().cut(picture, layout)
def build(config, *, side, fill):
    return Mine(config.fit, side, fill, config.resample)
'''
SOURCES["sampler"] = HEAD.format("samplers", "uniform") + '''
class Mine(theirs.Uniform):
    def pick(self, frames, fps):
        return super().pick(frames, fps)
build = Mine
'''
SOURCES["attention"] = HEAD.format("attention", "sdpa") + '''
class Mine(theirs.Sdpa):
    def __call__(self, q, k, v, lens, cache=None, window=None):
        return super().__call__(q, k, v, lens, cache, window)
def build(config):
    return Mine()
'''
SOURCES["chat"] = HEAD.format("chats", "turns") + '''
class Mine(theirs.Turns):
    def render(self, turns, reply):
        return super().render(turns, reply)
def build(config):
    return Mine(theirs.build(config).style)
'''
SOURCES["format"] = HEAD.format("formats", "clip") + '''
class Mine:
    def recognise(self, folder):
        return False
    def describe(self, folder): ...
    def rules(self, preset, names): ...
    def dress(self, folder, preset, model): ...
def build(config):
    return Mine()
'''
PLAIN = '''"""One to be made wrong."""
import random
from vlmkit.contracts import PartConfig
class Config(PartConfig):
    """No fields."""
EXAMPLE = {}
'''
SOURCES["dataset"] = PLAIN + '''
class Mine:
    def __len__(self):
        return 3
    def __getitem__(self, i):
        if i >= 3:
            raise IndexError(i)
        return [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": str(i)}]
def build(config):
    return Mine()
'''
SOURCES["metric"] = PLAIN + '''
def build(config):
    return lambda answers, people: sum(a in some for a, some in zip(answers, people)) / len(answers)
'''

TAKES = "        return features._replace(tokens=self.layer(features.tokens * self.gate))"
GATE = "self.gate, self.layer = nn.Parameter(torch.full((width,), start)), "
START = '    start: float = Field(1.0, gt=0, description="what the gate is at first")\n'


def forward(tokens: str, before: str = "") -> tuple[str, str]:
    """The projector, with other tokens, after some line."""
    return TAKES, f"        {before}\n        return features._replace(tokens={tokens})"


WRONG: dict[str, tuple[str, list[tuple[str, str]]]] = {
    # every kind
    "module_is_found": ("projector", [("def build(", "def make(")]),
    "says_what_it_is": ("projector", [('"""One linear layer behind a learned gate."""', "")]),
    "entry_is_light": ("projector", [("", "")]),  # its __init__ imports torch
    "fields_are_strict": ("projector", [(START, "    model_config = {'frozen': False}\n" + START)]),
    "fields_have_a_schema": ("projector", [(START, START + "    more: type(len) = Field(len, description='x')\n"),
                                           ("(PartConfig):", "(PartConfig, arbitrary_types_allowed=True):")]),
    "fields_are_described": ("projector", [(', description="what the gate is at first"', "")]),
    "example_binds": ("projector", [('{"start"', '{"strat"')]),
    "config_comes_back": ("projector", [
        (START, START + "    @field_serializer('start')\n    def more(self, start): return start + 1\n"),
        ("from pydantic import Field", "from pydantic import Field, field_serializer")]),
    "config_travels": ("projector", [
        (START, START + "    _act = PrivateAttr(default_factory=lambda: lambda x: x)\n"),
        ("from pydantic import Field", "from pydantic import Field, PrivateAttr")]),
    "name_is_usable": ("projector", [("", "")]),  # its name is `on`
    # what computes
    "builds_on_meta": ("projector", [("(width,), start)", "(width,), start, device='cpu')")]),
    "runs_on_meta": ("projector", [forward("self.layer(features.tokens)", "if features.tokens.sum() > 9: return 1")]),
    "gives_finite_numbers": ("projector", [forward("self.layer(features.tokens) / 0")]),
    "starts_from_the_seed": ("projector", [("start)), ", "__import__('time').time() % 1)), ")]),
    "answers_the_same_twice": ("projector", [forward("self.layer(nn.functional.dropout(features.tokens))")]),
    "batch_is_single": ("projector", [forward("self.layer(features.tokens - features.tokens.mean(0))")]),
    "inputs_stay": ("projector", [forward("self.layer(features.tokens.mul_(self.gate))")]),
    "weights_come_back": ("projector", [(GATE, "self.noise = torch.randn(width); " + GATE),
                                        forward("self.layer(features.tokens * self.noise)")]),
    "loads_onto_meta": ("projector", [
        (GATE, "self.register_buffer('two', torch.full((width,), 2.0), persistent=False); " + GATE),
        forward("self.layer(features.tokens * self.two)")]),
    "runs_in_bfloat16": ("projector", [forward("self.layer(features.tokens.float())")]),
    "moves_between_devices": ("projector", [(GATE, "self.two = [torch.ones(width)]; " + GATE),
                                            forward("self.layer(features.tokens * self.two[0])")]),
    "every_weight_learns": ("projector", [forward("self.layer(features.tokens * self.gate.detach())")]),
    "frozen_stays_frozen": ("projector", [forward("self.layer(features.tokens)", "self.requires_grad_(True)")]),
    "learns_after_answering": ("projector", [
        forward("nn.functional.linear(features.tokens * self.gate, self.kept)",
                "self.kept = getattr(self, 'kept', self.layer.weight * 1)")]),
    "leaves_switches_alone": ("projector", [
        forward("self.layer(features.tokens)", "torch.use_deterministic_algorithms(True)")]),
    "compiles": ("projector", [forward("self.layer(features.tokens) + torch.compiler.is_compiling()")]),
    "shards": ("projector", [("torch.full((width,), start)", "torch.tensor(start)")]),
    "travels_to_workers": ("projector", [(GATE, "self.act = lambda x: x; " + GATE)]),
    "hides_no_tensor": ("projector", [(GATE, "self.two = torch.ones(width); " + GATE)]),
    # what sees
    "tells_its_shape": ("tower", [("mean, std, unused = (0.5, 0.5, 0.5)", "mean, std, unused = [0.5, 0.5, 0.5]")]),
    "width_is_true": ("tower", [("= config.side, config.width,", "= config.side, config.width + 1,")]),
    "blocks_repeat": ("tower", [("in self.blocks:", "in self.blocks[:-1]:")]),
    "sees_every_patch": ("tower", [("(self.patch((pixels.float()", "(self.patch((pixels.float() * (pixels > 255)")]),
    "projects_to_the_decoder": ("projector", [("nn.Linear(width, out)", "nn.Linear(width, width)")]),
    "reads_what_it_projects": ("projector", [forward("self.layer(features.tokens * 0)")]),
    "names_its_separators": ("packer", [('("newline",)', '("newline", "frame")')]),
    "packs_to_the_decoder": ("packer", [("for layout in layouts])]", "for layout in layouts])][:-1]")]),
    "counts_what_it_packs": ("packer", [
        ("features.map, self.edge", "features.map, self.edge + int(not features.tokens.is_meta)")]),
    "reads_every_tile": ("packer", [("torch.cat([tokens,", "torch.cat([tokens[:1].expand_as(tokens),")]),
    "takes_projectors_as_they_are": ("packer", [("project(pooled).tokens", "F.pad(pooled.tokens, (0, 16))")]),
    "plans_as_it_cuts": ("tiler", [("super().cut(picture, layout)", "super().cut(picture, layout).float()")]),
    "picks_what_is_there": ("sampler", [("super().pick(frames, fps)", "[i + 1 for i in super().pick(frames, fps)]")]),
    "goes_to_workers": ("sampler", [("build = Mine", "def build(config):\n    made = Mine(config)\n"
                                     "    made.more = lambda: 0\n    return made")]),
    # what speaks
    "tells_its_size": ("decoder", [
        ("(config, attention)\n    def f", "(config, attention)\n        self.vocab += 1\n    def f")]),
    "embeds_its_vocabulary": ("decoder", [
        ("(config, attention)\n    def f", "(config, attention)\n"
         "        self.embed = type(self.embed)(config.vocab - 1, config.width, std=1.0)\n    def f")]),
    "looks_back_only": ("decoder", [("+ self.mlp(y)", "+ self.mlp(y) + y.mean(0)")]),
    "caches_what_it_saw": ("decoder", [("super().forward(x, lens, cache)", "super().forward(x, lens)")]),
    "blocks_run_in_order": ("decoder", [
        ("    def forward(self, x, lens, cache", "    def _bare(self):\n        return list(self.blocks)[::-1]\n"
         "    def forward(self, x, lens, cache")]),
    "attends_as_written": ("attention", [("(q, k, v, lens, cache, window)", "(q, k, v, lens, cache)")]),
    "attends_from_a_cache": ("attention", [
        ("(q, k, v, lens, cache, window)", "(q, k, v, lens[lens > 0], None, window)")]),
    "attention_learns": ("attention", [("(q, k, v, lens, cache, window)", "(q, k.detach(), v, lens, cache, window)")]),
    "writes_what_was_said": ("chat", [("super().render(turns, reply)", "super().render(turns, reply)[::-1]")]),
    "learns_the_answer_only": ("chat", [
        ("super().render(turns, reply)", "[p._replace(learned=True) if hasattr(p, 'learned') else p "
         "for p in super().render(turns, reply)]")]),
    "opens_the_reply": ("chat", [("super().render(turns, reply)", "super().render(turns, not reply)")]),
    # the rest
    "gives_conversations": ("dataset", [('"role": "user"', '"from": "human"')]),
    "gives_the_same_item": ("dataset", [("What is {i}?", "What is {random.random()}?")]),
    "ends": ("dataset", [("raise IndexError(i)", "i = 0")]),
    "likes_what_is_right": ("metric", [("a in some for", "a not in some for")]),
    "knows_its_own": ("format", [("return False", "return (folder / 'config.json').exists()")]),
    "has_both_ways": ("format", [("    def dress(self, folder, preset, model): ...\n", "")]),
}  # fmt: skip

Lay = Callable[..., Entry]


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Write a package with one part and give its entry."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def write(kind: str, text: str, first: str = "", name: str = "mine") -> Entry:
        package = f"vk_{len(names)}_{tmp_path.name}"
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(first)
        (tmp_path / package / "part.py").write_text(text)
        names.append(package)
        return Entry(kind, name, "wrong", f"{package}.part")

    yield write  # type: ignore[misc]
    for module in [m for m in sys.modules if m.split(".")[0] in names]:
        del sys.modules[module]


def test_each_check_has_its_wrong_part() -> None:
    assert {promise.name for kind in KINDS for promise in promises(kind)} == set(WRONG)


@pytest.mark.parametrize("check", WRONG)
def test_a_wrong_part_fails(check: str, lay: Lay) -> None:
    kind, changes = WRONG[check]
    good = wrong = SOURCES[kind]
    for old, new in changes:
        assert old in wrong
        wrong = wrong.replace(old, new) if old else wrong
    (promise,) = (p for p in promises(kind) if p.name == check)
    first = "import torch" if check == "entry_is_light" else ""
    name = "on" if check == "name_is_usable" else "mine"
    assert [o.state for o in examine(lay(kind, good), promise)] == ["passed"]
    (found,) = examine(lay(kind, wrong, first, name), promise)
    assert (found.state, found.promise) == ("failed", promise.text)
    with pytest.raises(PluginContractError, match=f"1 of its promises are broken\n  {check}: "):
        complain([found], "projector mine")


def test_a_part_is_checked_by_name() -> None:
    outcomes = check_part("packer", "flat")
    assert {o.state for o in outcomes} == {"passed", "skipped"}
    assert Outcome("shards", outcomes[0].promise, "skipped", "it has no weights").state == "skipped"
    assert next(o for o in outcomes if o.check == "shards").said == "it has no weights"
