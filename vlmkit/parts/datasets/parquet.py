"""Conversations in parquet files, or in a folder that the library `datasets` saved, with pictures in or beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from vlmkit.contracts import PartConfig
from vlmkit.errors import DataError

from . import rows


class Config(PartConfig):
    """Columns are named as in LLaVA's rows: `messages` or `conversations`, `images` and `videos`."""

    path: str = Field(description="a .parquet file, a folder of them, or a folder saved by `datasets`")
    split: str | None = Field(None, description="a saved folder's split, or how names of files begin; null is all")
    images: str | None = Field(None, description="the folder that named files lie in; `path`'s own if null")


class Parquet:
    def __init__(self, config: Config) -> None:
        self.path = rows.existing(config.path, "file or folder")
        here = self.path if self.path.is_dir() else self.path.parent
        self.root = rows.existing(config.images, "folder") if config.images else here
        # as stored: pictures stay bytes, which only our own readers look into
        self.table = _open(self.path, config.split).with_format("arrow")

    def __len__(self) -> int:
        return len(self.table)

    @rows.placed
    def __getitem__(self, at: int) -> rows.Item:
        return rows.messages(self.table[at].to_pylist()[0], lambda name: rows.below(self.root, name))

    def place(self, at: int) -> str:
        return f"{self.path}[{at}]"


def _open(path: Path, split: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("parquet is read by the library `datasets`, which is not installed", where="data",
                        hint="pip install 'vlmkit[train]'") from None
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _split(datasets.load_from_disk(str(path)), split, path)
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        chosen = [str(file) for file in files if file.name.startswith(split or "")]
        if not chosen:
            raise DataError(f"{len(files)} parquet files" + f", none of {split!r}" * bool(files), where=path)
        return datasets.Dataset.from_parquet(chosen)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"`datasets` cannot read it: {str(error).strip().partition(chr(10))[0]}", where=path) from None


def _split(found: Any, split: str | None, path: Path) -> Any:
    """A saved folder holds one table, or one for each split."""
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise DataError(f"no split {split!r}; there are: {', '.join(found)}", where=path, hint="set `split`")
    return found[split]


def build(config: Config) -> Parquet:
    return Parquet(config)


EXAMPLE: dict[str, Any] = {"path": "train.parquet"}
