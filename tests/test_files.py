"""Files appear whole, with the umask's mode, and a full disk is named and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vdiff_fast import _files

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def save_run(folder: Path) -> None:
    from vdiff_fast.training import Checkpoint, save_checkpoint

    tensors = {"w": torch.zeros(1)}
    save_checkpoint(folder, Checkpoint(tensors, tensors, {"m": torch.zeros(9)}, {"step": 1}, ""), keep=1)


def save_cache(folder: Path) -> None:
    from vdiff_fast.data import ClipSpec, VideoFolder, demo_clip

    list(VideoFolder([demo_clip()], ClipSpec(frames=4, size=(8, 8)), cache_dir=folder).build_cache())


def save_pictures(folder: Path) -> None:
    from vdiff_fast.data import contact_sheet, write_video

    video = torch.zeros(3, 4, 16, 16, dtype=torch.uint8)
    for name in ("a.mp4", "b.gif"):
        write_video(video, folder / name)
    contact_sheet(video, folder / "c.png")


def save_metrics(folder: Path) -> None:
    from vdiff_fast.training.metrics import MetricsLog, plot_loss

    folder.mkdir()
    log = MetricsLog(folder)
    log.write({"step": 1, "loss": 1.0})
    log.close()
    plot_loss([{"step": 1, "loss": 1.0}], folder / "loss.png")


def save_segments(folder: Path) -> None:
    from vdiff_fast.diffusion.long.files import SegmentFiles

    SegmentFiles(folder, {"a": 1}).save(0, 0, torch.zeros(3, 2, 4, 4))


@pytest.mark.parametrize("save", [save_run, save_cache, save_pictures, save_metrics, save_segments])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, save: object) -> None:
    save(tmp_path / "out")  # type: ignore[operator]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in written}
    assert set(modes.values()) == {oct(0o666 & ~umask)}, modes
    assert not [path for path in written if path.name.startswith(_files.WRITING)]


# A limit of the size of files stands for a full disk: the kernel refuses the bytes beyond it (EFBIG).
LIMITED = """
import json, os, resource, signal, sys
from pathlib import Path
import torch
from vdiff_fast import data
from vdiff_fast.data import ClipSpec, VideoFolder, demo_clip, write_png, write_video
from vdiff_fast.diffusion.long.files import SegmentFiles
from vdiff_fast.training import Checkpoint, save_checkpoint
from vdiff_fast.training.metrics import MetricsLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root = Path(sys.argv[1])
one, many = {"w": torch.zeros(1)}, {"m": torch.zeros(200_000)}
noise = torch.randint(0, 256, (3, 40, 96, 96), dtype=torch.uint8)
log = MetricsLog(root)
def cache():
    list(VideoFolder([demo_clip()], ClipSpec(frames=4, size=(128, 128)), cache_dir=root / "cache").build_cache())
def save(name, model, ema, optimizer, config=""):
    save_checkpoint(root / name, Checkpoint(model, ema, optimizer, {"step": 1}, config), keep=1)
cases = {
    "c/step_00000001/optimizer.pt": lambda: save("c", one, one, many),
    "d/step_00000001/ema.safetensors": lambda: save("d", one, many, one),
    "e/step_00000001/config.yaml": lambda: save("e", one, one, one, "x" * 400_000),
    "cache/": cache,
    "a.mp4": lambda: write_video(noise, root / "a.mp4", quality=0),
    "a.mkv": lambda: write_video(noise, root / "a.mkv", quality=0),
    "a.gif": lambda: write_video(noise, root / "a.gif"),
    "a.png": lambda: write_png(torch.cat([noise[:, i] for i in range(40)], 1), root / "a.png"),
    "s/level_0/00000000.safetensors": lambda: SegmentFiles(root / "s", {}).save(0, 0, torch.zeros(3, 40, 50, 50)),
    "metrics.jsonl": lambda: log.write({"step": 1, "text": "x" * 400_000}),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
found = {}
for name, write in cases.items():
    try:
        write()
        found[name] = ["nothing", 0, ""]
    except Exception as error:
        found[name] = [type(error).__name__, getattr(error, "errno", None), str(getattr(error, "filename", None))]
print(json.dumps(found))
os._exit(0)  # The metrics' buffer cannot be emptied.
"""


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 10
    for name, (kind, number, path) in found.items():
        assert (kind, number) == ("OSError", errno.EFBIG), (name, found)
        assert path.startswith(str(tmp_path / name)), (name, path)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in left) == [".json", ".json", ".jsonl"], left


def test_the_command_line_names_the_full_disk(tmp_path: Path) -> None:
    from vdiff_fast.cli.app import _message

    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "a"))
    assert _message(error) == f"{tmp_path / 'a'}: No space left on device"


def test_errors_of_other_files_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, _files.whole_file(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()
    assert raised.value.filename == str(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=r"^no disk$"), _files.whole_file(tmp_path / "a"):
        raise RuntimeError("no disk")
    with pytest.raises(OSError, match="No space") as raised, _files.disk_errors_of(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_or_stays(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with _files.whole_folder(target) as folder:
            _files.write_text(folder / "a", content)
        assert (target / "a").read_text() == content

    def fail(folder: Path) -> None:
        _files.write_text(folder / "a", "three")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), _files.whole_folder(target) as folder:
        fail(folder)
    assert (target / "a").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_names_become_one_printable_line() -> None:
    assert _files.printable("a b.mp4") == "a b.mp4"
    assert _files.printable("Ärger 映画.mp4") == "Ärger 映画.mp4"
    assert _files.printable("a\nb\tc\x1b[31m.mp4") == "a\\nb\\tc\\x1b[31m.mp4"
    assert _files.printable(b"caf\xe9.mp4") == "caf\\xe9.mp4"
    assert _files.printable(os.fsdecode(b"caf\xe9.mp4")).encode("ascii") == b"caf\\xe9.mp4"
