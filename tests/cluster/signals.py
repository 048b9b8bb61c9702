#!/usr/bin/env python3
"""Asks a job of two ranks to stop, at random moments: start-up, steps, validations, checkpoints. Each time it ends with 75 and a
whole checkpoint of its last step; resumed as often, it ends with the bits of a run that was never disturbed.

    signals.py LAMINA [SHOTS]          SHOTS times SIGTERM to launch/mpirun.sh (4), a few times to all its processes at once, as schedulers
                                       may send it, and a few times SIGUSR1 to a plain mpirun
"""
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from resume_test import assert_same_bits, checkpoints, descendants, signal_all
from training import Lamina, metrics

MPIRUN = Path(__file__).resolve().parent.parent.parent / "launch" / "mpirun.sh"
RESUME = 75
VALIDATE, SAVE = 3, 4   # every so many steps


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"signals.py: {message}")


def experiment(lamina: Lamina, steps: int) -> dict:
    return {"data": {"validation": {"path": str(lamina.tokens), "num_sequences": 320, "interval": VALIDATE}},
            "train": {"num_steps": steps, "global_batch_size": 48, "micro_batch_size": 2, "optimizer": {"lr": 1e-3}},
            "parallel": {"pipeline": 2}, "checkpoint": {"interval": SAVE, "keep": 2}, "debug": {"dump_step": steps}}


def last_step(run: Path) -> int:
    """Of a file that another process may be writing."""
    path = run / "metrics.jsonl"
    steps = re.findall(r'"step":\s*(\d+)', path.read_text()) if path.exists() else []
    return int(steps[-1]) if steps else 0


def catches(pid: int, number: int) -> bool:
    """Whether that process has a handler for the signal. A shell that has not read its first lines has none."""
    try:
        mask = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False   # ended meanwhile
    return mask is not None and (int(mask[1], 16) >> (number - 1)) & 1 == 1


