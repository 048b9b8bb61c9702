#!/usr/bin/env python3
"""Trains on three hosts, which are network namespaces of this machine with addresses and an sshd of their own, through
launch/mpirun.sh: the same bits as on one machine; stopped, resumed; a host that is cut off ends the job and is named; what is wrong
with a host is told before the start.

    hosts.py LAMINA          as root; needs iproute2, util-linux, openssh-server and Open MPI
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from namespaces import Hosts
from resume_test import assert_same_bits, signal_all
from training import Lamina, metrics

MPIRUN = Path(__file__).resolve().parent.parent.parent / "launch" / "mpirun.sh"
NAMES = ["node-a", "node-b", "node-c"]
STEPS = 40
EXPERIMENT = {"model": {"num_hidden_layers": 6},
              "train": {"num_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 1, "optimizer": {"lr": 3e-3}},
              "parallel": {"pipeline": 3, "data": 2, "schedule": "1f1b"},
              "checkpoint": {"interval": 5, "keep": 3}, "debug": {"dump_step": STEPS}}
MARGIN = 15.0   # seconds beyond the limits: two loaded cores carry all hosts


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"hosts.py: {message}")


class Job:
    """launch/mpirun.sh on the first host, with its output as it comes."""

    def __init__(self, hosts: Hosts, lamina: Lamina, arguments: list[str], config: Path, overrides: tuple[str, ...] = ()):
        words = [str(MPIRUN), "--binary", lamina.binary, "--ssh", hosts.ssh, "--ranks-per-node", "2", "--interface",
                 "10.77.0.0/24", "--env", "OMP_NUM_THREADS=1", *arguments, str(config), *overrides]
        quoted = " ".join("'" + word + "'" for word in words)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PRTE_"))}
        self.process = subprocess.Popen(hosts.inside(NAMES[0], f"cd {lamina.folder} && exec {quoted}"), env=environment, text=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.begin, self.lines = time.monotonic(), []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def told_since(self, moment: float) -> str:
        return "\n".join(f"    {at - moment:5.1f} s  {line}" for at, line in list(self.lines) if at >= moment)

    def wait_for(self, condition, what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            expect(self.process.poll() is None, f"the job ended with {self.process.poll()} before {what}:\n{self.output()}")
            expect(time.monotonic() < deadline, f"no {what} within {seconds} s:\n{self.output()}")
            time.sleep(0.02)

    def end(self, seconds: float) -> int:
        try:
            status = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"hosts.py: still running after {seconds} s:\n{self.output()}") from None
        self.reader.join(timeout=10)
        return status


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def nothing_left(hosts: Hosts, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        left = {f"{program} on {name}": pids for name in NAMES for program in ("lamina", "orted", "prted", "mpirun", "prterun", "mpirun.sh")
                if (pids := hosts.processes(name, program))}
        if not left:
            return
        expect(time.monotonic() < deadline, f"processes are left behind: {left}")
        time.sleep(0.1)


def stop_and_resume(hosts: Hosts, lamina: Lamina, reference: Path) -> None:
    config, run = lamina.write_config("stopped", EXPERIMENT), lamina.folder / "stopped"
    arguments = ["--hosts", ",".join(NAMES)]
    job = Job(hosts, lamina, arguments, config)
    job.wait_for(lambda: steps_done(run) >= 7, "step 7")
    signal_all(job.process.pid, signal.SIGTERM)   # as a service manager does: mpirun and each ssh get it, too
    status = job.end(60)
    expect(status == 75, f"SIGTERM: exit status {status}, expected 75:\n{job.output()}")
    reached = steps_done(run)
    print(f"SIGTERM to every process on {NAMES[0]}: 75 after step {reached}", flush=True)
    saved = run / "checkpoints" / f"step-{reached:08d}" / "COMMITTED"
    expect(saved.exists(), f"no checkpoint of step {reached}:\n{job.output()}")
    for rank in range(6):
        expect(f"rank {rank}: {NAMES[rank // 2]}, cores " in job.output(), f"no line for rank {rank} in the map:\n{job.output()}")
    print("\n".join("    " + line for line in job.output().splitlines() if "cores" in line), flush=True)
    nothing_left(hosts, 10)
    job = Job(hosts, lamina, arguments, config)
    status = job.end(120)
    expect(status == 0, f"resumed: exit status {status}:\n{job.output()}")
    expect(f"resumed from {run}/checkpoints/step-{reached:08d} at step {reached}" in job.output(), f"not resumed:\n{job.output()}")
    expect([row["step"] for row in metrics(run)] == list(range(1, STEPS + 1)), "steps are missing in metrics.jsonl")
    assert_same_bits(reference, run / f"dump-step-{STEPS}.h5")
    print(f"resumed at step {reached}; step {STEPS} has the bits of one machine", flush=True)


def cut_off(hosts: Hosts, lamina: Lamina, victim: str, timeout: float, limit: float) -> None:
    """The ranks' own limit is below or above the one on hosts: the lower one tells first, and the job ends either way."""
    name = f"cut-{timeout:g}"
    config, run = lamina.write_config(name, {**EXPERIMENT, "train": {**EXPERIMENT["train"], "num_steps": 1_000_000}, "debug": {}}), lamina.folder / name
    job = Job(hosts, lamina, ["--hosts", ",".join(NAMES), "--host-timeout", f"{limit:g}"], config, (f"parallel.timeout_seconds={timeout:g}",))
    job.wait_for(lambda: steps_done(run) >= 3, "step 3")
    hosts.cut_off(victim)
    moment = time.monotonic()
    status = job.end(limit + 5 + MARGIN)
    seconds = time.monotonic() - moment
    print(f"{victim} cut off, limits {timeout:g} s (ranks) and {limit:g} s (hosts): the job ended with {status} after {seconds:.1f} s:\n"
          f"{job.told_since(moment)}", flush=True)
    expect(status not in (0, 75), f"exit status {status}")
    first = 2 * NAMES.index(victim)
    log = (run / "log.txt").read_text()
    expected = [f"host {victim} (ranks {first}-{first + 1}) does not answer any more"]
    if timeout < limit:
        # Who waits for a rank that waits itself names that one: which rank is the first to tell is chance.
        expected += ["aborted the job: error: rank ", "did not arrive from ranks: ", " (node-"]
    for words in expected:
        expect(words in job.output(), f"not on stderr: {words}")
        expect(words in log, f"not in log.txt: {words}\n{log}")
    # The cut-off host ends its ranks by itself, with nobody to tell it.
    nothing_left(hosts, limit + MARGIN)
    print(f"nothing is left, also on {victim}, {time.monotonic() - moment:.1f} s after the cut", flush=True)
    hosts.connect(victim)


