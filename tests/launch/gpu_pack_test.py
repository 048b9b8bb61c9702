#!/usr/bin/env python3
"""launch/gpu.sh: a run's judgement of every claim, with programs whose figures are known; or, with a build for the emulated device, a pack
of it that runs with an empty environment and needs nothing of this machine but its C library.

    gpu_pack_test.py SOURCE_FOLDER [BUILD_FOLDER]
"""
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

faults: list[str] = []


def expect(condition: bool, what: str) -> None:
    if not condition:
        faults.append(what)


# What each program of a pack and of the machine prints. $KIND: good, bad, slow or none (no GPU).
PROGRAMS = {
    "lamina": r"""
case $1 in
  --version) echo "lamina 0" ;;
  doctor)
    [[ $KIND == none ]] && echo "problem  CUDA               no NVIDIA driver was found" ||
      echo "ok       GPU 0              NVIDIA H200, capability 9.0, more" ;;
  train)
    folder=run-cpu loss=5.5
    [[ " $* " != *run.device=cuda* ]] || { folder=run-cuda; [[ $KIND == bad ]] && loss=5.5006 || loss=5.50001; }
    mkdir $folder; printf '{"step":1,"loss":%s,"lr":1}\n{"step":2,"loss":5.25,"lr":1}\n' $loss >$folder/metrics.jsonl ;;
esac""",
    "bench_gpu_ops": r"""
if [[ " $* " == *" --bits "* ]]; then
  [[ $KIND != slow ]] || sleep 30
  printf '%-34s the same bits\n' "AttnRes read, forward"
  [[ $KIND == good ]] && printf '%-34s the same bits\n' "KDA, forward" || { printf '%-34s FAULT: run 2 differs\n' "KDA, forward"; exit 1; }
  exit
fi
[[ $KIND == good ]] && of=0.81 kda=2.0 || of=0.79 kda=2.2
row() { printf '%-34s %10.3f %12.0f %10.2f %12.1f %10.2f\n' "$@"; }
row "AttnRes read, forward" 1 3000 $of 0 0
row "AttnRes read, backward" 1 3000 0.61 0 0
row "attention 192 / 128, forward" 1 0 0 300 0.41
row "attention 192 / 128, backward" 1 0 0 300 0.42
echo attention_forward_backward_ms 3.0
echo kda_forward_backward_ms $kda
row "experts' products, forward" 1 0 0 300 0.7
row "head and loss, both passes" 1 0 0 300 0.8""",
    "bench_gpu_train": r"""
[[ $KIND == good ]] && dense=0.455 kimi=0.255 on=1.0399 rate=50100 || dense=0.445 kimi=0.245 on=1.0401 rate=49900
line() { echo "$1     1.00M parameters: 9.0 ms per step, $2 tokens/s, 400.0 TFLOP/s, 0.500 of the product's rate, MFU $3"; }
case $2 in
  dense) line dense $rate $dense ;;
  kimi) line kimi 20000 $kimi ;;
  attnres) echo "attnres  Block AttnRes with 10 sources over the standard residual: $on of its step" ;;
esac""",
    "bench_gpu_launch": r"""
printf 'launch_host_us 2.500\ncopy_to_host_us 12.0\n'
printf 'work_us %10.1f  wait_over_us %8.1f  wait_over_95_us 1\n' 1 7.5 2000 71.5 300 9""",
    "tests_core_ops_cuda": r"""
echo '[ RUN      ] A.B'; echo '[       OK ] A.B (3 ms)'
[[ $KIND == good ]] || {
  echo '[ RUN      ] A.C'; echo '[  FAILED  ] A.C, where GetParam() = 3 (3 ms)'; echo '[  FAILED  ] 1 test, listed below:'; exit 1
}""",
    "tests_comm_cuda": r"""
echo '[       OK ] A.B (3 ms)'; echo '[  SKIPPED ] A.D (0 ms)'
[[ $KIND == good ]] || { sleep 0.1; kill -SEGV $$; }""",
    "tests_trainer_cuda": r"""[[ $KIND == good ]] && echo '[       OK ] A.B (3 ms)' || echo '[  SKIPPED ] A.B (3 ms)'""",
}
MACHINE = {
    "nvidia-smi": 'echo "NVIDIA H200, 580.65"',
    "compute-sanitizer": r"""
[[ $KIND == good ]] && hazards=0 errors=0 code=0 || hazards=3 errors=2 code=9
echo "========= RACECHECK SUMMARY: $hazards hazards displayed ($hazards errors, 0 warnings)"
echo "========= ERROR SUMMARY: $errors errors"
exit $code""",
    "cc": "",
    "python": "exit 1",
    "python3": r"""
case "$*" in
  *torch.zeros*) echo 2.9.0 ;;
  *torch_attention.py) echo "torch_attention_forward_backward_ms 1.5   # cudnn" ;;
  *fla_kda.py) echo "fla_kda_forward_backward_ms 2.0" ;;
  *torch_dense.py)
    echo "attention: cudnn_attention"
    echo "torch    1.00M parameters: 9.0 ms per step, 50000 tokens/s, 400.0 TFLOP/s (PyTorch 2.9.0, compiled)" ;;
esac""",
}
# Claims by a part of their text: target, and figure and result of the good and of the bad programs.
CLAIMS = {
    "programs find their libraries": ("all", ("all", "pass"), ("all", "pass")),
    "a GPU is there": ("", ("NVIDIA H200", "pass"), ("NVIDIA H200", "pass")),
    "the same bits three times": ("all", ("2 operations", "pass"), ("1 of 2", "FAIL")),
    "tests of the operations": ("all pass", ("1 passed, 0 failed, 0 skipped", "pass"), ("1 passed, 1 failed, 0 skipped", "FAIL")),
    "tests of messages": ("all pass", ("1 passed, 0 failed, 1 skipped", "pass"), ("1 passed, 0 failed, 1 skipped", "FAIL")),
    "tests of the engine": ("all pass", ("1 passed, 0 failed, 0 skipped", "pass"), ("0 passed, 0 failed, 1 skipped", "not run")),
    "AttnRes read, forward": (">= 0.80", ("0.81", "pass"), ("0.79", "FAIL")),
    "AttnRes read, backward": ("", ("0.61", "measured"), ("0.61", "measured")),
    "attention 192 / 128, forward": ("", ("0.41", "measured"), ("0.41", "measured")),
    "attention 192 / 128, backward": ("", ("0.42", "measured"), ("0.42", "measured")),
    "attention, both passes": ("", ("2.000", "measured"), ("2.000", "measured")),
    "KDA, both passes": ("<= 1", ("1.000", "pass"), ("1.100", "FAIL")),
    "experts' products": ("", ("0.70", "measured"), ("0.70", "measured")),
    "head and loss": ("", ("0.80", "measured"), ("0.80", "measured")),
    "dense model, MFU against 989": (">= 0.45", ("0.455", "pass"), ("0.445", "FAIL")),
    "shapes, MFU against 989": (">= 0.25", ("0.255", "pass"), ("0.245", "FAIL")),
    "over PyTorch's (2.9.0, compiled)": (">= 1", ("1.002", "pass"), ("0.998", "FAIL")),
    "Block AttnRes with 10 sources": ("<= 1.04", ("1.0399", "pass"), ("1.0401", "FAIL")),
    "a launch, on the host": ("", ("2.500 us", "measured"), ("2.500 us", "measured")),
    "a copy of four bytes": ("", ("12.0 us", "measured"), ("12.0 us", "measured")),
    "a wait's delay": ("", ("71.5 us", "measured"), ("71.5 us", "measured")),
    "the first loss is the CPU's": ("<= 1e-5", ("1.82e-06", "pass"), ("1.09e-04", "FAIL")),
    "racecheck: kda": ("no hazard", ("0 hazards displayed (0 errors, 0 warnings)", "pass"),
                       ("3 hazards displayed (3 errors, 0 warnings)", "FAIL")),
    "racecheck: attention": ("no hazard", ("0 hazards displayed (0 errors, 0 warnings)", "pass"),
                             ("3 hazards displayed (3 errors, 0 warnings)", "FAIL")),
    "racecheck: attnres": ("no hazard", ("0 hazards displayed (0 errors, 0 warnings)", "pass"),
                           ("3 hazards displayed (3 errors, 0 warnings)", "FAIL")),
    "memcheck": ("no error", ("0 errors", "pass"), ("2 errors", "FAIL")),
}