class Shooter:
    def __init__(self, lamina: Lamina, steps: int):
        self.lamina, self.steps = lamina, steps
        self.config, self.run = lamina.write_config("shot", experiment(lamina, steps)), lamina.folder / "shot"
        self.randomly = random.Random(6)
        self.phases: Counter = Counter()

    def start(self, launcher: list[str]) -> subprocess.Popen:
        return subprocess.Popen([*launcher, str(self.config)], env=self.lamina.environment, text=True, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.lamina.folder)

    def wait_for_phase(self, process: subprocess.Popen, phase: str) -> None:
        """Returns at a random moment, or in a phase that such moments meet too rarely."""
        if phase == "any":
            time.sleep(self.randomly.uniform(0.0, 3.0))
            return
        before, deadline = last_step(self.run), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            step = last_step(self.run)
            if step > before:   # in this start
                if phase == "step":
                    time.sleep(self.randomly.uniform(0.0, 0.3))
                    return
                if phase == "validation" and (step + 1) % VALIDATE == 0:   # its row comes after the validation
                    time.sleep(0.12)
                    return
                if phase == "checkpoint" and step % SAVE == 0:
                    return
            time.sleep(0.001)

    def shoot(self, what: str, launcher: list[str], number: int, phase: str, everyone: bool = False) -> None:
        before = last_step(self.run)
        process = self.start(launcher)
        while process.poll() is None and not catches(process.pid, number):
            time.sleep(0.001)
        self.wait_for_phase(process, phase)
        if process.poll() is not None:
            raise SystemExit(f"signals.py: {what}: ended with {process.returncode} before the signal:\n{process.stdout.read()}")
        sent = time.monotonic()
        signal_all(process.pid, number) if everyone else process.send_signal(number)
        try:
            output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            for pid in [process.pid, *descendants(process.pid)]:
                os.kill(pid, signal.SIGKILL)
            raise SystemExit(f"signals.py: {what}: still running a minute after the signal:\n{process.communicate()[0]}") from None
        seconds = time.monotonic() - sent
        expect(process.returncode == RESUME, f"{what}: exit status {process.returncode}, expected {RESUME}:\n{output}")
        step = last_step(self.run)
        saved = checkpoints(self.run) if (self.run / "checkpoints").exists() else []
        newest = int(saved[-1].name.removeprefix("step-")) if saved else 0
        # A start that did not get as far as to drop the rows after its checkpoint would leave them: there are none.
        expect(newest == step, f"{what}: stopped after step {step}, the newest checkpoint is of step {newest}:\n{output}")
        if saved:
            inspected = self.lamina.run(["inspect", str(saved[-1])])
            expect(inspected.returncode == 0, f"{what}: {saved[-1].name} is not whole: {inspected.stdout}{inspected.stderr}")
        hit = self.phase_hit(before, step, output)
        self.phases[hit] += 1
        print(f"{what}: {process.returncode} after {seconds:.1f} s, at step {step}, in {hit}", flush=True)

    def phase_hit(self, before: int, step: int, output: str) -> str:
        if step == before:
            return "start-up"
        if step % VALIDATE == 0 and "validation_loss" not in (self.run / "metrics.jsonl").read_text().splitlines()[-1]:
            return "a validation"
        saved = re.findall(rf"saved \S+step-{step:08d} ", output)
        # Due or not, one was saved; a request during the saving ends the run without a further step.
        return "a checkpoint" if step % SAVE == 0 and saved else "a step"


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    shots = int(sys.argv[2]) if len(sys.argv) == 3 else 4
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        steps = 400 + 40 * shots   # enough that a fast machine does not end before the last signal
        undisturbed = lamina.train("undisturbed", experiment(lamina, steps), 2)
        shooter = Shooter(lamina, steps)
        script = [str(MPIRUN), "--binary", lamina.binary, "--ranks-per-node", "2", "--bind", "none"]
        plain = ["mpirun", "-n", "2", lamina.binary, "train"]
        phases = ["any", "validation", "any", "checkpoint", "any", "step"]
        for shot in range(shots):
            shooter.shoot(f"SIGTERM {shot + 1} to mpirun.sh", script, signal.SIGTERM, phases[shot % len(phases)])
        for shot in range(max(1, shots // 6)):
            shooter.shoot(f"SIGTERM {shot + 1} to every process of mpirun.sh", script, signal.SIGTERM, "step", everyone=True)
            shooter.shoot(f"SIGUSR1 {shot + 1} to mpirun", plain, signal.SIGUSR1, "step")
        print(f"stopped in: {dict(shooter.phases)}", flush=True)
        if shots >= 20:
            expect(set(shooter.phases) == {"start-up", "a step", "a validation", "a checkpoint"}, "a phase was not hit")
        done = lamina.run(["train", str(shooter.config)], ranks=2)
        expect(done.returncode == 0, f"the last start: {done.returncode}: {done.stderr}")
        rows, expected = metrics(shooter.run), metrics(undisturbed)
        expect([row["step"] for row in rows] == list(range(1, steps + 1)), f"steps in metrics.jsonl: {[row['step'] for row in rows]}")
        for key in ("loss", "grad_norm", "lr", "tokens", "validation_loss", "validation_bits_per_byte"):
            expect([row.get(key) for row in rows] == [row.get(key) for row in expected], f"'{key}' in metrics.jsonl differs")
        assert_same_bits(undisturbed / f"dump-step-{steps}.h5", shooter.run / f"dump-step-{steps}.h5")
        newest = checkpoints(shooter.run)[-1]
        for file in sorted(newest.glob("shard-*.h5")):   # the tensors; what else there is names the run folder
            assert_same_bits(undisturbed / "checkpoints" / newest.name / file.name, file)
        print(f"{sum(shooter.phases.values())} stops, and in the end the bits and the metrics of a run that was not stopped")


if __name__ == "__main__":
    main()
