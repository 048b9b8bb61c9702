#!/usr/bin/env python3
"""Stop signals to `lamina train` in float32, whose products run with the stack pointer inside the heap: every one ends with 75 and a
whole checkpoint, and in the end the bits are those of a run that was left alone. Ctrl-C, once and twice; checkpoints by the clock.

    stop_test.py LAMINA [SHOTS]          SHOTS times SIGUSR1 to one process, half as often to two ranks (4)
"""
import fcntl
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Callable

from resume_test import assert_same_bits, checkpoints, descendants
from training import Lamina, merged, metrics

RESUME = 75
# Steps of some tenths of a second, spent in products.
MODEL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "kv_lora_rank": 64, "qk_nope_head_dim": 64,
         "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 768, "initializer_range": 0.05}


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"stop_test: {message}")


def experiment(steps: int, changes: dict | None = None) -> dict:
    return merged({"model": MODEL, "data": {"seq_len": 128},
                   "train": {"num_steps": steps, "global_batch_size": 8, "micro_batch_size": 4, "optimizer": {"lr": 1e-3}},
                   "checkpoint": {"keep": 2}}, changes or {})


def last_step(run: Path) -> int:
    """Of a file that another process may be writing."""
    path = run / "metrics.jsonl"
    steps = re.findall(r'"step":\s*(\d+)', path.read_text()) if path.exists() else []
    return int(steps[-1]) if steps else 0


def newest(run: Path) -> int:
    saved = checkpoints(run) if (run / "checkpoints").exists() else []
    return int(saved[-1].name.removeprefix("step-")) if saved else 0


