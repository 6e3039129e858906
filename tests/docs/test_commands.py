"""Every command of the documentation is run, here or by a test that is named in tools/docs/commands.yaml."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.codecs.tiny import make_codec, make_text
from tests.pretrained.tiny import make_pipeline
from tools.docs.blocks import ROOT, commands, written_pages
from vdiff_fast import data
from vdiff_fast.cli import main
from vdiff_fast.cli.app import COMMANDS

TABLE: dict[str, list[dict[str, Any]]] = yaml.safe_load((ROOT / "tools/docs/commands.yaml").read_text())
# Notes of what happened, with commands of their time.
NO_INSTRUCTIONS = ("measured_facts.md",)


def documented() -> Iterator[tuple[str, str]]:
    for page in written_pages():
        if page.name not in NO_INSTRUCTIONS and page.parent.name != "how_to":
            yield from commands(page)


def _names_a_command(command: str) -> bool:
    """`vdiff-fast train` in the text is the name of a command, and this one exists."""
    words = command.split()
    return len(words) == 2 and words[0] == "vdiff-fast" and words[1] in {name for name, _, _ in COMMANDS}


def test_every_command_is_in_the_table() -> None:
    known = {entry["command"] for entry in (*TABLE["run"], *TABLE["covered"])}
    missing = [f"{place}: {c}" for place, c in documented() if c not in known and not _names_a_command(c)]
    assert not missing, "\n".join(["add to tools/docs/commands.yaml:", *missing])


def test_the_table_holds_no_command_that_is_in_no_page() -> None:
    present = {command for _, command in documented()}
    assert [e["command"] for e in (*TABLE["run"], *TABLE["covered"]) if e["command"] not in present] == []


def test_what_covers_a_command_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for entry in (*TABLE["run"], *TABLE["covered"]):
        if entry["command"].startswith("make "):
            assert entry["command"].removeprefix("make ") in targets
    for entry in TABLE["covered"]:
        path, _, test = entry["by"].partition("::")
        text = (ROOT / path).read_text()
        assert f"def {test}(" in text if test else True, entry["by"]
        if path == ".ci/run":
            assert entry["command"] in text


def _scratch(folder: Path) -> None:
    """What the commands find: videos, a picture, a clip, the recipes."""
    clip = (torch.rand(3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    (folder / "clips").mkdir()
    for name in ("one", "two"):
        data.write_video(clip, folder / "clips" / f"{name}.mp4", fps=8)
    data.write_video(clip.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, :8], folder / "clip.gif", fps=8)
    data.write_png(torch.zeros(3, 32, 32, dtype=torch.uint8), folder / "picture.png")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "clips" / "captions.csv").write_text("file,caption\none.mp4,a fox runs\ntwo.mp4,a fox sleeps\n")
    (folder / "prompts.txt").write_text("a fox runs\na fox sleeps\n")
    wan = make_pipeline("WanTransformer3DModel", folder / "wan")
    make_codec("AutoencoderKLWan", wan / "vae")
    make_text(wan / "text_encoder")


def _run(entry: dict[str, Any]) -> tuple[int, str]:
    """The exit status of one command; vdiff-fast in this process, which has imported it already."""
    words = shlex.split(f"{entry.get('as', entry['command'])} {entry.get('smaller', '')}")
    if words[0] == "vdiff-fast":
        return main(words[1:]), ""
    assert words[0] == "python"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stderr


def test_the_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _scratch(tmp_path)
    failed = []
    for entry in TABLE["run"]:
        status, errors = _run(entry)
        shown = capsys.readouterr()
        if status != entry.get("status", 0):
            failed.append(f"{entry['command']}: exit {status}\n{shown.err[-1500:]}{errors[-1500:]}")
    assert not failed, "\n".join(failed)
    for name in (
        "x.mp4",
        "long.gif",
        "painted.gif",
        "slow.gif",
        "sampler_quality.png",
        "foxes_1.mp4",
        "fox.mp4",
        "out/report.json",
    ):
        assert (tmp_path / name).stat().st_size > 100, name


def test_the_package_installs_from_its_folder(tmp_path: Path) -> None:
    """`pip install .`, without a compiler: a wheel of Python files whose import finds its reference."""
    tree = tmp_path / "tree"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if name.startswith(("vdiff_fast/", "csrc/")) or "/" not in name:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet", "--target"]
    environment = os.environ | {"VDIFF_FAST_NATIVE": "0", "PYTHONPATH": ""}
    subprocess.run([*command, str(tmp_path / "site"), "."], cwd=tree, env=environment, check=True, timeout=300)
    code = "import vdiff_fast as vf, torch; print(vf.__file__, vf.ops.geglu(torch.ones(2, 4)).shape)"
    environment["PYTHONPATH"] = str(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert str(tmp_path / "site") in done.stdout, done.stderr
