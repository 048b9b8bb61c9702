#!/usr/bin/env python3
"""Registers, spills and static shared memory of every GPU kernel, as ptxas reports them: the table of docs/performance.md.

    bench/kernel_resources.py [--arch 90a] [--all]        --all: every instantiation; without it the largest of each kernel

Needs nvcc and c++filt; no GPU."""
import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


def report(source: Path, arch: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([NVCC, "-std=c++20", "-O3", f"-I{ROOT}", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin",
                               "-Xptxas", "-v", "-o", f"{folder}/kernels.cubin", str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{source}: {done.stderr}")
    return subprocess.run(["c++filt"], input=done.stderr, capture_output=True, text=True).stdout


def short(name: str) -> str:
    """The kernel's own name and its template's values."""
    name = re.sub(r"^void |lamina::(?:ops::)?(?:cuda::)?|\(anonymous namespace\)::|std::|\((?:bool|int)\)", "", name)
    name = re.sub(r"\(.*$", "", name)
    return name.replace("__nv_bfloat16", "bf16").replace("float", "fp32")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="90a")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    print("| file | kernel | instantiations | registers | of these that spill (bytes stored at most) |\n|---|---|---|---|---|")
    for source in sorted(ROOT.glob("core/ops/*/*.cu")):
        kernel, spills = "", 0
        found_here: dict[str, list[tuple[int, int]]] = {}
        for line in report(source, options.arch).splitlines():
            if found := re.search(r"Compiling entry function '(.*)' for", line):
                kernel = short(found[1])
            elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
                spills = int(found[1])
            elif found := re.search(r"Used (\d+) registers", line):
                name = kernel if options.all else kernel.split("<")[0]
                found_here.setdefault(name, []).append((int(found[1]), spills))
        for name, each in found_here.items():
            registers, spilled = [r for r, _ in each], [s for _, s in each if s > 0]
            span = f"{min(registers)}-{max(registers)}" if min(registers) < max(registers) else str(registers[0])
            print(f"| {source.parent.name}/{source.name} | `{name}` | {len(each)} | {span} | "
                  f"{f'{len(spilled)} ({max(spilled)})' if spilled else 'none'} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