def wait_until(process: subprocess.Popen, what: str, is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_true():
        if process.poll() is not None:
            raise SystemExit(f"stop_test: ended with {process.returncode} before {what}:\n{process.communicate()[0]}")
        expect(time.monotonic() < deadline, f"two minutes, and not {what}")
        time.sleep(0.002)


def start(lamina: Lamina, command: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(command, env=lamina.environment, cwd=lamina.folder, text=True,
                            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options})


def start_training(lamina: Lamina, config: Path, run: Path, ranks: int = 1, **options) -> subprocess.Popen:
    """Returns when this start has made a step."""
    before = last_step(run)
    process = start(lamina, lamina.command(["train", str(config)], ranks), **options)
    wait_until(process, "a step", lambda: last_step(run) > before)
    return process


def end_of(process: subprocess.Popen, seconds: float = 60) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for pid in [process.pid, *descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        raise SystemExit(f"stop_test: still running {seconds} s after the signal:\n{process.communicate()[0]}") from None
    return process.returncode, output or ""


def expect_saved(lamina: Lamina, run: Path, status: int, output: str, what: str) -> None:
    expect(status == RESUME, f"{what}: exit status {status}, expected {RESUME}:\n{output}")
    expect(newest(run) == last_step(run) > 0, f"{what}: made step {last_step(run)}, the newest checkpoint is of {newest(run)}:\n{output}")
    inspected = lamina.run(["inspect", str(run), "--verify"])
    expect(inspected.returncode == 0, f"{what}: the checkpoint is not whole: {inspected.stdout}{inspected.stderr}")


def handling_threads(pid: int) -> list[bool]:
    """Of each thread, whether it takes SIGTERM, SIGUSR1, SIGINT and SIGHUP. A thread that takes some of them counts as one that does."""
    wanted = sum(1 << (number - 1) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP))
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        mask = re.search(r"^SigBlk:\s*([0-9a-f]+)", (task / "status").read_text(), re.MULTILINE)
        found.append(mask is not None and int(mask[1], 16) & wanted != wanted)
    return found


def expect_one_handling_thread(lamina: Lamina, process: subprocess.Popen, ranks: int) -> None:
    pids = [pid for pid in [process.pid, *descendants(process.pid)] if os.readlink(f"/proc/{pid}/exe") == lamina.binary]
    expect(len(pids) == ranks, f"found {len(pids)} processes of {ranks}")
    for pid in pids:
        found = handling_threads(pid)
        expect(found.count(True) == 1 and not found[0], f"of {len(found)} threads {found.count(True)} take signals, the first: {found[0]}")


def shoot(lamina: Lamina, shots: int, ranks: int) -> None:
    randomly, name = random.Random(ranks), f"shot-{ranks}"
    changes = {"parallel": {"pipeline": ranks}}
    config, run = lamina.write_config(name, experiment(100000, changes)), lamina.folder / name
    failures = []
    for shot in range(shots):
        process = start_training(lamina, config, run, ranks)
        expect_one_handling_thread(lamina, process, ranks)
        time.sleep(randomly.uniform(0.0, 0.8))
        process.send_signal(signal.SIGUSR1)   # mpirun passes it on
        status, output = end_of(process)
        print(f"SIGUSR1 {shot + 1} to {ranks} rank(s): {status}, at step {last_step(run)}", flush=True)
        if status != RESUME:
            failures.append(f"{status}: {output[-500:]}")
        else:
            expect_saved(lamina, run, status, output, f"SIGUSR1 to {ranks} rank(s)")
    expect(not failures, f"{len(failures)} of {shots} did not end with {RESUME}:\n" + "\n".join(failures))
    steps = last_step(run) + 1
    lamina.train(name, experiment(steps, changes), ranks)
    undisturbed = lamina.train(f"alone-{ranks}", experiment(steps, changes), ranks)
    expect(len(checkpoints(undisturbed)) == 1, f"{steps} steps of some seconds saved {checkpoints(undisturbed)}")
    assert_same_bits(checkpoints(undisturbed)[-1] / "shard-00000.h5", checkpoints(run)[-1] / "shard-00000.h5")
    for key in ("step", "loss", "grad_norm"):
        expect([row[key] for row in metrics(run)] == [row[key] for row in metrics(undisturbed)], f"'{key}' in metrics.jsonl differs")
    print(f"{shots} stops of {ranks} rank(s), and the bits of a run that was left alone", flush=True)


def interrupt(lamina: Lamina) -> None:
    config, run = lamina.write_config("interrupted", experiment(100000)), lamina.folder / "interrupted"
    process = start_training(lamina, config, run)
    process.send_signal(signal.SIGINT)
    status, output = end_of(process)
    expect_saved(lamina, run, status, output, "SIGINT")
    expect("SIGINT: saving and stopping" in output and re.search(r"stopping at step \d+ of 100000: SIGINT", output) is not None,
           f"SIGINT: the output does not say what happens:\n{output}")

    # The second ends it at once, in the middle of a step of minutes.
    slow = merged(experiment(100000), {"train": {"global_batch_size": 8192}})
    process = start(lamina, lamina.command(["train", str(lamina.write_config("slow", slow))]))
    wait_until(process, "the first step's rate", lambda: (lamina.folder / "slow" / "log.txt").exists())
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    expect(process.poll() is None, f"the first of two SIGINT: {process.returncode}")
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, output = end_of(process)
    expect(status == -signal.SIGINT and time.monotonic() - sent < 5, f"the second SIGINT: status {status}:\n{output}")

    # As a shell starts a job in the background.
    process = start_training(lamina, config, run, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    process.send_signal(signal.SIGINT)
    before = last_step(run)
    wait_until(process, "steps after an ignored SIGINT", lambda: last_step(run) > before + 1)
    process.send_signal(signal.SIGTERM)
    expect_saved(lamina, run, *end_of(process), "SIGTERM after an ignored SIGINT")

    # Nothing to save: as any program.
    process = start(lamina, lamina.command(["verify", str(config), "--layouts", "1x1x1,2x1x1,1x2x1", "train.global_batch_size=2048"]))
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    status, output = end_of(process)
    expect(status == -signal.SIGINT, f"SIGINT to lamina verify: status {status}:\n{output}")
    print("SIGINT saves, the second one ends, one that is ignored stays so", flush=True)


def press_interrupt(lamina: Lamina) -> None:
    """The key itself, on a terminal of its own."""
    config, run = lamina.write_config("typed", experiment(100000)), lamina.folder / "typed"
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = start_training(lamina, config, run, preexec_fn=take_terminal, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, b"\x03")
    seen = b""
    try:
        while data := os.read(ours, 4096):
            seen += data
    except OSError:   # the terminal's last user is gone
        pass
    os.close(ours)
    expect_saved(lamina, run, process.wait(60), seen.decode(), "Ctrl-C")
    expect(b"saving and stopping" in seen, f"Ctrl-C: the terminal shows {seen.decode()}")
    print("Ctrl-C saves", flush=True)


def save_by_the_clock(lamina: Lamina, ranks: int) -> None:
    def by_minutes(minutes: float, steps: int = 12) -> dict:
        return experiment(steps, {"parallel": {"pipeline": ranks}, "checkpoint": {"minutes": minutes, "keep": 0}, "debug": {"dump_step": steps}})
    alone = lamina.train(f"no-clock-{ranks}", by_minutes(0), ranks)
    expect([path.name for path in checkpoints(alone)] == ["step-00000012"], f"minutes: 0 saved {checkpoints(alone)}")
    each = lamina.train(f"each-step-{ranks}", by_minutes(1e-6), ranks)   # over after every step
    expect(len(checkpoints(each)) == 12, f"minutes: 1e-6 saved {checkpoints(each)}")

    # Killed after the first that the clock asked for.
    name = f"clock-{ranks}"
    config, run = lamina.write_config(name, by_minutes(0.02)), lamina.folder / name
    process = start(lamina, lamina.command(["train", str(config)], ranks))
    wait_until(process, "a checkpoint by the clock", lambda: newest(run) > 0)
    saved = newest(run)
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    expect(saved < 12, "1.2 s were over after the last step only: this test needs longer ones")
    lamina.train(name, by_minutes(0.01), ranks)   # no other experiment
    assert_same_bits(alone / "dump-step-12.h5", run / "dump-step-12.h5")
    print(f"{ranks} rank(s): checkpoints by the clock at steps {[int(path.name[5:]) for path in checkpoints(run)]}; the same bits", flush=True)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    shots = int(sys.argv[2]) if len(sys.argv) == 3 else 4
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        for ranks, count in ((1, shots), (2, (shots + 1) // 2)):
            shoot(lamina, count, ranks)
        interrupt(lamina)
        press_interrupt(lamina)
        for ranks in (1, 2):
            save_by_the_clock(lamina, ranks)


if __name__ == "__main__":
    main()
