"""Killed at any moment, out of room, interrupted, two at once: the folder holds the old state or the new one, whole."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vlmkit
from vlmkit.checkpoint import native, shards, whole
from vlmkit.checkpoint.tensors import headers
from vlmkit.checkpoint.whole import replacing
from vlmkit.errors import CheckpointCorruptError, SaveError, WeightsError

Small = tuple[Any, Any]
PAGES = 8 << 12  # what an empty file system holds back
IMPOSSIBLE = 77  # what a child exits with where the system does not let it make the fault
ANSWERED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TOUCHES = ("open", "os.", "shutil.", "fcntl.", "ctypes.")  # audit events of file operations
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def child(work: Callable[[], None]) -> int:
    """Start a process that does it and exits with 0, or 1 after an exception."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if code == 1:
            traceback.print_exc()
    finally:
        os._exit(code)


def end(pid: int, within: float = 60) -> int:
    """Its exit code; minus the signal that killed it."""
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a process was not done after {within} s")


def dying(work: Callable[[], None], at: int, events: tuple[str, ...] = TOUCHES) -> Callable[[], None]:
    """The same work, killed before its file operation number `at`."""
    seen = 0

    def hook(event: str, _: Any) -> None:
        nonlocal seen
        if event.startswith(events):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        sys.addaudithook(hook)
        work()

    return run


def weights(folder: Path) -> bytes:
    """A folder's weights, after every byte of it was compared with its lock."""
    native.verify(folder)
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def other(small: Small) -> Any:
    return vlmkit.build(small[1].preset, seed=5)


def test_killed_before_any_file_operation(small: Small, other: Any, folder: Path) -> None:
    """The verdicts read old, old, ..., new, new; the next save needs no help and leaves nothing behind."""
    old, verdicts = weights(folder), []
    new = weights(vlmkit.save(other, small[1], folder.with_name("wanted")))
    for at in range(1, 500):
        status = end(child(dying(lambda: vlmkit.save(other, small[1], folder), at)))
        assert status in (0, -signal.SIGKILL)
        found = weights(folder)
        assert found in (old, new)
        verdicts.append(found == new)
        if status == 0:
            break
        if found == new:
            vlmkit.save(*small, folder)
    assert verdicts[-1]
    assert verdicts == sorted(verdicts)
    assert len(verdicts) > 20
    assert not verdicts[0]
    assert not verdicts[len(verdicts) // 3]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model", "wanted"]


def test_killed_at_random_moments(small: Small, other: Any, tmp_path: Path) -> None:
    """On and on over one folder, from nothing."""
    folder, draw = tmp_path / "model", random.Random(3)
    allowed = {weights(vlmkit.save(model, small[1], tmp_path / name))
               for model, name in ((small[0], "one"), (other, "two"))}
    begin = time.monotonic()
    vlmkit.save(other, small[1], tmp_path / "two")
    lasts = time.monotonic() - begin

    def work() -> None:
        while True:
            vlmkit.save(small[0], small[1], folder)
            vlmkit.save(other, small[1], folder)

    for _ in range(12):
        pid = child(work)
        time.sleep(draw.uniform(0, 2.5 * lasts))
        os.kill(pid, signal.SIGKILL)
        assert end(pid) == -signal.SIGKILL
        assert not folder.exists() or weights(folder) in allowed
    vlmkit.save(*small, folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "one", "two"]


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())


