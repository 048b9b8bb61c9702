#!/usr/bin/env python3
"""Trains under a real Slurm, a private one on this machine, through launch/slurm.sbatch: preempted by an urgent job, warned before its
time limit, ended by train.max_minutes, on one node and on two, each time it saves, is requeued, goes on and ends with the bits of an undisturbed run;
cancelled, it saves and stays away; and a sweep's runs as jobs.

    slurm.py LAMINA          as root; needs slurm-wlm and Open MPI
"""
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from private_slurm import Slurm
from resume_test import assert_same_bits, checkpoints
from training import Lamina, metrics

STEPS, CORES = 120, 4
EXPERIMENT = {"train": {"num_steps": STEPS, "global_batch_size": 48, "micro_batch_size": 2, "optimizer": {"lr": 1e-3}},
              "parallel": {"pipeline": 2}, "checkpoint": {"interval": 0, "keep": 2}, "debug": {"dump_step": STEPS}}


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"slurm.py: {message}")


class Job:
    def __init__(self, slurm: Slurm, lamina: Lamina, name: str, options: tuple[str, ...] = (), overrides: tuple[str, ...] = (),
                 environment: dict[str, str] | None = None):
        self.binary = lamina.binary
        self.slurm, self.run, self.output = slurm, lamina.folder / name, lamina.folder / f"{name}.out"
        config = lamina.write_config(name, EXPERIMENT)
        told = slurm.run("sbatch", "--ntasks=2", "--time=20", f"--job-name={name}", f"--output={self.output}", *options,
                         str(ROOT / "launch" / "slurm.sbatch"), str(config), *overrides, cwd=ROOT,
                         env={**lamina.environment, "LAMINA_BINARY": lamina.binary, **(environment or {})})
        self.id = re.search(r"Submitted batch job (\d+)", told)[1]
        print(f"{name}: {told.strip()}", flush=True)

    def log(self) -> str:
        path = self.run / "log.txt"
        return path.read_text() if path.exists() else ""

    def told(self) -> str:
        return (self.output.read_text() if self.output.exists() else "") + self.slurm.run("scontrol", "show", "job", self.id, fails=True)

    def field(self, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", self.slurm.run("scontrol", "show", "job", self.id))
        return found[1] if found else ""

    def steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def ranks(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "exe") == self.binary and str(self.run) in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:
                pass   # ended meanwhile
        return found

    def wait_for(self, condition, what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            expect(time.monotonic() < deadline, f"no {what} within {seconds} s:\n{self.told()}")
            expect(self.field("JobState") not in ("FAILED", "NODE_FAIL", "TIMEOUT"), f"the job failed before {what}:\n{self.told()}")
            time.sleep(0.1)

    def finish(self, restarts: int, reason: str, reference: Path) -> None:
        self.wait_for(lambda: self.field("JobState") == "COMPLETED", "end", 240)
        expect(int(self.field("Restarts")) >= restarts, f"{self.field('Restarts')} restarts, expected {restarts}:\n{self.told()}")
        stops = re.findall(r"stopping at step (\d+) of \d+: (\S+)", self.log())
        expect(len(stops) >= restarts and all(re.fullmatch(reason, why) for _, why in stops), f"stops {stops}, expected {reason}:\n{self.log()}")
        for restart in range(restarts + 1):
            expect(f"Slurm job {self.id}, restart {restart}" in self.log(), f"log.txt does not tell of restart {restart}:\n{self.log()}")
        expect([row["step"] for row in metrics(self.run)] == list(range(1, STEPS + 1)), "steps in metrics.jsonl are missing or twice")
        assert_same_bits(reference, self.run / f"dump-step-{STEPS}.h5")
        print("\n".join("    " + line for line in self.output.read_text().splitlines()
                        if re.search(r"slurm\.sbatch|slurmstepd|srun:|mpirun|stopp|resumed|Slurm job|done|: node|cores", line)), flush=True)
        print(f"    stopped {', '.join(f'at step {step} by {why}' for step, why in stops)}; Restarts={self.field('Restarts')}; the same bits",
              flush=True)


def preempt(slurm: Slurm, lamina: Lamina, reference: Path, launcher: str) -> None:
    """Slurm's SIGTERM comes to the script, the ranks, mpirun and its daemons alike."""
    nodes = len(slurm.nodes)
    job = Job(slurm, lamina, f"preempted-{launcher}-{nodes}", (f"--nodes={nodes}", f"--ntasks-per-node={2 // nodes}"),
              environment={"LAMINA_LAUNCHER": launcher})
    job.wait_for(lambda: job.steps() >= 8, "step 8")
    print(slurm.run("sbatch", f"--nodes={nodes}", f"--ntasks-per-node={CORES}", "--time=5", "--partition=urgent", f"--output={lamina.folder}/urgent.out", "--job-name=urgent",
                    "--wrap", "sleep 3").strip(), flush=True)
    shown = set()

    def requeued() -> bool:
        queue = slurm.run("squeue", "--noheader", "--format=%j %P %T %r").strip()
        if queue not in shown:
            shown.add(queue)
            print("    squeue: " + " | ".join(queue.splitlines()), flush=True)
        return int(job.field("Restarts")) >= 1 and job.field("JobState") == "RUNNING"

    job.wait_for(requeued, "requeue")
    job.finish(1, "SIGTERM|SIGUSR1", reference)   # Slurm's own or the script's, whichever comes first


def time_limit(slurm: Slurm, lamina: Lamina, reference: Path) -> None:
    # 115 s before the end of two minutes: the warning comes when Slurm looks next, every half a minute. The ranks stand still meanwhile.
    job = Job(slurm, lamina, "limited", ("--time=2", "--signal=B:USR1@115"))
    job.wait_for(lambda: job.steps() >= 8, "step 8")
    ranks = job.ranks()
    expect(len(ranks) == 2, f"processes of the ranks: {ranks}")
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    job.wait_for(lambda: "slurm.sbatch: SIGUSR1" in job.output.read_text(), "warning before the time limit")
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    job.wait_for(lambda: int(job.field("Restarts")) >= 1, "requeue")
    slurm.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=20")   # or it would go round in small pieces for long
    job.finish(1, "SIGUSR1", reference)


def max_minutes(slurm: Slurm, lamina: Lamina, reference: Path) -> None:
    job = Job(slurm, lamina, "max-minutes", overrides=("train.max_minutes=0.04",))
    job.finish(1, "train.max_minutes", reference)


def cancel(slurm: Slurm, lamina: Lamina) -> None:
    job = Job(slurm, lamina, "cancelled")
    job.wait_for(lambda: job.steps() >= 8, "step 8")
    slurm.run("scancel", job.id)
    deadline = time.monotonic() + 60
    while slurm.run("squeue", "--noheader", f"--jobs={job.id}", fails=True).strip():
        expect(time.monotonic() < deadline, f"scancel does not end it:\n{job.told()}")
        time.sleep(0.2)
    expect(job.field("JobState") == "CANCELLED", f"scancel: {job.told()}")
    steps = job.steps()
    expect(bool(checkpoints(job.run)) and checkpoints(job.run)[-1].name == f"step-{steps:08d}", f"nothing saved at scancel:\n{job.told()}")
    print(f"scancel: saved at step {steps}, and not requeued", flush=True)


def mistake(slurm: Slurm, lamina: Lamina) -> None:
    job = Job(slurm, lamina, "mistaken", overrides=("model.hiden_size=3",))
    deadline = time.monotonic() + 60
    while job.field("JobState") in ("PENDING", "RUNNING", "COMPLETING"):
        expect(time.monotonic() < deadline, f"a mistake does not end it:\n{job.told()}")
        time.sleep(0.2)
    expect(job.field("JobState") == "FAILED" and job.field("Restarts") == "0" and "did you mean hidden_size" in job.told(), job.told())
    print("a mistake in the configuration fails the job, once", flush=True)


def sweep(slurm: Slurm, lamina: Lamina) -> None:
    """A job for each run, none twice, and nothing left to submit once they are done."""
    base = lamina.write_config("base", {**EXPERIMENT, "debug": {}})
    file = lamina.folder / "sweep.yaml"
    file.write_text(f"name: study\nbase: {base}\noutput_dir: {lamina.folder}/study\nranks: 2\n"
                    "axes: {x: {slow: {train.max_minutes: 0.04}, fast: {}}}\nseeds: [1, 2]\n")

    def run(*arguments: str) -> str:
        return slurm.run(lamina.binary, "sweep", str(file), *arguments, cwd=ROOT, env=lamina.environment)

    submit = ("--slurm", str(ROOT / "launch" / "slurm.sbatch"), "--slurm-options", "--time=20 --partition=normal")
    expect("submitted 4 runs" in run(*submit), "sweep --slurm")
    again = run(*submit)
    expect("submitted 0 runs" in again and "Slurm: " in again, f"queued runs were submitted again:\n{again}")
    print(again, flush=True)
    deadline = time.monotonic() + 300
    while "4 done" not in run("--status"):
        expect(time.monotonic() < deadline, run("--status"))
        time.sleep(1)
    expect("submitted 0 runs" in run(*submit), "done runs were submitted again")
    expect("stopping at step" in (lamina.folder / "study" / "slow-s1" / "log.txt").read_text(), "no run was requeued")
    print(run("--status"), flush=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slurm").mkdir()
        lamina = Lamina(sys.argv[1], folder)
        lamina.environment["OMP_NUM_THREADS"] = "1"
        lamina.prepare()
        reference = lamina.train("undisturbed", EXPERIMENT, 2) / f"dump-step-{STEPS}.h5"
        with Slurm(folder / "slurm", CORES) as slurm:
            print(slurm.run("sinfo", "--version").strip(), slurm.run("sinfo"), sep="\n", flush=True)
            preempt(slurm, lamina, reference, "srun")
            preempt(slurm, lamina, reference, "mpirun")
            time_limit(slurm, lamina, reference)
            max_minutes(slurm, lamina, reference)
            cancel(slurm, lamina)
            mistake(slurm, lamina)
            sweep(slurm, lamina)
            print("    " + (folder / "slurm" / "completed").read_text().replace("\n", "\n    "))
        (folder / "two-nodes").mkdir()
        with Slurm(folder / "two-nodes", CORES, num_nodes=2) as slurm:
            preempt(slurm, lamina, reference, "mpirun")   # under srun the ranks fail where both nodes are one host
    print("slurm.py: passed")


if __name__ == "__main__":
    main()