def script(path: Path, text: str) -> None:
    path.write_text("#!/bin/bash\n" + text + "\n")
    path.chmod(0o755)


def make_pack(source: Path, folder: Path) -> Path:
    pack, programs, machine = folder / "a pack", folder / "bin", folder / "machine"
    for made in (pack / "launch", pack / "bench", pack / "configs", pack / "data", programs, machine):
        made.mkdir(parents=True)
    for name in ("gpu.sh", "gpu_run.sh"):
        shutil.copy(source / "launch" / name, pack / "launch")
    for name, text in PROGRAMS.items():
        script(programs / name, text)
    for name, text in MACHINE.items():
        script(machine / name, text)
    with tarfile.open(pack / "programs.tar.gz", "w:gz") as archive:
        archive.add(programs, "bin")
    (pack / "CONTENTS").write_text("lamina 0123456789\nbuilt 2026-01-01\ndevice sm_90a, CUDA 13.0\n")
    return pack


def rows_of(output: Path) -> list[list[str]]:
    """Of the Markdown table: result, claim, target, figure, why."""
    lines = [line for line in (output / "results.md").read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def run_pack(pack: Path, kind: str, *options: str) -> tuple[int, list[list[str]], str]:
    output = pack.parent / f"results {kind}"
    done = subprocess.run(["/bin/bash", str(pack / "launch/gpu.sh"), "--run", "--output", str(output), *options], cwd="/",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
                          env={"PATH": str(pack.parent / "machine"), "KIND": kind, "TMPDIR": str(pack.parent)})
    rows = rows_of(output) if (output / "results.md").exists() else []
    text = (output / "results.txt").read_text() if rows else ""
    expect(done.returncode == 2 or done.stdout.count(text) == 1, f"{kind}: the table is not in what was printed: {done.stdout}")
    return done.returncode, rows, text or done.stdout


def judges(pack: Path) -> None:
    for kind, code in (("good", 0), ("bad", 1)):
        status, rows, text = run_pack(pack, kind)
        expect(status == code, f"{kind}: exit {status}, expected {code}: {text}")
        expect(len(rows) == len(CLAIMS), f"{kind}: {len(rows)} claims, expected {len(CLAIMS)}: {text}")
        for claim, (target, good, bad) in CLAIMS.items():
            figure, result = good if kind == "good" else bad
            found = [row for row in rows if claim in row[1]]
            expect(len(found) == 1 and found[0][:1] + found[0][2:4] == [result, target, figure],
                   f"{kind}: {claim}: found {found}, expected {[result, target, figure]}")
        for result in ("pass", "FAIL", "not run"):
            count = sum(row[0] == result for row in rows)
            expect(f"{count} {result}" in text.splitlines()[-1], f"{kind}: the last line counts other than {count} {result}: {text}")
        expect(all(row[4] for row in rows if row[0] in ("not run", "not judged")), f"{kind}: a claim not judged has no reason: {text}")


def keeps_to_its_time(pack: Path) -> None:
    status, rows, text = run_pack(pack, "slow", "--seconds", "100", "--only", "bits")
    bits = next((row for row in rows if "same bits" in row[1]), ["nothing", "", "", "", ""])
    expect(bits[0] == "not run" and bits[4] == "its 10 s were not enough", f"slow: bits {bits}")
    expect(status == 0 and all(row[4] == "not asked for" for row in rows[3:]), f"slow: exit {status}: {text}")
    status, rows, text = run_pack(pack, "slow", "--seconds", "5")
    expect(status == 0 and all(row[0] == "not run" and "the 5 s were over" in row[4] for row in rows if "libraries" not in row[1]),
           f"no time at all: exit {status}: {text}")


def tells_what_is_missing(pack: Path) -> None:
    status, rows, text = run_pack(pack, "none")
    others = [row for row in rows if row[1] not in ("programs find their libraries", "a GPU is there")]
    reason = "no GPU: problem CUDA no NVIDIA driver was found"
    expect(status == 1 and all(row[0] == "not run" and row[4] == reason for row in others), f"no GPU: exit {status}: {text}")
    status, rows, text = run_pack(pack, "good", "--only", "ops,fla")
    told = [row[1] for row in rows if row[0] in ("pass", "measured")]
    expect(status == 0 and any("KDA" in claim for claim in told) and not any("MFU" in claim for claim in told),
           f"--only: exit {status}: {text}")
    for options, reason in ((("--only", "op"), "--only: found 'op', expected some of: load bits"),
                            (("--seconds", "0"), "--seconds: found '0'"), (("--to", "x"), "--to is an option of packing")):
        status, _, text = run_pack(pack, "good " + options[0], *options)
        expect(status == 2 and reason in text and len(text.splitlines()) == 1, f"{options}: exit {status}: {text}")


def gpu_sh(source: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(source / "launch/gpu.sh"), *arguments], capture_output=True, text=True, timeout=300)


