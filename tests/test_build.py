"""What the build finds, refuses and records. The real build is proven by every test that runs a native kernel."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vdiff_fast import _build, _library

ROOT = Path(__file__).resolve().parents[1]


def _toolchain(**changes: object) -> _build.Toolchain:
    parts: dict[str, object] = dict.fromkeys(("torch_dir", "torch_version", "cxx", "cmake", "ninja", "nvcc"))
    return _build.Toolchain(**(parts | changes))  # type: ignore[arg-type]


def test_finds_this_torch_without_importing_it() -> None:
    tools = _build.find_toolchain(_build.BuildRequest())
    assert tools.torch_version == torch.__version__
    assert Path(str(tools.torch_dir)) == Path(torch.__file__).parent


def test_the_environment_variable_names_a_folder_or_a_python() -> None:
    for value in (str(Path(torch.__file__).parent), sys.executable):
        assert _build.find_toolchain(_build.BuildRequest(torch=value)).torch_version == torch.__version__


def test_missing_parts_are_named_and_recorded(tmp_path: Path) -> None:
    tools = _toolchain(missing=("torch (install torch first)", "ninja"))
    record = _build.build(tmp_path, source=ROOT, request=_build.BuildRequest(), toolchain=tools)
    assert record.built == []
    written = json.loads((tmp_path / "_lib" / "build.json").read_text())
    assert written["skipped"]["native"] == "missing torch (install torch first), ninja"


def test_native_0_builds_nothing_and_says_so(tmp_path: Path) -> None:
    record = _build.build(tmp_path, source=ROOT, request=_build.BuildRequest(native="0"))
    assert record.skipped == {"native": "VDIFF_FAST_NATIVE=0"}
    assert record.summary() == "vdiff_fast native build: built nothing\n  native left out: VDIFF_FAST_NATIVE=0"


@pytest.mark.parametrize("request_", [_build.BuildRequest(native="1"), _build.BuildRequest(cuda="1")])
def test_1_fails_where_auto_would_skip(tmp_path: Path, request_: _build.BuildRequest) -> None:
    with pytest.raises(_build.NativeBuildError, match="missing ninja"):
        _build.build(tmp_path, source=ROOT, request=request_, toolchain=_toolchain(missing=("ninja",)))


def test_cuda_1_needs_nvcc(tmp_path: Path) -> None:
    with pytest.raises(_build.NativeBuildError, match="nvcc is not on PATH"):
        _build.build(tmp_path, source=ROOT, request=_build.BuildRequest(cuda="1"), toolchain=_toolchain())


def _asked(monkeypatch: pytest.MonkeyPatch, package: Path, gpu: bool, here_only: bool = True, **request: str) -> Any:
    """What CMake is asked for with nvcc on PATH: instruction sets, and whether CUDA comes along; and the record."""
    asked: list[tuple[str, bool]] = []

    def compile_libraries(
        package: Path, source: Path, build: Path, request: Any, tools: Any, *, cuda: bool, **_: Any
    ) -> None:
        asked.append((request.isas, cuda))
        (build / "generated").mkdir(parents=True, exist_ok=True)
        (build / "generated" / "isas.txt").write_text("scalar avx2\nscalar avx2 avx512\nscalar avx2\n")

    monkeypatch.setattr(_build, "compile_libraries", compile_libraries)
    monkeypatch.setattr(_build, "has_gpu", lambda: gpu)
    tools = _toolchain(nvcc="nvcc", torch_version="2.11", cxx="g++")
    source = package / "source"
    source.mkdir(parents=True, exist_ok=True)
    record = _build.build(
        package, source=source, request=_build.BuildRequest(**request), toolchain=tools, here_only=here_only
    )
    return asked[0], record


def test_a_build_in_place_makes_what_this_machine_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, record = _asked(monkeypatch, tmp_path, gpu=False)
    assert asked == ("native", False)
    assert record.skipped["cuda"] == "this machine has no GPU; `VDIFF_FAST_CUDA=1 vdiff-fast build` adds it"
    assert (
        record.skipped["instruction set avx512"] == "this CPU lacks it; `VDIFF_FAST_ISAS=all vdiff-fast build` adds it"
    )
    assert record.isas == ["scalar", "avx2"]


def test_a_gpu_or_a_request_brings_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked(monkeypatch, tmp_path / "gpu", gpu=True)[0] == ("native", True)
    assert _asked(monkeypatch, tmp_path / "asked", gpu=False, cuda="1")[0] == ("native", True)


def test_a_wheel_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked(monkeypatch, tmp_path, gpu=False, here_only=False)[0] == ("all", True)


def test_a_later_build_keeps_what_an_earlier_one_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_lib").mkdir()
    earlier = {"built": ["libvdiff_fast_cuda.so"], "isas": ["scalar", "avx512"]}
    (tmp_path / "_lib" / "build.json").write_text(json.dumps(earlier))
    assert _asked(monkeypatch, tmp_path, gpu=False)[0] == ("native;scalar;avx512", True)


def test_the_progress_and_the_compilers_words_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    lines = "".join(f"echo '[{i}/20] file {i}'; " for i in range(1, 21))
    _build._run_ninja(["sh", "-c", lines])
    shown = capfd.readouterr().err.splitlines()
    assert len(shown) == 10
    assert shown[-1].startswith("vdiff_fast: 20 of 20 files compiled, ")
    with pytest.raises(_build.NativeBuildError, match=r"\[1/2\] file\nerror: no such thing"):
        _build._run_ninja(["sh", "-c", "echo '[1/2] file'; echo 'error: no such thing'; exit 1"])


@pytest.mark.skipif(_library.CPU.reason is not None, reason="needs the tools of a build")
def test_an_unknown_instruction_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    request = _build.BuildRequest(isas="avx1024", cuda="0")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy2(ROOT / "CMakeLists.txt", tmp_path)
    with pytest.raises(
        _build.NativeBuildError, match="unknown instruction set 'avx1024': choose from all, cpu, native"
    ):
        _build.build(tmp_path / "package", source=tmp_path, request=request)


def test_an_unknown_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDIFF_FAST_CUDA", "yes")
    with pytest.raises(_build.NativeBuildError, match="VDIFF_FAST_CUDA='yes': must be auto, 0 or 1"):
        _build.BuildRequest.from_environment()


def test_the_stable_abi_target_is_the_declared_minimum() -> None:
    major, minor = _build.MINIMUM_TORCH
    assert f"0x{major:02x}{minor:02x}000000000000" in (ROOT / "CMakeLists.txt").read_text()
    assert f'"torch>={major}.{minor}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.skipif(_library.CPU.reason is not None, reason=str(_library.CPU.reason))
def test_instruction_set_is_chosen_at_run_time() -> None:
    best = _library.isa()
    _library.set_isa("scalar")
    assert _library.isa() == "scalar"
    _library.set_isa(str(best))
    assert best == _library.best_isa(), "the best set of this CPU was not built"
    with pytest.raises(ValueError, match="'avx1024' is not available here"):
        _library.set_isa("avx1024")