def test_where_the_system_cannot_swap_two_folders(small: Small, other: Any, folder: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there are two renames, and the next writer mends what a kill between them left."""
    old, verdicts = weights(folder), []
    without_exchange(monkeypatch)
    for at in range(1, 10):
        events = ("os.rename", "shutil.rmtree")
        status = end(child(dying(lambda: vlmkit.save(other, small[1], folder), at, events)))
        verdicts.append("gone" if not folder.exists() else "old" if weights(folder) == old else "new")
        with pytest.raises(ZeroDivisionError), replacing(folder):
            raise ZeroDivisionError
        assert weights(folder) == old or verdicts[-1] == "new"
        if status == 0:
            break
        if verdicts[-1] == "new":
            vlmkit.save(*small, folder)
    assert verdicts == sorted(verdicts, key=["old", "gone", "new"].index)
    assert set(verdicts) == {"old", "gone", "new"}
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_failed_second_rename_brings_the_old_one_back(small: Small, folder: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = weights(folder), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == folder and ".new-" in self.name:
            raise OSError(errno.EIO if folder.exists() is False else errno.ENOTEMPTY, "Input/output error")
        return rename(self, target)

    without_exchange(monkeypatch)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(SaveError, match="Input/output"):
        vlmkit.save(*small, folder)
    assert weights(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["io", "ctrl-c"])
@pytest.mark.parametrize("failing", ["write", "seal", "_sync", "_put"])
def test_a_save_that_fails_leaves_the_old_one(small: Small, folder: Path, failing: str, error: BaseException,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    before = weights(folder)
    monkeypatch.setattr({"write": shards, "seal": native}.get(failing, whole), failing, fail)
    for place in (folder, folder.parent / "new"):
        with pytest.raises(SaveError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            vlmkit.save(*small, place)
        if isinstance(error, OSError):
            assert "Input/output error" in str(caught.value)
            assert caught.value.exit == 4
    assert weights(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_no_folder_can_be_made_there(small: Small, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveError, match="file"):
        vlmkit.save(*small, tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_that_are_not_finite_do_not_replace_good_ones(small: Small, folder: Path) -> None:
    before = weights(folder)
    model = vlmkit.build(small[1].preset, seed=5)
    with torch.no_grad():
        model.decoder.norm.weight[3] = float("nan")
    with pytest.raises(CheckpointCorruptError, match=r"decoder\.norm\.weight: 1 NaN"):
        vlmkit.save(model, small[1], folder)
    assert weights(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("use", [
    lambda model, processor: vlmkit.generate(model, processor, "a", max_new_tokens=1),
    lambda model, processor: model(processor("a")),
    lambda model, processor: vlmkit.loss(model, processor(ANSWERED, reply=False, labels=True)),
])  # fmt: skip
def test_weights_in_mapped_files_are_looked_at_when_they_are_needed(
    small: Small, tmp_path: Path, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading reads none of them; whatever runs the model first does, and names the tensor and its file."""
    monkeypatch.setattr("vlmkit.checkpoint.tensors.MAPPED", 1)
    folder = vlmkit.save(*small, tmp_path / "m")
    model, processor = vlmkit.load(folder)
    use(model, processor)
    assert not model.decoder._forward_pre_hooks
    file = folder / "model.safetensors"
    stored = headers(folder)["decoder.norm.weight"]
    with file.open("r+b") as opened:
        opened.seek(stored.start)
        opened.write(torch.tensor([float("inf")]).numpy().tobytes())
    model, processor = vlmkit.load(folder, verify=False)
    for _ in range(2):
        with pytest.raises(CheckpointCorruptError, match=r"decoder\.norm\.weight: 0 NaN and 1 infinite") as caught:
            use(model, processor)
        assert caught.value.where == str(file)
    with pytest.raises(CheckpointCorruptError, match=r"decoder\.norm\.weight: 0 NaN and 1 infinite"):
        vlmkit.load(folder, verify=False, dtype=torch.bfloat16)  # copied, so looked at on the way


def test_weights_without_values(small: Small, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"on meta and cannot be stored"):
        vlmkit.save(small[1].skeleton, small[1], tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_a_file_may_not_grow_further(small: Small, other: Any, folder: Path) -> None:
    """A quota on the size of files, at several places of the weights."""
    before = weights(folder)
    for most in (0, 1, 1000, len(before) // 2, len(before) - 1):
        def work(most: int = most) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            with pytest.raises(SaveError, match="File too large"):
                vlmkit.save(other, small[1], folder)

        assert end(child(work)) == 0
        assert weights(folder) == before
    assert sorted(p.name for p in folder.parent.iterdir()) in ([folder.name], [f".{folder.name}.lock", folder.name])


def small_disk(place: Path, size: int) -> None:
    """A file system of so many bytes, that only this process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group, new = os.getuid(), os.getgid(), 0x00020000 | (0x10000000 if os.getuid() else 0)
    if libc.unshare(new):
        sys.exit(IMPOSSIBLE)
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    libc.mount(b"none", b"/", None, 0x44000, None)  # what is mounted now stays here
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, f"size={size}".encode()):
        sys.exit(IMPOSSIBLE)


@pytest.mark.parametrize("told_before", [True, False])
def test_a_full_disk(small: Small, other: Any, tmp_path: Path, told_before: bool,
                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen before anything is written, or while it is: path and missing bytes are named, and the old one stands."""
    needs = shards.size(small[0].state_dict()) + len(small[1].tokenizer.source)
    (tmp_path / "disk").mkdir()
    for share in (0.3,) if told_before else (0, 0.1, 0.2, 0.3):
        def work(share: float = share) -> None:
            small_disk(tmp_path / "disk", int(needs * (1 + share)) + native.BESIDES + PAGES)
            folder = vlmkit.save(*small, tmp_path / "disk" / "model")
            before = weights(folder)
            if told_before:
                monkeypatch.setattr(shards, "write", None)
            else:
                monkeypatch.setattr(whole.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 60))
            with pytest.raises(SaveError, match="the disk is full") as caught:
                vlmkit.save(other, small[1], folder)
            assert caught.value.where == str(folder)
            assert ("bytes are missing" in str(caught.value)) is told_before
            assert weights(folder) == before
            assert [p.name for p in folder.parent.iterdir()] == ["model"]
            monkeypatch.undo()
            small_disk(tmp_path / "disk", 3 * (needs + native.BESIDES + PAGES))  # room is made
            vlmkit.save(other, small[1], folder)

        status = end(child(work))
        if status == IMPOSSIBLE:
            pytest.skip("this system lets nobody mount a small disk")
        assert status == 0


def test_one_writer_at_a_time(small: Small, other: Any, folder: Path) -> None:
    before = weights(folder)
    ready, go = os.pipe(), os.pipe()

    def hold() -> None:
        with replacing(folder) as beside:
            (beside / "half").write_text("written")
            os.write(ready[1], b".")
            os.read(go[0], 1)
            raise RuntimeError

    owner = child(hold)
    os.read(ready[0], 1)
    with pytest.raises(SaveError, match=rf"is being written by process {owner} on \S+, since ") as caught:
        vlmkit.save(other, small[1], folder)
    assert caught.value.code == "VK-SAVE-BUSY"
    vlmkit.save(other, small[1], folder.with_name("model.new-12345678"))  # another folder is another matter
    assert weights(folder) == before
    assert any((p / "half").is_file() for p in folder.parent.glob(".model.new-*"))
    os.kill(owner, signal.SIGKILL)
    end(owner)
    assert (folder.parent / ".model.lock").is_file()
    vlmkit.save(other, small[1], folder)  # a dead one's lock holds nobody up
    assert weights(folder) != before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model", "model.new-12345678"]


def test_a_lock_whose_file_was_just_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last holder let go between our opening and our locking: what we hold is no longer the lock."""
    lock, file, calls = whole._lock, folder.with_name(".model.lock"), []

    def late(handle: int, folder: Path) -> bool:
        calls.append(handle)
        if len(calls) == 1:
            file.unlink()
        return lock(handle, folder)

    monkeypatch.setattr(whole, "_lock", late)
    with replacing(folder):
        assert file.is_file()
        with pytest.raises(SaveError, match=f"is being written by process {os.getpid()} "):
            replacing(folder).__enter__()


def test_four_writers_at_once(tmp_path: Path) -> None:
    """Each writes its own; whoever is let in finishes, and nothing is ever mixed."""
    folder = tmp_path / "model"

    def work(me: int) -> None:
        done = 0
        begin = time.monotonic()
        while done < 8:
            assert time.monotonic() < begin + 120
            try:
                with replacing(folder) as beside:
                    for i in range(3):
                        (beside / str(i)).write_text(str(me))
                done += 1
            except SaveError as error:
                if error.code != "VK-SAVE-BUSY":
                    raise
                time.sleep(0.002)

    pids = [child(lambda me=i: work(me)) for i in range(4)]
    while pids:
        if folder.exists():
            handle = os.open(folder, os.O_RDONLY)  # one state, also when the folder is replaced while it is read
            try:
                found = set()
                for i in range(3):
                    with open(str(i), opener=partial(os.open, dir_fd=handle)) as file:
                        found.add(file.read())
                assert len(found) == 1
            except FileNotFoundError:  # it was replaced and removed
                pass
            finally:
                os.close(handle)
        done, status = os.waitpid(pids[0], os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            pids.pop(0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_where_the_system_knows_no_locks(small: Small, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written all the same; what may be another's is left alone."""
    def none(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    (folder.parent / ".model.new-0123abcd").mkdir()
    monkeypatch.setattr(whole.fcntl, "flock", none)
    vlmkit.save(*small, folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == [".model.new-0123abcd", "model"]


def test_only_leftovers_are_removed(small: Small, folder: Path) -> None:
    """Of names that merely look alike, none."""
    others = [".model.new-0123abcde", ".model.new-XYZ", ".model2.new-0123abcd", "model.new-0123abcd", ".model.newer",
              ".model"]  # fmt: skip
    for name in (*others, ".model.new-0123abcd", ".model.old-0123abcd"):
        (folder.parent / name).mkdir()
    vlmkit.save(*small, folder)
    assert {p.name for p in folder.parent.iterdir()} == {*others, "model"}


def test_a_strict_umask_is_kept(small: Small, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = vlmkit.save(*small, tmp_path / "m")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}


def test_memory_of_a_save(tmp_path: Path) -> None:
    """One tensor at a time: 64 MB are written, and hardly any are needed."""
    def work() -> None:
        tensors = {f"t{i}": torch.ones(1 << 20).view(1024, 1024).t() for i in range(16)}  # to be laid out anew
        clear = Path("/proc/self/clear_refs")
        if not clear.exists():
            sys.exit(IMPOSSIBLE)
        shards.write({"t": tensors["t0"]}, tmp_path, 1 << 40)
        clear.write_text("5")
        now = peak()
        shards.write(tensors, tmp_path, 1 << 40)
        assert peak() - now < 24 << 20

    status = end(child(work))
    if status == IMPOSSIBLE:
        pytest.skip("this system does not tell how much memory a process took")
    assert status == 0
    assert len(load_file(tmp_path / "model.safetensors")) == 16


def peak() -> int:
    """The most memory this process held.   bytes"""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) << 10