def restart(hosts: Hosts, lamina: Lamina, reference: Path, victim: str) -> None:
    config, run = lamina.write_config("restarted", EXPERIMENT), lamina.folder / "restarted"
    job = Job(hosts, lamina, ["--hosts", ",".join(NAMES), "--host-timeout", "8", "--restart", "9", "--restart-delay", "2"], config)
    job.wait_for(lambda: steps_done(run) >= 8, "step 8")
    hosts.cut_off(victim)
    job.wait_for(lambda: "starting again" in job.output(), "restart")
    hosts.connect(victim)
    status = job.end(150)
    expect(status == 0, f"--restart: exit status {status}:\n{job.output()}")
    expect("by mpirun.sh" in (run / "log.txt").read_text(), "log.txt does not tell of the restart")
    assert_same_bits(reference, run / f"dump-step-{STEPS}.h5")
    print(f"--restart: {victim} was gone and came back; the same bits in the end", flush=True)


def refusals(hosts: Hosts, lamina: Lamina) -> None:
    config = lamina.write_config("refused", EXPERIMENT)
    cases = [("a host that does not exist", ["--hosts", "node-a,node-b,node-x"], (), "node-x: not reachable"),
             ("a folder that is not shared", ["--hosts", "node-a,node-b,node-c"], (f"run.output_dir={lamina.folder}/local/run",),
              "node-c: run.output_dir"),
             ("a mistake in the configuration", ["--hosts", "node-a,node-b,node-c"], ("parallel.pipeline=5",), "parallel"),
             ("a host twice", ["--hosts", "node-a,node-a"], (), "node-a is there twice")]
    for what, arguments, overrides, words in cases:
        job = Job(hosts, lamina, arguments, config, overrides)
        status = job.end(60)
        expect(status == 1 and words in job.output(), f"{what}: {status}, expected 1 and '{words}':\n{job.output()}")
        print(f"{what}: {next(line for line in job.output().splitlines() if words in line)}", flush=True)
    other = lamina.folder / "other" / "lamina"   # another program under the same name on one host
    other.parent.mkdir(exist_ok=True)
    shutil.copy(lamina.binary, other)
    where = lamina.folder / "different"
    where.write_text("#!/bin/sh\necho lamina 0.0.1\n")
    where.chmod(0o755)
    pid = hosts.processes("node-b", "sshd")[0]
    subprocess.run(["nsenter", "--mount", "-t", str(pid), "mount", "--bind", str(where), str(other)], check=True)
    kept, lamina.binary = lamina.binary, str(other)
    job = Job(hosts, lamina, ["--hosts", "node-a,node-b"], config, ("parallel.pipeline=2",))
    lamina.binary = kept
    status = job.end(60)
    expect(status == 1 and "node-b: " in job.output() and "says 'lamina 0.0.1'" in job.output(), f"another program: {status}:\n{job.output()}")
    print(f"another program: {job.output().splitlines()[-1]}", flush=True)
    expect(not (lamina.folder / "refused").exists(), "a refused start left a run folder behind")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ssh").mkdir()
        (folder / "local").mkdir()
        lamina = Lamina(sys.argv[1], folder)
        lamina.prepare()
        reference = lamina.train("one-machine", EXPERIMENT, 6) / f"dump-step-{STEPS}.h5"
        # A folder of node-c's own, where the others see another.
        with Hosts(NAMES, folder / "ssh", {"node-c": f"mount -t tmpfs none {folder}/local"}) as hosts:
            refusals(hosts, lamina)
            stop_and_resume(hosts, lamina, reference)
            cut_off(hosts, lamina, "node-c", timeout=6, limit=16)
            cut_off(hosts, lamina, "node-b", timeout=600, limit=12)
            restart(hosts, lamina, reference, "node-b")
    print("hosts.py: passed")


if __name__ == "__main__":
    main()
