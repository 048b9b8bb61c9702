#!/usr/bin/env python3
"""launch/mpirun.sh on one host: how it speaks to the mpirun on the PATH, goes on with a run, and stops one.

    mpirun_test.py LAMINA
"""
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from resume_test import checkpoints, descendants, signal_all
from training import Lamina, metrics

MPIRUN = Path(__file__).resolve().parent.parent.parent / "launch" / "mpirun.sh"
EXPERIMENT = {"train": {"num_steps": 3, "global_batch_size": 12, "micro_batch_size": 2}, "parallel": {"data": 0}}

# Stands for the program where a test needs a rank that takes long to save.
SLOW = """#!/usr/bin/env python3
import os, signal, sys, time
from pathlib import Path
folder = Path(__file__).parent
if sys.argv[1] == "--version":
    print("lamina, slow")
    sys.exit()
if sys.argv[1] == "check":
    print(folder / "run")
    sys.exit()
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda got, _: asked.append(got))
rank = os.environ["OMPI_COMM_WORLD_RANK"]
(folder / f"started-{rank}").touch()
while not asked:
    time.sleep(0.05)
(folder / f"asked-{rank}").touch()
time.sleep(float(os.environ["SAVE_SECONDS"]))
(folder / f"saved-{rank}").touch()
while len(list(folder.glob("saved-*"))) < 2:   # mpirun ends the others when one has ended
    time.sleep(0.05)
sys.exit(75)
"""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"mpirun_test.py: {message}")


