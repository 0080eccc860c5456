"""What a preset says: which parts, which streams, which weights. Bound, typed and frozen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from vlmkit.contracts import PartConfig, PartOf

Into = Literal["tower", "projector", "decoder", "separators", "image.tower", "image.projector", "image.packer",
               "video.tower", "video.projector", "video.packer"]  # fmt: skip


class Section(BaseModel):
    """Fields of a preset that are no part."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class Tokenizer(Section):
    from_: str = Field(alias="from", description="a folder beside the preset (`.`), or a hub id `org/name[@revision]`")
    image: str = Field("<image>", description="the string that stands for a picture; its id fills the slots")
    video: str = Field("<video>", description="the string that stands for a clip")


class Weights(Section):
    from_: str = Field(alias="from", description="a folder beside the preset (`.`), or a hub id `org/name[@revision]`")
    format: str = Field(description="the layout the weights are stored in, such as llava-hf or native")
    into: tuple[Into, ...] = Field((), description="the sections they fill; empty means all")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")


class Stream(Section):
    """The path of one modality. A tower or projector of its own replaces the shared one."""

    tiler: Annotated[PartConfig, PartOf("tiler")]
    packer: Annotated[PartConfig, PartOf("packer")]
    tower: Annotated[PartConfig, PartOf("tower")] | None = None
    projector: Annotated[PartConfig, PartOf("projector")] | None = None


class Clips(Stream):
    sampler: Annotated[PartConfig, PartOf("sampler")]


class Places(dict[str, str]):
    """Path of a field -> where it was set. Two presets are equal wherever their values stood."""

    tree: Any = None  # the merged layers, so that more can be laid over them

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places)

    __hash__ = None


class Preset(Section):
    """A model as data. Every part is bound: `preset.tower.build()` makes it."""

    name: str = Field("", description="filled in from the file's name")
    about: str = Field("", description="one or two sentences")
    needs: tuple[str, ...] = Field((), description="plugin packages it relies on")
    tower: Annotated[PartConfig, PartOf("tower")]
    projector: Annotated[PartConfig, PartOf("projector")]
    decoder: Annotated[PartConfig, PartOf("decoder")]
    tokenizer: Tokenizer | None = None
    chat: Annotated[PartConfig, PartOf("chat")]
    image: Stream | None = None
    video: Clips | None = None
    weights: tuple[Weights, ...] = ()

    _places: Places = PrivateAttr(default_factory=Places)

    def dump(self) -> dict[str, Any]:
        """Everything it says, defaults filled in, as plain lists and mappings that read back equal."""
        said: dict[str, Any] = self.model_dump(mode="json", by_alias=True, serialize_as_any=True)
        return said


class Schedule(Section):
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    decay: float = Field(1.0, gt=0, le=1, description="share of the steps, the last ones, in which it falls to nothing")


class Run(Preset):
    """A preset with what it takes to train it."""

    data: Annotated[PartConfig, PartOf("dataset")]
    train: dict[str, float] = Field(description="section -> learning rate; everything unnamed is frozen")
    steps: int = Field(ge=1)
    batch: int = Field(32, ge=1, description="conversations of one step")
    schedule: Schedule = Field(default_factory=Schedule)
    seed: int = Field(0, ge=0, description="of the weights a training starts from")
    save_every: int = Field(500, ge=1, description="steps between two saves")
    workers: int = Field(1, ge=0, description="processes that prepare data")