def packs(source: Path, build: Path, folder: Path) -> None:
    made = folder / "made"
    words = ("--pack", "--build", str(build), "--program", "lamina", "--program", "bench_gpu_ops", "--to", str(made))
    small = gpu_sh(source, "--pack", "--build", str(build), "--program", "tests_comm_cuda", "--to", str(made), "--most", "1")
    expect(small.returncode == 2 and not made.exists() and list(folder.glob(".gpu-pack*")) == [] and
           re.search(r"would have [\d.]+ MiB, at most 1 MiB are allowed \(--most\); the largest of it: (lib|bin)/\S+ [\d.]+ MiB, ",
                     small.stderr) is not None, f"too large: {small}")
    done = gpu_sh(source, *words)
    if done.returncode != 0:
        faults.append(f"--pack: {done}")
        return
    for word in ("device emulated", "needs glibc 2.", "bin/lamina", "lib/libdnnl", "lib/gcc/libstdc++", "programs.tar.gz",
                 "launch/gpu_run.sh", " of at most 64 MiB"):
        expect(word in done.stdout, f"--pack does not say '{word}': {done.stdout}")

    # Elsewhere, with nothing in the environment.
    there = folder / "elsewhere" / "pack"
    there.parent.mkdir()
    shutil.move(made, there)
    run = subprocess.run(["/bin/bash", str(there / "launch/gpu.sh"), "--run", "--only", "bits,tests-comm", "--output", str(folder / "out")],
                         cwd="/", env={}, capture_output=True, text=True, timeout=300)
    expect(run.returncode == 0, f"--run: {run}")
    rows = {row[1]: row for row in rows_of(folder / "out")} if (folder / "out/results.md").exists() else {}
    for claim, result, figure in (("programs find their libraries", "pass", "all"), ("a GPU is there", "pass", "emulated device"),
                                  ("operations at the 48B's shapes: the same bits three times", "pass", r"\d\d operations"),
                                  ("tests of messages between ranks", "not run", "")):
        row = rows.get(claim, ["nothing", "", "", ""])
        expect(row[0] == result and re.fullmatch(figure, row[3]) is not None,
               f"--run: {claim}: found {row}, expected {result} {figure}: {run.stdout}")
    expect(rows.get("tests of messages between ranks", [""])[-1] == "tests_comm_cuda is not in the pack", f"--run: {rows}")

    # All libraries but the C library come from the pack.
    with tarfile.open(there / "programs.tar.gz") as archive:
        archive.extractall(folder / "unpacked")
    for program in ("lamina", "bench_gpu_ops"):
        listed = subprocess.run(["ldd", str(folder / "unpacked/bin" / program)], capture_output=True, text=True,
                                env={**os.environ, "LD_LIBRARY_PATH": f"{folder}/unpacked/lib:{folder}/unpacked/lib/gcc"})
        strangers = [line.split()[0] for line in listed.stdout.splitlines() if "=>" in line and f"=> {folder}/unpacked/" not in line]
        expect(listed.returncode == 0 and all(re.match(r"lib(c|m|dl|rt|pthread|resolv)\.so", name) for name in strangers),
               f"{program} takes {strangers} from this machine")
    again = gpu_sh(source, "--pack", "--build", str(build), "--to", str(there.parent))
    expect(again.returncode == 2 and "is there and is no pack" in again.stderr, f"onto a folder that is no pack: {again}")


