#!/usr/bin/env python3
"""`lamina doctor` as a user runs it: what it prints, alone and under mpirun, and how it tells a problem.

    doctor_test.py LAMINA [MPIEXEC]
"""
import json
import os
import re
import subprocess
import sys
import tempfile

TOPICS = ["build", "processor", "instructions", "memory", "GPUs|CUDA", "HDF5", "launcher", "locked memory", "open files", "clock",
          "temporary folder", "output folder", "rank 0"]


def main() -> int:
    program, mpiexec = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    faults: list[str] = []
    folder = tempfile.TemporaryDirectory()

    def run(*command: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **variables, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                       "OMPI_MCA_rmaps_base_oversubscribe": "1"}
        done = subprocess.run(command, cwd=folder.name, capture_output=True, text=True, timeout=120, env=environment)
        if os.listdir(folder.name):
            faults.append(f"{command}: left {os.listdir(folder.name)}")
        return done

    def expect(name: str, done: subprocess.CompletedProcess, code: int, *lines: str) -> None:
        if done.returncode != code:
            faults.append(f"{name}: exit {done.returncode}, expected {code}: {done.stdout} {done.stderr}")
        for line in lines:
            if not re.search(line, done.stdout, re.MULTILINE):
                faults.append(f"{name}: /{line}/ is not in the output: {done.stdout}")

    expect("help", run(program, "doctor", "--help"), 0, r"Examples:\n +lamina doctor")
    expect("quick", run(program, "doctor", "--quick"), 0, *(rf"^(ok|note) +({topic}) " for topic in TOPICS))
    measured = run(program, "doctor")
    expect("measured", measured, 0, r"^ok +matrix product +.*fp32: [1-9]\d* GFLOP/s", r"bf16: [1-9]\d* GFLOP/s",
           r"^ok +memory copy .* GB/s", r"^ok +output folder .* MiB/s to the disk")

    # Which way bf16 products go, and the word for scripts that follows from it.
    word = run(program, "doctor", "--precision").stdout
    classes = re.findall(r"^ok +bf16 products +(\w+): (native|through fp32); native takes \d+\.\d\d of the time", measured.stdout, re.M)
    if classes:
        if [name for name, _ in classes] != ["single_row", "dense", "weight_gradient", "tile", "expert_gradient"]:
            faults.append(f"bf16 products: {classes}")
        quicker = "bf16" if all(dict(classes)[name] == "native" for name in ("dense", "weight_gradient")) else "fp32"
    else:
        expect("no native products", measured, 0, r"^ok +bf16 products +through fp32: .*native ones need avx512_core_bf16")
        quicker = "fp32"
    if word != quicker + "\n":
        faults.append(f"--precision: {word!r}, expected {quicker}: {classes}")
    expect("quicker precision", measured, 0, rf"^ok +quicker precision +{quicker}[:;] ")
    older = run(program, "doctor", "--quick", DNNL_MAX_CPU_ISA="AVX2")
    expect("older processor", older, 0, r"^ok +bf16 products +through fp32: .* \(DNNL_MAX_CPU_ISA=AVX2\)", r"^ok +quicker precision +fp32; ")
    if (word := run(program, "doctor", "--precision", DNNL_MAX_CPU_ISA="AVX2").stdout) != "fp32\n":
        faults.append(f"--precision of an older processor: {word!r}")

    # A problem: its line, the line that tells how to mend it, and 1. Also for root, who may write everywhere.
    wrong = ["--quick", "--output", "/proc/lamina"]
    expect("problem", run(program, "doctor", *wrong), 1, r"^problem +output folder +/proc.*\n +mend: choose a folder")

    told = run(program, "doctor", "--json", *wrong)
    expect("json", told, 1)
    report = json.loads(told.stdout)
    if report["status"] != "problem" or report["problems"] != 1:
        faults.append(f"json: {report['status']}, {report['problems']} problems, expected one")
    for finding in report["findings"]:
        if finding["status"] not in ("ok", "note", "problem") or not finding["topic"] or not finding["text"]:
            faults.append(f"json: {finding}")
        if finding["status"] == "problem" and not finding["remedy"]:
            faults.append(f"json: no remedy: {finding}")

    if mpiexec:
        both = run(mpiexec, "-n", "2", program, "doctor", "--json")
        expect("two ranks", both, 0)
        findings = json.loads(both.stdout)["findings"]
        for topic, text in [("launcher", "one of 2 ranks"), ("rank 0", "cores"), ("rank 1", "cores"), ("clocks", "ms apart"),
                            ("host messages", r"ranks 0 and 1: [\d.]+ us, [\d.]+ GB/s"), ("host all_reduce", "over 2 ranks")]:
            if not any(f["topic"] == topic and re.search(text, f["text"]) for f in findings):
                faults.append(f"two ranks: no {topic} with /{text}/: {findings}")
        failed = run(mpiexec, "-n", "2", program, "doctor", *wrong)
        if failed.returncode == 0 or "problem" not in failed.stdout:
            faults.append(f"two ranks, a problem: exit {failed.returncode}: {failed.stdout} {failed.stderr}")

    folder.cleanup()
    print("\n".join(faults) if faults else "lamina doctor tells what it finds")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
