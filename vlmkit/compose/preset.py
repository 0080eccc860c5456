"""What a preset says: which parts, which streams, which weights. Bound, typed and frozen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

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
    from_: str = Field(alias="from", description="a folder beside the preset (`.`), a hub id `org/name[@revision]`, or "
                       "a preset that lies beside its weights, such as `tiny`")
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


class Lora(Section):
    """Low-rank adapters on the linear layers of a part's blocks; the part itself stays as it is."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="the adapters' share is alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)


def _short(schema: dict[str, Any]) -> None:
    """A rate alone may stand for the whole section."""
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "number", "exclusiveMinimum": 0}, whole]


class Learns(Section):
    """How a part learns. A number is short for `rate`."""

    model_config = ConfigDict(json_schema_extra=_short)

    rate: float = Field(gt=0, description="the full learning rate")
    weight_decay: float = Field(0.02, ge=0, description="of matrices; vectors have none")
    layers: str | None = Field(None, pattern=r"^(-?\d+)?:(-?\d+)?$",
                               description="which of its blocks, as Python slices: `16:` or `-4:`; all when not given")
    from_step: int = Field(0, ge=0, description="frozen before this step")
    lora: Lora | None = Field(None, description="learn adapters in its place")

    @model_validator(mode="before")
    @classmethod
    def _rate(cls, given: Any) -> Any:
        return {"rate": given} if isinstance(given, int | float) and not isinstance(given, bool) else given

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> Any:
        return self.rate if self.model_fields_set == {"rate"} else dump(self)


def _asked(train: Any) -> Any:
    """`null` freezes what a lower layer trained."""
    return {k: v for k, v in train.items() if v is not None} if isinstance(train, dict) else train


Train = Annotated[dict[str, Learns], BeforeValidator(_asked), Field(
    description="section -> learning rate, or how it learns; everything unnamed is frozen")]  # fmt: skip


class Machine(Section):
    """How a run is computed; it belongs to the machine, and the losses to the run."""

    device: str = Field("auto", description="cpu, cuda, mps; auto takes a GPU when there is one")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 keeps float32 master weights")
    recompute: bool = Field(False, description="compute blocks again in the backward pass: less memory, more time")
    compile: bool = Field(False, description="compile each block")
    shard: Literal["none", "fsdp", "tensor"] = Field("none", description="over the processes of torchrun")
    attention: str = Field("auto", description="the attention backend")
    quantize: Literal["int8", "nf4"] | None = Field(None, description="of frozen matrices under a decoder's adapters")
    features: Literal["auto", "off", "on"] = Field("auto", description="keep what a frozen tower saw")


class Prefer(Section):
    """Learn which of two answers is better, by DPO, in place of cross entropy."""

    beta: float = Field(0.1, gt=0, description="how hard it is held to the model that the stage begins with")


class Stage(Section):
    """A part of a run. What it says stands in place of what the run says."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    data: Annotated[PartConfig, PartOf("dataset")] | None = None
    train: Train | None = None
    steps: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    prefer: Prefer | None = None
    schedule: Schedule | None = None
    optimizer: Literal["muon", "adamw"] | None = None


class Run(Preset):
    """A preset with what it takes to train it."""

    data: Annotated[PartConfig, PartOf("dataset")]
    train: Train
    steps: int = Field(ge=1)
    batch: int = Field(32, ge=1, description="conversations of one step")
    tokens: int | None = Field(None, ge=1, description="tokens of one step, in place of `batch`: samples laid end to "
                               "end up to it")
    prefer: Prefer | None = Field(None, description="learn from pairs of answers, by DPO; null is cross entropy")
    schedule: Schedule = Field(default_factory=Schedule)
    optimizer: Literal["muon", "adamw"] = Field("muon", description="of matrices between layers; AdamW for the rest")
    clip: float = Field(1.0, gt=0, description="the largest norm of a gradient")
    seed: int = Field(0, ge=0, description="of the weights a training starts from")
    save_every: int = Field(500, ge=1, description="steps between two saves")
    workers: int = Field(1, ge=0, description="processes that prepare data")
    skip: float = Field(0.01, ge=0, le=1, description="share of bad samples that may be left out")
    log: Literal["tensorboard", "wandb", "none"] = Field("tensorboard", description="where losses go beside log.jsonl; "
                                                         "tensorboard when it is installed")
    machine: Machine = Field(default_factory=Machine)
    stages: tuple[Stage, ...] = Field((), description="one after the other; each lays its fields over the run's")

    @field_validator("stages")
    @classmethod
    def _named(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in stages]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two stages are named {twice}")
        return stages