def judgement(source: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        pack = make_pack(source, Path(name))
        judges(pack)
        keeps_to_its_time(pack)
        tells_what_is_missing(pack)
        left = [path.name for path in Path(name).iterdir() if path.name.startswith("tmp.")]
        expect(not left, f"left behind: {left}")


def refuses(source: Path) -> None:
    for options, reason in ((("--pack", "--run"), "found both --pack and --run"), (("--run",), "is no pack"),
                            (("--pack", "--program", "lamin"), "--program: found 'lamin', expected one of lamina"),
                            (("--pack", "--build", "/nowhere"), "/nowhere is no build folder"), (("--packs",), "unknown option '--packs'"),
                            (("--pack", "--arch", "sm_90"), "--arch: found 'sm_90'"),
                            (("--pack", "--only", "bits"), "--only is an option of running")):
        done = gpu_sh(source, *options)
        expect(done.returncode == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1, f"{options}: {done}")


def main() -> int:
    source = Path(sys.argv[1])
    if len(sys.argv) > 2:
        with tempfile.TemporaryDirectory() as name:
            packs(source, Path(sys.argv[2]), Path(name))
    else:
        judgement(source)
        refuses(source)
    for fault in faults:
        print(f"FAILED: {fault}")
    if not faults:
        print("gpu_pack_test.py: passed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
