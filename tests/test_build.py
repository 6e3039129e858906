"""What the build finds, refuses and records. The real build is proven by every test that runs a native kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from vdiff_fast import _build, _library

ROOT = Path(__file__).resolve().parents[1]


def _toolchain(**changes: object) -> _build.Toolchain:
    parts: dict[str, object] = dict.fromkeys(
        ("torch_dir", "torch_version", "cxx", "cmake", "ninja", "nvcc", "pybind11_cmake_dir")
    )
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
    assert "built nothing; native skipped: VDIFF_FAST_NATIVE=0" in record.summary()


@pytest.mark.parametrize("request_", [_build.BuildRequest(native="1"), _build.BuildRequest(cuda="1")])
def test_1_fails_where_auto_would_skip(tmp_path: Path, request_: _build.BuildRequest) -> None:
    with pytest.raises(_build.NativeBuildError, match="missing ninja"):
        _build.build(tmp_path, source=ROOT, request=request_, toolchain=_toolchain(missing=("ninja",)))


def test_cuda_1_needs_nvcc(tmp_path: Path) -> None:
    with pytest.raises(_build.NativeBuildError, match="nvcc is not on PATH"):
        _build.build(tmp_path, source=ROOT, request=_build.BuildRequest(cuda="1"), toolchain=_toolchain())


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
    with pytest.raises(ValueError, match="'avx1024' is not available here"):
        _library.set_isa("avx1024")
