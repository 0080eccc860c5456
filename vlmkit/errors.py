"""What can go wrong, told in one way: where, what was found, what was wanted, what to change."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

LONGEST = 2000  # characters of one message (rule G2)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def clean(text: object) -> str:
    """One safe, bounded line or block of text: control characters escaped, memory addresses removed."""
    safe = _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", _ADDRESS.sub("", str(text)))
    return safe if len(safe) <= LONGEST else safe[: LONGEST - 1] + "…"


class VlmkitError(Exception):
    """The parent of every foreseeable failure.

    what    what was found and what was wanted
    where   file, key, field or row; shown first
    hint    one action that mends it; shown last
    code    a stable identifier, such as ``VK-IMG``
    limit, got, setting   for limits: the number allowed, the number met, and the name that changes it
    public  the text that may leave the machine (over HTTP): never a path
    """

    code = "VK"
    exit = 2  # status of the command line

    def __init__(self, what: object, *, where: object = "", hint: str = "", limit: Any = None, got: Any = None,
                 setting: str = "", public: str = "", code: str = "") -> None:
        self.what, self.where, self.hint = clean(what), clean(where), clean(hint)
        self.limit, self.got, self.setting = limit, got, setting
        self.public = clean(public) or type(self).__name__
        self.code = code or type(self).code
        super().__init__(self.what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.setting:
            text += f" (limit {self.limit}, found {self.got}; change it with {self.setting})"
        return clean(f"{text}\n  {self.hint}" if self.hint else text)

    def __reduce__(self) -> Any:  # errors travel between processes whole
        return _remake, (type(self), dict(self.__dict__))


def _remake(kind: type[VlmkitError], state: dict[str, Any]) -> VlmkitError:
    error = kind.__new__(kind)
    Exception.__init__(error, state.get("what", ""))
    error.__dict__.update(state)
    return error


class PresetError(VlmkitError):
    """A preset, or a word on the command line, that does not make a model."""

    code = "VK-PRESET"


class PresetSyntaxError(PresetError):
    """The text is not YAML as a preset may use it."""


class PresetSafetyError(PresetError):
    """The preset asks for something a file may never do: run code, read the environment, grow without end."""


class PresetValueError(PresetError):
    """A field is unknown, missing or has the wrong type. ``problems`` holds every one of them."""

    def __init__(self, what: object, *, problems: tuple[Problem, ...] = (), **rest: Any) -> None:
        super().__init__(what, **rest)
        self.problems = problems


class OverrideError(PresetError):
    """A ``key=value`` word that does not follow the grammar."""


class PluginError(VlmkitError):
    code, exit = "VK-PLUGIN", 7


class PluginConflictError(PluginError):
    """Two plugins offer the same name."""


class PluginContractError(PluginError):
    """A plugin gave something else than its contract says."""


class ShapeError(VlmkitError):
    """Two parts do not fit together."""

    code = "VK-SHAPE"


class WeightsError(VlmkitError):
    code, exit = "VK-CKPT", 3


class CheckpointSafetyError(WeightsError):
    """The file could run code or reach outside its folder; refused."""


class CheckpointFormatError(WeightsError):
    """The file is not what its name says."""


class CheckpointMismatchError(WeightsError):
    """Names, shapes or types differ from the model's."""


class CheckpointCorruptError(WeightsError):
    """The bytes are damaged, or not those that were written."""


class FetchError(WeightsError):
    """The hub did not give the files. ``code`` says why: -NAME, -MISSING, -ACCESS, -OFFLINE, -NETWORK, -CUT, -ROOM."""

    code = "VK-HUB"


class SaveError(WeightsError):
    """The folder was not written: no room, no right, or another writer. What stood there before still does."""

    code, exit = "VK-SAVE", 4


class MediaError(VlmkitError):
    code, exit = "VK-MEDIA", 3


class MediaLimitError(MediaError):
    """Larger than a limit allows; the message names the limit and how to change it."""


class MediaFormatError(MediaError):
    """Not one of the formats that are read."""


class MediaDecodeError(MediaError):
    """Damaged: cut, flipped or empty."""


class MediaFetchError(MediaError):
    """An address that may not, or could not, be read."""


class TokenizerError(VlmkitError):
    code, exit = "VK-TOKENIZER", 3


class TemplateError(VlmkitError):
    code, exit = "VK-TEMPLATE", 3


class PromptError(VlmkitError):
    code, exit = "VK-PROMPT", 3


class PlaceholderError(PromptError):
    """The number of media parts differs from the number of media."""


class ContextLengthError(PromptError):
    """The sequence does not fit the decoder; the message tells which part is the largest."""


class DataError(VlmkitError):
    code, exit = "VK-DATA", 3


class ResumeError(VlmkitError):
    code, exit = "VK-RESUME", 4


class ConfigDriftError(ResumeError):
    """The run that is resumed was made with other settings."""


class RankError(VlmkitError):
    code, exit = "VK-RANK", 6


class Problem(NamedTuple):
    """One thing that is wrong with a preset."""

    path: str  # projector.depth
    place: str  # deep.yaml:4, or "command line"
    what: str


def tell(title: str, problems: list[Problem]) -> str:
    """All problems as one text, in columns: path, place, what."""
    path = max((len(p.path) for p in problems), default=0)
    place = max((len(p.place) for p in problems), default=0)
    rows = [f"  {p.path:<{path}}  {p.place:<{place}}  {p.what}" for p in problems]
    return "\n".join([f"{title}: {len(problems)} problem{'s' * (len(problems) != 1)}", *rows])