def environment(**more: str) -> dict[str, str]:
    """What a user has who has set nothing for any MPI."""
    return {**{key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PRTE_", "LAMINA_"))}, **more}


def run(folder: Path, *words: str, path: str = "") -> subprocess.CompletedProcess:
    more = {"PATH": f"{path}:{os.environ['PATH']}"} if path else {}
    return subprocess.run([str(MPIRUN), *words], env=environment(**more), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=120, check=False)


def speaks_to(folder: Path) -> None:
    """Each mpirun in its own words; what can't be spoken to is refused by its name, with what to type instead."""
    (folder / "slow").write_text(SLOW)
    (folder / "slow").chmod(0o755)
    (folder / "c.yaml").write_text("\n")
    old = ["--mca plm_rsh_agent ", "--mca plm_rsh_no_tree_spawn 1", "--mca oob_tcp_if_include eth7", "--mca btl_tcp_if_include eth7"]
    new = ["--prtemca plm_ssh_agent ", "--prtemca plm_ssh_no_tree_spawn 1", "--prtemca prte_if_include eth7", "--mca btl_tcp_if_include eth7"]
    cases = [("mpirun (Open MPI) 4.1.4\n", 0, old), ("mpirun (Open MPI) 5.0.11\n", 0, new), ("mpirun (Open MPI) 10.0.1rc2\n", 0, new),
             ("mpirun (Open MPI) 3.1.6\n", 1, ["is of Open MPI 3, expected 4 or newer"]),
             ("HYDRA build details:\n    Version:  4.0.2\n", 1, ["is Hydra, of MPICH or Intel MPI", f"mpirun -n 4 {folder}/slow train c.yaml a=1"]),
             ("Intel(R) MPI Library for Linux* OS, Version 2021.11\n", 1, ["is Hydra, of MPICH or Intel MPI"]),
             ("launcher 7\n", 1, ["is no Open MPI: --version says 'launcher 7'"])]
    for number, (version, status, words) in enumerate(cases):
        bin_folder = folder / f"mpi-{number}" / "bin"
        bin_folder.mkdir(parents=True)
        (bin_folder / "mpirun").write_text(f"#!/bin/sh\ncat <<'END'\n{version}END\n")
        (bin_folder / "mpirun").chmod(0o755)
        done = run(folder, "--binary", f"{folder}/slow", "--hosts", "one,two", "--ranks-per-node", "2", "--interface", "eth7", "--no-checks",
                   "--dry-run", "c.yaml", "a=1", path=str(bin_folder))
        told = (done.stdout if status == 0 else done.stderr).replace("\\ ", " ")
        expect(done.returncode == status, f"{version!r}: {done.returncode}, expected {status}: {done.stderr}")
        for word in [*words, *([f"--prefix {folder}/mpi-{number} "] if status == 0 else [])]:
            expect(word in told, f"{version!r}: '{word}' is not in: {told}")


def goes_on(lamina: Lamina) -> None:
    """Three ranks on two cores, as root or not; then longer and with another learning rate, from a folder whose name is prose."""
    name = "run folder  x (new)"
    config, folder = lamina.write_config(name, EXPERIMENT), lamina.folder / name
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    words = ["--binary", lamina.binary, "--ranks-per-node", "3", "--env", "OMP_NUM_THREADS=1", str(config)]
    for steps, overrides in ((3, []), (5, ["train.num_steps=5", "train.optimizer.lr=0.01", f"run.output_dir={name}/"])):
        done = run(lamina.folder, *words, *overrides)
        expect(done.returncode == 0, f"{steps} steps: {done.returncode}: {done.stdout}{done.stderr}")
        found = [row["step"] for row in metrics(folder)]
        expect(found == list(range(1, steps + 1)), f"steps {found}, expected 1 to {steps}")
    expect("resumed from" in (folder / "log.txt").read_text(), "the second start did not resume")
    expect(checkpoints(folder)[-1].name == "step-00000005", "no checkpoint of step 5")
    refused = run(lamina.folder, *words, "run.seed=12")
    expect(refused.returncode == 1 and "run.seed" in refused.stderr, f"another experiment: {refused.returncode}: {refused.stderr}")


def run_folder(lamina: Lamina) -> None:
    """`lamina check --run-folder`: the folder and nothing else, or the fault and no folder."""
    config = lamina.write_config("told", EXPERIMENT)
    for override, told in (("run.output_dir=some/where", lamina.folder / "some/where"), ("run.name=x", lamina.folder / "told")):
        done = lamina.run(["check", str(config), "--run-folder", override])
        expect(done.returncode == 0 and done.stdout == f"{told}\n", f"--run-folder {override}: {done.returncode}: {done.stdout}{done.stderr}")
    done = lamina.run(["check", str(config), "--run-folder", "train.global_batch_size=5"])
    expect(done.returncode == 1 and done.stdout == "" and "micro_batch_size" in done.stderr, f"--run-folder of a mistake: {done}")


def command_line(pid: int) -> str:
    """Empty when that process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def start_slow(folder: Path, save_seconds: float, **options) -> subprocess.Popen:
    for file in folder.glob("*ed-[01]"):
        file.unlink()
    process = subprocess.Popen([str(MPIRUN), "--binary", str(folder / "slow"), "--ranks-per-node", "2", "--bind", "none", "c.yaml"],
                               env=environment(SAVE_SECONDS=str(save_seconds), OMPI_MCA_odls_base_sigkill_timeout="1"), cwd=folder,
                               text=True, **(options or {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}))
    wait_for(process, lambda: all((folder / f"started-{rank}").exists() for rank in (0, 1)), "start of both ranks")
    return process


def wait_for(process: subprocess.Popen, condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"mpirun_test.py: no {what}: {process.returncode}: {process.communicate()[0]}")
        time.sleep(0.02)


def has_time_to_save(folder: Path) -> None:
    """A scheduler sends SIGTERM to every process that it finds, mpirun too, which must not end its ranks for it."""
    for everyone in (False, True):
        process = start_slow(folder, 5)
        signal_all(process.pid, signal.SIGTERM) if everyone else process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        saved = sorted(file.name for file in folder.glob("saved-*"))
        what = "SIGTERM to every process" if everyone else "SIGTERM"
        expect(process.returncode == 75, f"{what}: {process.returncode}, expected 75:\n{output}")
        expect(saved == ["saved-0", "saved-1"], f"{what}: only {saved} of two ranks:\n{output}")


def closed_terminal(folder: Path) -> None:
    """Nobody could stop the ranks if they went on without the script."""
    ours, theirs = os.openpty()
    process = start_slow(folder, 1, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                         preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0))
    os.close(theirs)
    os.close(ours)
    expect(process.wait(timeout=60) == 75, f"a terminal that closes: {process.returncode}, expected 75")
    expect(len(list(folder.glob("saved-*"))) == 2, "a terminal that closes: not every rank saved")


def second_interrupt(folder: Path) -> None:
    process = start_slow(folder, 600)
    ranks = [pid for pid in descendants(process.pid) if f"{folder}/slow" in command_line(pid)]
    process.send_signal(signal.SIGINT)
    wait_for(process, lambda: all((folder / f"asked-{rank}").exists() for rank in (0, 1)), "request on both ranks")
    expect(process.poll() is None, "the first SIGINT ended the job")
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    seconds = time.monotonic() - sent
    expect(process.returncode not in (0, 75), f"the second SIGINT: {process.returncode}:\n{output}")
    expect(seconds < 10, f"the second SIGINT took {seconds:.1f} s:\n{output}")
    # mpirun has sent SIGKILL and does not wait for it: on a busy machine a rank may be there a moment longer.
    while (left := [pid for pid in ranks if command_line(pid)]) and time.monotonic() < sent + 20:
        time.sleep(0.1)
    expect(not left, f"left behind: {left}")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    told = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout
    with tempfile.TemporaryDirectory() as name:
        lamina = Lamina(sys.argv[1], Path(name))
        speaks_to(lamina.folder)
        if not re.search(r"\(Open MPI\) ([4-9]|\d\d)", told):
            print(f"the rest needs Open MPI; mpirun here is: {told.splitlines()[:1]}")
            return
        lamina.prepare()
        for test in (run_folder, goes_on):
            test(lamina)
            print(f"{test.__name__}: passed", flush=True)
        for test in (has_time_to_save, closed_terminal, second_interrupt):
            test(lamina.folder)
            print(f"{test.__name__}: passed", flush=True)


if __name__ == "__main__":
    main()
