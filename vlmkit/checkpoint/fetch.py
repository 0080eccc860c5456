"""A hub id `org/name[@revision]` -> a folder in the hub client's cache. Nothing else ever reaches the network."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..errors import CheckpointCorruptError, CheckpointFormatError, CheckpointSafetyError, FetchError, WeightsError
from ..limits import current
from .files import INDEX, NAME, ONE, choose, inside, pickled, weight_map

WORD = r"[A-Za-z0-9][\w.-]{0,95}"
HUB = re.compile(rf"(?P<repo>{WORD}/{WORD})(@(?P<revision>\w[\w./-]{{0,200}}))?", re.ASCII)
LOGIN = "accept its conditions on its page, and let HF_TOKEN hold a token that may read it"
SMALL = ("config.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
         "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "added_tokens.json", "chat_template.json", "chat_template.jinja", "preset.yaml", "lock.json",
         "adapter_config.json")  # fmt: skip
PATIENCE = 10.0  # seconds until the hub must answer; the hub client waits as long for each piece of a file


class Listed(NamedTuple):
    """A file as the hub announces it."""

    size: int
    sha256: str  # of large files
    sha1: str  # of small ones, as git computes it


def is_hub(source: str) -> bool:
    """Whether a name has the shape of a hub id. It says nothing about a folder of that name."""
    return bool(HUB.fullmatch(source)) and ".." not in source and "--" not in source


def fetch(source: str, weights: bool = True, unpickle: bool = False) -> Path:
    """Download what a model needs, or find it in the cache: configuration, tokenizer, templates, safetensors.

    source    org/name, or org/name@revision
    weights   False: without the tensors
    unpickle  take pickled weights where there are no others; nothing here opens them
    HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and HF_HUB_OFFLINE are heeded. Where the hub cannot be reached, what the cache
    holds is used, with a warning. Raises FetchError.
    """
    found = HUB.fullmatch(source)
    if found is None or not is_hub(source):
        raise FetchError(f"{source[:200]!r} is no hub id, and nothing was asked for it", code="VK-HUB-NAME",
                         hint="wanted org/name or org/name@revision, or a folder that exists")
    repo, revision = found["repo"], found["revision"] or "main"
    with _unobserved():
        try:
            commit, listing = _list(repo, revision)
        except Exception as error:
            return _cached(repo, revision, weights, unpickle, _told(error, source))
        try:
            return _download(repo, revision, commit, listing, weights, unpickle)
        except WeightsError:
            raise
        except Exception as error:
            raise _told(error, source, cut=True) from None


def _list(repo: str, revision: str) -> tuple[str, dict[str, Listed]]:
    """The commit a revision means, and the files in the repository's top folder."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="vlmkit", library_version=__version__)
    info = api.model_info(repo, revision=revision, files_metadata=True, timeout=PATIENCE)
    files = {s.rfilename: Listed(s.size or 0, s.lfs.sha256 if s.lfs else "", (not s.lfs and s.blob_id) or "")
             for s in info.siblings or [] if NAME.fullmatch(s.rfilename)}
    return info.sha or "", files


def _download(repo: str, revision: str, commit: str, listing: dict[str, Listed], weights: bool, unpickle: bool
              ) -> Path:
    """Small files first, weights last, so that a folder with weights is whole."""
    chosen = _choose(listing, repo, unpickle) if weights else []
    small = [name for name in SMALL if name in listing] + [name for name in chosen if name.endswith(".json")]
    for name in small:
        if (size := listing[name].size) > (most := current().tokenizer_max_bytes):
            raise FetchError(f"{name} is too large", where=repo, limit=most, got=size, setting="tokenizer.max_bytes")
    if not small and not chosen:
        raise FetchError("holds no configuration and no tokenizer", where=repo, code="VK-HUB-MISSING")
    folder = _get(repo, revision, commit, small, listing)
    if chosen and chosen[0].endswith(".json"):
        chosen = sorted(set(weight_map(inside(folder, chosen[0])).values()))
        if lost := [name for name in chosen if name not in listing]:
            raise CheckpointFormatError(f"{lost[0]} is in the index and not in the repository", where=repo)
    return _get(repo, revision, commit, chosen, listing) if chosen else folder


def _choose(names: Iterable[str], repo: str, unpickle: bool) -> list[str]:
    """The names that hold the weights."""
    try:
        return choose(names, repo)
    except CheckpointSafetyError as error:
        if unpickle and (some := pickled(names)):
            return some
        raise CheckpointSafetyError(error.what, where=repo, hint="where it is trusted: vlmkit import "
                                    f"{repo} --unpickle --out DIR") from None


