"""The CUDA blocks of the norms under ThreadSanitizer: no missing barrier, without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native import ROOT


def _build(source: str, target: Path) -> None:
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, source, "-o", str(target)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on PATH")
    folder = tmp_path_factory.mktemp("races")
    (folder / "empty.cpp").write_text("int main() {}\n")
    try:
        _build(str(folder / "empty.cpp"), folder / "empty")
        subprocess.run([str(folder / "empty")], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"ThreadSanitizer does not run here: {error.stderr.decode().strip()[:200]}")
    _build(str(ROOT / "tests" / "native" / "norm_races.cpp"), folder / "races")
    return folder / "races"


def test_blocks_have_every_barrier_they_need(races: Path) -> None:
    played = subprocess.run([str(races)], capture_output=True, text=True)
    assert played.returncode == 0, played.stderr[:4000]
    exchanges = re.findall(r"exchange (\d slices \d+ buffers \d)", played.stdout)
    assert len(exchanges) == 20
    one, cluster, split = "0 slices 1 buffers 1", "0 slices [2-8] buffers 1", r"2 slices \d+ buffers 1"
    for exchange in (one, cluster, split, "1 slices 2 buffers 1", "1 slices 2 buffers 2"):
        assert sum(re.fullmatch(exchange, each) is not None for each in exchanges) == 4, exchanges


@pytest.mark.parametrize("missing", ["barriers", "meetings"])
def test_a_missing_wait_is_found(races: Path, missing: str) -> None:
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    played = subprocess.run([str(races), missing], capture_output=True, text=True, env=environment)
    assert played.returncode != 0
    assert "data race" in played.stderr
