"""Try a wheel in a fresh environment whose PATH has no compiler: `python tools/test_wheel.py dist/*.whl`.

Imports it, asks the doctor, compares an op on the CPU library with its reference, and runs the demo for a few steps.

    --python python3.12   the Python of the environment
    --torch torch==2.11.0 the torch to install; default: the newest
    --lend FOLDER         take the packages of this site-packages (of the same Python), install the wheel alone
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

PROGRAM = """
import shutil, torch, vdiff_fast as vf
from vdiff_fast import _library
assert not any(map(shutil.which, ("gcc", "g++", "clang++", "nvcc", "cmake"))), "there is a compiler on PATH"
assert _library.CPU.reason is None, _library.CPU.reason
assert _library.isa() == _library.best_isa(), (_library.isas(), _library.best_isa())
x, weight, bias = torch.randn(2, 64, 4, 16, 16), torch.randn(64), torch.randn(64)
with vf.use_backend("cpu"):
    ours = vf.ops.group_norm_silu(x, 32, weight, bias)
with vf.use_backend("reference"):
    torch.testing.assert_close(ours, vf.ops.group_norm_silu(x, 32, weight, bias))
print(vf.__file__, "torch", torch.__version__, "kernels", _library.isa(), "of", _library.isas())
"""


def install(python: Path, wheel: Path, torch: str, lend: Path | None) -> None:
    pip = [str(python), "-m", "pip", "install", "-q"]
    if lend is None:
        subprocess.run([*pip, torch, f"{wheel}[cli,video]"], check=True)
        return
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{lend}\n")


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("wheel", type=Path)
    parse.add_argument("--python", default="python3")
    parse.add_argument("--torch", default="torch")
    parse.add_argument("--lend", type=Path)
    arguments = parse.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        subprocess.run([arguments.python, "-m", "venv", str(environment)], check=True)
        python = environment / "bin" / "python"
        install(python, arguments.wheel.resolve(), arguments.torch, arguments.lend)
        bare = {"PATH": str(python.parent), "HOME": folder, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
        demo = ["vdiff-fast", "demo", "--steps", "20", "--out", f"{folder}/out"]
        for command in ([str(python), "-c", PROGRAM], ["vdiff-fast", "doctor"], demo):
            program = command[0] if os.path.isabs(command[0]) else str(python.with_name(command[0]))
            print("$", *command[:2], flush=True)
            subprocess.run([program, *command[1:]], check=True, env=bare, cwd=folder)


if __name__ == "__main__":
    main()