def _get(repo: str, revision: str, commit: str, names: list[str], listing: dict[str, Listed]) -> Path:
    """Download files that are not in the cache, one after the other; the folder of them all."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    new = {n for n in names if not isinstance(try_to_load_from_cache(repo, n, revision=commit), str)}
    place = next(p for p in (Path(constants.HF_HUB_CACHE).absolute(), *Path(constants.HF_HUB_CACHE).absolute().parents)
                 if p.exists())
    missing = sum(listing[n].size for n in new) - shutil.disk_usage(place).free
    if missing > 0:
        raise FetchError(f"the disk is full: {missing:,} bytes are missing", where=place, code="VK-HUB-ROOM",
                         hint="make room, or let HF_HUB_CACHE name another place")
    folder = place
    for name in names:  # the first by its branch, which makes the cache remember where the branch stood
        at = revision if name == names[0] else commit
        file = Path(hf_hub_download(repo, name, revision=at, library_name="vlmkit", library_version=__version__))
        folder = file.parent
        if folder.name != commit:
            raise FetchError("changed while it was read", where=f"{repo}@{revision}", code="VK-HUB-CUT",
                             hint="try again, or name a commit")
        if name in new:
            _compare(file, listing[name])
    return folder


def _compare(file: Path, listed: Listed) -> None:
    """The bytes must be those that the hub announced; others do not stay in the cache."""
    with file.open("rb") as opened:
        if listed.sha256:
            found, wanted = hashlib.file_digest(opened, "sha256").hexdigest(), listed.sha256
        else:
            data = opened.read()
            found, wanted = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), listed.sha1
    if wanted and found != wanted:
        file.resolve().unlink()
        file.unlink(missing_ok=True)
        raise CheckpointCorruptError(f"came as {found[:12]}…, announced as {wanted[:12]}…; removed", where=file,
                                     hint="download it again")


def _cached(repo: str, revision: str, weights: bool, unpickle: bool, why: FetchError) -> Path:
    """What an earlier download left in the cache; else the reason why there was none now."""
    from huggingface_hub import try_to_load_from_cache

    if why.code in ("VK-HUB-NAME", "VK-HUB-MISSING"):
        raise why
    found = (try_to_load_from_cache(repo, name, revision=revision) for name in (*SMALL, ONE, INDEX))
    folder = next((Path(file).parent for file in found if isinstance(file, str)), None)
    if folder is None:
        raise why
    try:
        chosen = _choose([file.name for file in folder.iterdir()], repo, unpickle) if weights else []
        shards = weight_map(inside(folder, chosen[0])).values() if chosen and chosen[0].endswith(".json") else chosen
        for name in set(shards):
            inside(folder, name)
    except CheckpointFormatError as error:
        raise FetchError(f"{why.what}; the copy in the cache is not whole: {error.what}", where=why.where,
                         hint=why.hint, code=why.code) from None
    if why.code != "VK-HUB-OFFLINE":
        warnings.warn(f"{repo}: {why.what}; taking the copy in the cache, {folder.name[:12]}", stacklevel=4)
    return folder


def _told(error: Exception, source: str, cut: bool = False) -> FetchError:
    """One clear error of the many that the hub client raises. Their texts hold addresses and are left out."""
    from huggingface_hub import errors

    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", 0)
    code, what = "NETWORK", f"the hub cannot be reached ({type(error).__name__})"
    hint = "see HF_ENDPOINT and the network"
    if isinstance(error, errors.HFValidationError):
        code, what, hint = "NAME", "is no hub id", "wanted org/name or org/name@revision"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        code, what, hint = "OFFLINE", "is not in the cache, and HF_HUB_OFFLINE is set", "unset it, or name a folder"
    elif isinstance(error, errors.RevisionNotFoundError):
        code, what, hint = "MISSING", "the hub has no such revision", "name a branch, a tag or a commit of it"
    elif isinstance(error, errors.GatedRepoError) or status == 403:
        code, what, hint = "ACCESS", "the hub lets only some people read it", LOGIN
    elif isinstance(error, errors.RepositoryNotFoundError):
        code, what = "MISSING", "the hub has no such repository, or shows it to some only"
        hint = f"see its name; or {LOGIN}"
    elif status == 401:
        code, what, hint = "ACCESS", "the hub wants a token, or another one", "see HF_TOKEN"
    elif status:
        what, hint = f"the hub answered with status {status}", "try again later"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        code, what, hint = "ROOM", "the disk is full", "make room, or let HF_HUB_CACHE name another place"
    elif cut:
        code, what, hint = "CUT", f"the download broke off ({type(error).__name__})", "try again; whole files are kept"
    return FetchError(what, where=source, hint=hint, code=f"VK-HUB-{code}")


@contextmanager
def _unobserved() -> Iterator[Any]:
    """The hub client without telemetry, for which it would ask the hub what programs to look for."""
    from huggingface_hub import constants

    before, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before
