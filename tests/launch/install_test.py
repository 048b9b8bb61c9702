#!/usr/bin/env python3
"""`cmake --install` makes a tree that works where it is moved to: the program, the experiments, and launch scripts that find it.

    install_test.py LAMINA CMAKE BUILD_FOLDER SOURCE_FOLDER
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from resume_test import checkpoints, expect
from training import Lamina

TWO_STEPS = {"train": {"num_steps": 2, "global_batch_size": 4, "micro_batch_size": 2}, "parallel": {"data": 0}}


def install(cmake: str, build: Path, folder: Path) -> Path:
    """Installed in one place, moved to another."""
    done = subprocess.run([cmake, "--install", str(build), "--prefix", str(folder / "here")], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"cmake --install: {done.stdout}{done.stderr}")
    tree = folder / "moved" / "to the left"
    tree.parent.mkdir()
    shutil.move(folder / "here", tree)
    return tree


def holds_what_it_should(tree: Path, source: Path, build: Path) -> None:
    for kind in ("configs", "docs"):
        expected = {file.relative_to(source / kind): file.read_bytes() for file in (source / kind).rglob("*")
                    if file.is_file() and (kind == "docs" or file.suffix == ".yaml")}
        found_in = tree / ("share/lamina/configs" if kind == "configs" else "share/doc/lamina")
        found = {file.relative_to(found_in): file.read_bytes() for file in found_in.rglob("*") if file.is_file()}
        expect(found == expected and expected, f"{kind}: found {sorted(found)}, expected {sorted(expected)}")
    programs = {str(file.relative_to(tree)) for file in tree.rglob("*") if os.access(file, os.X_OK) and file.is_file()}
    expected = {"bin/lamina", "bin/lamina-mpirun", "share/lamina/launch/mpirun.sh", "share/lamina/launch/read_parquet.py",
                "share/lamina/launch/convert_tasks.py", "share/lamina/launch/wandb_offline.py"}
    expect(programs == expected, f"programs {programs}, expected {expected}")
    pages = {path.name for path in (tree / "share/man/man1").iterdir()}
    expect({"lamina.1", "lamina-train.1", "lamina-prepare.1"} <= pages, f"manual pages {pages}")
    for file in ("bash-completion/completions/lamina", "zsh/site-functions/_lamina", "fish/vendor_completions.d/lamina.fish"):
        expect("train.optimizer.lr" in (tree / "share" / file).read_text(), f"{file} completes no key")
    for file in tree.rglob("*"):
        if file.is_file() and file.name != "lamina":
            text = file.read_bytes()
            expect(str(build).encode() not in text and b"/here" not in text, f"{file} names the folder that it was built or installed in")


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PRTE_", "LAMINA_", "SLURM_"))}
    return subprocess.run(words, cwd=folder, env={**bare, "OMP_NUM_THREADS": "1", **environment}, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=120, check=False)


def works(tree: Path, lamina: Lamina) -> None:
    folder, path = lamina.folder, f"{tree}/bin:{os.environ['PATH']}"
    version, built = run(["lamina", "--version"], folder, PATH=path), run([lamina.binary, "--version"], folder)
    expect(version.returncode == 0 and version.stdout == built.stdout, f"--version: {version}, expected {built.stdout}")
    done = run(["lamina", "plan", f"{tree}/share/lamina/configs/kimi_linear_48b.yaml", "--ranks", "32"], folder, PATH=path)
    expect(done.returncode == 0, f"plan of an installed experiment: {done.stdout}{done.stderr}")
    config = lamina.write_config("by_name", TWO_STEPS)
    done = run(["lamina-mpirun", "--ranks-per-node", "2", config.name], folder, PATH=path)
    expect(done.returncode == 0 and checkpoints(folder / "by_name")[-1].name == "step-00000002",
           f"bin/lamina-mpirun: {done.returncode}: {done.stdout}{done.stderr}")


def works_as_a_job(tree: Path, lamina: Lamina) -> None:
    """Slurm runs a copy of the batch script: it knows its place from the program on the PATH only."""
    copy = lamina.folder / "spool" / "slurm_script"
    copy.parent.mkdir()
    shutil.copy(tree / "share/lamina/launch/slurm.sbatch", copy)
    config = lamina.write_config("as_a_job", TWO_STEPS)
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(lamina.folder), "LAMINA_LAUNCHER": "mpirun"}
    done = run(["bash", str(copy), config.name], lamina.folder, PATH=f"{tree}/bin:{os.environ['PATH']}", **job)
    expect(done.returncode == 0 and checkpoints(lamina.folder / "as_a_job")[-1].name == "step-00000002",
           f"slurm.sbatch: {done.returncode}: {done.stdout}{done.stderr}")
    # The test's own PATH may hold a lamina.
    done = run(["bash", str(copy), config.name], lamina.folder, PATH="/usr/bin:/bin", **job)
    expect(done.returncode != 0 and re.search("build/lamina is not there .* put lamina on the PATH", done.stdout + done.stderr) is not None,
           f"slurm.sbatch without a program: {done}")


def main() -> None:
    binary, cmake, build, source = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = install(cmake, Path(build), folder)
        holds_what_it_should(tree, Path(source), Path(build))
        (folder / "work").mkdir()
        lamina = Lamina(binary, folder / "work")
        lamina.prepare()
        works(tree, lamina)
        works_as_a_job(tree, lamina)
    print("install_test.py: passed")


if __name__ == "__main__":
    main()
