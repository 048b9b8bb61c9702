#!/usr/bin/env python3
"""Bad input: each gives a reason of one line, an exit other than zero, and leaves nothing half-written.

    bad_input_test.py LAMINA
"""
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import h5py

from resume_test import descendants
from training import Lamina

ERROR_LINE = re.compile(r"error", re.IGNORECASE)
CRASH = re.compile(r"terminate called|what\(\):|Segmentation|core dumped|Sanitizer|HDF5-DIAG|Assertion")


@dataclass
class Case:
    name: str
    reason: str                                   # regular expression; what the message must say
    changes: dict = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    damage: Callable[["Lamina"], None] | None = None
    ranks: int = 1
    starts: bool = False                          # the run folder may be there: the fault shows while running


def token_files(lamina: Lamina) -> list[Path]:
    return sorted(path for path in lamina.tokens.rglob("*.h5") if path.is_file())


def truncate_tokens(lamina: Lamina) -> None:
    for path in token_files(lamina):
        os.truncate(path, path.stat().st_size // 2)


def remove_tokens(lamina: Lamina) -> None:
    for path in token_files(lamina):
        path.unlink()


def garble_tokens(lamina: Lamina) -> None:
    for path in token_files(lamina):
        path.write_bytes(b"no HDF5 file " * 100)


def token_dataset(file: h5py.File) -> h5py.Dataset:
    found = []
    file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return max(found, key=lambda item: item.size)


def raise_token_ids(lamina: Lamina) -> None:
    for path in token_files(lamina):
        with h5py.File(path, "r+") as file:
            data = token_dataset(file)
            data[data.size // 3::997] = 9999


BAD = [
    Case("unknown key", r"bad\.yaml:\d+: .*surprise", {"train": {"surprise": 1}}),
    Case("misspelt key", r"bad\.yaml:\d+: .*hiden_size.*hidden_size", {"model": {"hiden_size": 8}}),
    Case("unknown section", r"bad\.yaml:\d+: .*modle", {"modle": {"hidden_size": 8}}),
    Case("wrong type", r"bad\.yaml:\d+: .*hidden_size.*wide", {"model": {"hidden_size": "wide"}}),
    Case("list for a number", r"bad\.yaml:\d+: .*num_steps", {"train": {"num_steps": [1, 2]}}),
    Case("fraction for a count", r"bad\.yaml:\d+: .*num_hidden_layers", {"model": {"num_hidden_layers": 2.5}}),
    Case("unknown choice", r"bad\.yaml:\d+: .*block_attnres", {"model": {"residual": "block_atnres"}}),
    Case("missing key", r"hidden_size", {"model": {"hidden_size": None}}),
    Case("zero size", r"intermediate_size", {"model": {"intermediate_size": 0}}),
    Case("negative learning rate", r"train\.optimizer\.lr", {"train": {"optimizer": {"lr": -1.0}}}),
    Case("unknown override", r"train\.optimiser", overrides=("train.optimiser.lr=1",)),
    Case("batch does not divide", r"global_batch_size", {"train": {"global_batch_size": 5}}),
    Case("batch does not divide by the ranks", r"global_batch_size", {"train": {"global_batch_size": 4}}, ranks=3),
    Case("other number of ranks", r"parallel\.data|ranks", {"parallel": {"data": 3}}, ranks=2),
    Case("no such token folder", r"nowhere", {"data": {"train": [{"path": "/nowhere/tokens", "weight": 1.0}]}}),
    Case("token files removed", r"tokens", damage=remove_tokens),
    Case("token files truncated", r"tokens.*", damage=truncate_tokens),
    Case("token files garbled", r"tokens.*", damage=garble_tokens),
    Case("vocabulary smaller than the tokenizer's", r"vocab_size", {"model": {"vocab_size": 100}}),
    Case("token id beyond the vocabulary", r"9999|vocab|checksum|token", damage=raise_token_ids, starts=True),
    Case("more validation than data", r"validation", {"data": {"validation": {"path": "TOKENS", "num_sequences": 10**9}}}),
    Case("loss not finite", r"finite|NaN|nan|inf", {"train": {"num_steps": 50, "grad_clip": 0.0, "optimizer": {"lr": 1e30, "eps": 1e-8}},
                                                "checkpoint": {"interval": 1}}, starts=True),
]


class Table:
    def __init__(self, binary: str):
        self.binary, self.failed, self.passed = binary, [], 0

    def report(self, name: str, faults: list[str], output: str) -> None:
        if faults:
            self.failed.append(name)
            print(f"{name}: FAILED: {'; '.join(faults)}\n{output}", flush=True)
        else:
            self.passed += 1
            print(f"{name}: ok", flush=True)

    def fresh(self, folder: str) -> Lamina:
        lamina = Lamina(self.binary, Path(folder))
        lamina.prepare()
        return lamina

    def check(self, case: Case) -> None:
        with tempfile.TemporaryDirectory() as folder:
            lamina = self.fresh(folder)
            changes = case.changes
            if changes.get("data", {}).get("validation", {}).get("path") == "TOKENS":
                changes["data"]["validation"]["path"] = str(lamina.tokens)
            config = lamina.write_config("bad", changes)
            if case.damage:
                case.damage(lamina)
            try:
                done = lamina.run(["train", str(config), *case.overrides], case.ranks, timeout=60)
            except subprocess.TimeoutExpired:
                self.report(case.name, ["still running after 60 seconds"], "")
                return
            faults = judge(done.returncode, done.stderr, case.reason, case.ranks)
            faults += half_written(lamina.folder / "bad", case.starts)
            self.report(case.name, faults, done.stdout + done.stderr)


def judge(status: int, stderr: str, reason: str, ranks: int = 1) -> list[str]:
    faults = []
    if status == 0:
        faults.append("exit status 0")
    if status < 0:
        faults.append(f"died of signal {-status}")
    if CRASH.search(stderr):
        faults.append("crash report in the output")
    if not any(re.search(reason, line) for line in stderr.splitlines()):
        faults.append(f"no line says /{reason}/")
    errors = [line for line in stderr.splitlines() if ERROR_LINE.search(line)]
    if ranks == 1 and len(errors) != 1:
        faults.append(f"{len(errors)} error lines, expected one")
    return faults


def half_written(run: Path, starts: bool) -> list[str]:
    if not run.exists():
        return []
    files = [path.relative_to(run).as_posix() for path in run.rglob("*")]
    if not starts and files:
        return [f"a refused run left {files}"]
    return [f"half-written: {name}" for name in files
            if ".tmp" in name or (re.search(r"step-\d+$", name) and not (run / name / "COMMITTED").exists())]


def run_folder_is_a_file(table: Table) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lamina = table.fresh(folder)
        (lamina.folder / "bad").write_text("mine\n")
        done = lamina.run(["train", str(lamina.write_config("bad", {}))])
        faults = judge(done.returncode, done.stderr, r"/bad")
        if (lamina.folder / "bad").read_text() != "mine\n":
            faults.append("the file in its place was touched")
        table.report("run folder is a file", faults, done.stderr)


def disk_full(table: Table) -> None:
    """A limit on the size of files stands for a full disk: writes fail with an error in the same places. The checkpoint's
    shard is several times the limit, the log and the metrics are below it."""
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    # MPI keeps files of its own for ranks of one machine: without shared memory it needs none of that size.
    no_files = {"OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo", "PMIX_MCA_gds": "hash", "OMPI_MCA_pml": "ob1"}

    changes = {"train": {"num_steps": 4}, "checkpoint": {"interval": 2}}
    for ranks in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            lamina = table.fresh(folder)
            lamina.environment.update(no_files)
            done = lamina.run(["train", str(lamina.write_config("bad", changes))], ranks, preexec_fn=limit)
            faults = judge(done.returncode, done.stderr, r"checkpoints/", ranks)
            faults += half_written(lamina.folder / "bad", starts=True)
            table.report(f"disk full while a checkpoint is written, {ranks} rank(s)", faults, done.stderr)
            if ranks == 1:   # nothing in the way of trying again
                again = lamina.run(["train", str(lamina.folder / "bad.yaml")])
                table.report("the same run with room on the disk", [] if again.returncode == 0 else ["failed"], again.stderr)
    changes["debug"] = {"dump_step": 1}
    with tempfile.TemporaryDirectory() as folder:
        lamina = table.fresh(folder)
        done = lamina.run(["train", str(lamina.write_config("bad", changes))], preexec_fn=limit)
        faults = judge(done.returncode, done.stderr, r"dump-step-1\.h5")
        if any(".h5" in path.name for path in (lamina.folder / "bad").glob("*")):
            faults.append("a half-written dump is left")
        table.report("disk full while a dump is written", faults, done.stderr)


def rank_dies(table: Table) -> None:
    """kill -9 of one of three ranks: the others don't wait for it for ever, and the output names it."""
    with tempfile.TemporaryDirectory() as folder:
        lamina = table.fresh(folder)
        config = lamina.write_config("bad", {"train": {"num_steps": 10**6, "global_batch_size": 6, "micro_batch_size": 1,
                                                       "optimizer": {"lr": 1e-4}}})
        output = lamina.folder / "output.txt"
        with output.open("w") as sink:
            process = subprocess.Popen(lamina.command(["train", str(config)], 3), env=lamina.environment,
                                       stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
        rows = lamina.folder / "bad" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and not (rows.exists() and rows.stat().st_size > 0):
            time.sleep(0.05)
        ranks = {}
        for pid in descendants(process.pid):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            mine = [item for item in environment if item.startswith(b"OMPI_COMM_WORLD_RANK=")]
            if mine and Path(f"/proc/{pid}/exe").resolve() == Path(lamina.binary):
                ranks[int(mine[0].split(b"=")[1])] = pid
        faults = [] if sorted(ranks) == [0, 1, 2] else [f"found ranks {sorted(ranks)}, expected 0, 1, 2"]
        if not faults:
            os.kill(ranks[1], signal.SIGKILL)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                faults.append("mpirun is still running after 20 seconds")
            alive = [rank for rank, pid in ranks.items() if Path(f"/proc/{pid}/exe").exists()]
            if alive:
                faults.append(f"ranks {alive} are still running")
        for pid in [process.pid, *ranks.values()]:
            if Path(f"/proc/{pid}/exe").exists():
                os.kill(pid, signal.SIGKILL)
        process.wait()
        if process.returncode == 0:
            faults.append("exit status 0")
        if not re.search(r"rank 1\b", output.read_text()):
            faults.append("the output does not name rank 1")
        table.report("one of three ranks is killed", faults, output.read_text()[-2000:])


def told_once(table: Table) -> None:
    """What all ranks find, before MPI is up and after, one of them tells."""
    with tempfile.TemporaryDirectory() as folder:
        lamina = table.fresh(folder)
        config = lamina.write_config("once", {"train": {"global_batch_size": 6, "num_steps": 2}})
        for name, override in (("before MPI is up", "train.num_stepz=2"), ("rank 0 only", "run.output_dir=/proc/none"),
                               ("every rank", "data.train=[{path: nowhere}]")):
            done = lamina.run(["train", str(config), override], ranks=3)
            lines = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"\bE\b.*error: ", line)]
            faults = [] if done.returncode != 0 else ["exit status 0"]
            faults += [] if len(lines) == 1 else [f"{len(lines)} ranks tell it"]
            table.report(f"three ranks, a mistake is told once: {name}", faults, "\n".join(lines))


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    table = Table(sys.argv[1])
    for case in BAD:
        table.check(case)
    run_folder_is_a_file(table)
    disk_full(table)
    rank_dies(table)
    told_once(table)
    print(f"{table.passed} kinds of bad input refused well, {len(table.failed)} not: {', '.join(table.failed) or 'none'}")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
