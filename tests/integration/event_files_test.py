#!/usr/bin/env python3
"""Event files of real runs say what metrics.jsonl and layers.jsonl say, before and after a resume.

    event_files_test.py LAMINA
"""
import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml

import event_files
from training import Lamina, merged, metrics

BASE = {"model": {"num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 12, "first_k_dense_replace": 1,
                  "aux_loss_alpha": 0.01},
        "train": {"num_steps": 5, "optimizer": {"lr": 3e-3}}, "checkpoint": {"interval": 2},
        "logging": {"layer_stats_interval": 2, "interval": 2}}


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"event_files_test: {message}")


def check_reader() -> None:
    """Against known checksums (RFC 3720, appendix B.4), and against damage."""
    for data, crc in ((b"\0" * 32, 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283)):
        expect(event_files.crc32c(data) == crc, f"crc32c of {data!r} is {event_files.crc32c(data):#x}")


def check_damage(path: Path) -> None:
    data = path.read_bytes()
    for at in (3, 9, 14, len(data) - 1):
        for broken in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1:], data[:at]):
            try:
                event_files.records(broken)
            except event_files.EventFileError:
                continue
            raise SystemExit(f"event_files_test: a file damaged or cut at byte {at} reads as whole")


def check_histogram(found: dict, values: list[float], where: str) -> None:
    expect(found["num"] == len(values) == sum(found["counts"]), f"{where}: {found['num']} values, expected {len(values)}")
    expect((found["min"], found["max"]) == (min(values), max(values)), f"{where}: from {found['min']} to {found['max']}")
    for key, expected in (("sum", sum(values)), ("sum_squares", sum(v * v for v in values))):
        expect(math.isclose(found[key], expected, rel_tol=1e-12), f"{where}: {key} {found[key]}, expected {expected}")
    limits = found["limits"]
    expect(limits == sorted(limits) and limits[-1] == max(values) and len(limits) == len(found["counts"]), f"{where}: edges {limits}")
    # Bucket by bucket; a value within a rounding of an edge may stand on either side.
    for count_below, limit in zip((sum(found["counts"][:i + 1]) for i in range(len(limits))), limits, strict=True):
        slack = 1e-12 * max(abs(min(values)), abs(max(values)))
        least, most = sum(v < limit - slack for v in values), sum(v <= limit + slack for v in values)
        expect(least <= count_below <= most, f"{where}: {count_below} values up to {limit}, expected {least} to {most}")


def check_configuration(run: Path, event: dict) -> None:
    """The run's configuration as a text and as hyperparameters."""
    text = (run / "config.yaml").read_text()
    expect(event["step"] == 0 and event["scalars"] == {} and event["histograms"] == {}, f"{run}: {event} where the configuration should be")
    shown = event["texts"].get("configuration", [""])[0].splitlines()
    found = yaml.safe_load("\n".join(line.removeprefix("    ") for line in shown))
    stored = yaml.safe_load(text)
    # What may change between two starts may differ from the last one's.
    found["train"].pop("num_steps"), stored["train"].pop("num_steps")
    expect(all(line.startswith("    ") for line in shown) and found == stored, f"{run}: the text {shown} is not config.yaml")
    for key, value in (("model.hidden_size", stored["model"]["hidden_size"]), ("model.tie_word_embeddings", stored["model"]["tie_word_embeddings"]),
                       ("train.optimizer.lr", stored["train"]["optimizer"]["lr"]), ("model.residual", stored["model"]["residual"]),
                       ("data.train[0].path", stored["data"]["train"][0]["path"]), ("run.name", stored["run"]["name"])):
        expect(event["hparams"].get(key) == value and isinstance(event["hparams"][key], bool) == isinstance(value, bool),
               f"{run}: hyperparameter {key} is {event['hparams'].get(key)!r}, expected {value!r}")


def check_events(run: Path, path: Path, first: int, last: int, rows: dict[int, dict], layers: dict[int, list[dict]],
                 made_up: bool = False) -> None:
    """The file's events are the start, and the given steps in order. made_up: before these the validation of the step before."""
    events = event_files.read(path)
    if made_up:
        added = events.pop(3)
        expected = {key: event_files.rounded(rows[first - 1][key]) for key in ("validation_loss", "validation_bits_per_byte")}
        expect((added["step"], added["scalars"]) == (first - 1, expected), f"{path}: {added}, expected {expected} at step {first - 1}")
    expect(events[0].get("file_version") == "brain.Event:2", f"{path} begins with {events[0]}")
    expect(events[1].get("session_status") == 1 and events[1]["step"] == first, f"{path}: {events[1]}, expected the start at {first}")
    check_configuration(run, events.pop(2))
    times = [event["wall_time"] for event in events]
    expect(times == sorted(times) and abs(times[-1] - time.time()) < 600, f"{path}: times {times}")
    expected = []
    for step in range(first, last + 1):
        expected += [(step, "layers")] if step in layers else []
        expected.append((step, "metrics"))
    expect(len(events) - 2 == len(expected), f"{path} has {len(events) - 2} events, expected {len(expected)}")
    for event, (step, kind) in zip(events[2:], expected, strict=True):
        where = f"{path.name} step {step} {kind}"
        expect(event["step"] == step, f"{where}: step {event['step']}")
        scalars, lists = event_files.layer_tags(layers[step]) if kind == "layers" else (event_files.flattened(rows[step]), {})
        expect(event["scalars"] == scalars, f"{where}: scalars differ: {set(event['scalars'].items()) ^ set(scalars.items())}")
        expect(set(event["histograms"]) == set(lists), f"{where}: histograms {sorted(event['histograms'])}")
        for tag, values in lists.items():
            check_histogram(event["histograms"][tag], values, f"{where} {tag}")
    expect(run == path.parent, f"{path} is not in {run}")


def rows_of(run: Path) -> tuple[dict[int, dict], dict[int, list[dict]]]:
    layers: dict[int, list[dict]] = {}
    for line in (run / "layers.jsonl").read_text().splitlines():
        row = json.loads(line)
        layers.setdefault(row["step"], []).append(row)
    return {row["step"]: row for row in metrics(run)}, layers


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    check_reader()
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        validation = {"data": {"validation": {"path": str(lamina.tokens), "num_sequences": 2, "interval": 4}}}
        run = lamina.train("run", merged(BASE, validation))
        rows, layers = rows_of(run)
        expect(set(layers) == {1, 2, 4} and "validation_loss" in rows[4] and "aux_loss" in rows[1], "the run lacks what is to be shown")
        found = event_files.files(run)
        expect(len(found) == 1, f"{run} has the event files {found}")
        name = found[0].name.split(".")
        expect(name[:3] == ["events", "out", "tfevents"] and abs(int(name[3]) - time.time()) < 600 and name[-1] == "0" and
               name[-2].isdigit() and ".".join(name[4:-2]) == os.uname().nodename, f"event file {found[0].name}")
        check_events(run, found[0], 1, 5, rows, layers)
        check_damage(found[0])
        tags = event_files.read(found[0])[3]["histograms"]
        expect({"layers/hidden_rms", "layers/output_rms", "layers/grad_rms", "layers/depth_weights", "layers/expert_load/001.mlp"} <=
               set(tags), f"histograms {sorted(tags)}")
        print("one start: every number of metrics.jsonl and layers.jsonl is in the event file", flush=True)

        # As if it had been killed after step 5, the checkpoint of step 4 being the newest, and the validation of step 4 not done.
        lines = (run / "metrics.jsonl").read_text().splitlines()
        lines[3] = json.dumps({key: value for key, value in rows[4].items() if not key.startswith("validation")})
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        shutil.rmtree(run / "checkpoints" / "step-00000005")
        before = found[0].read_bytes()
        lamina.train("run", merged(BASE, merged(validation, {"train": {"num_steps": 7}})))
        rows, layers = rows_of(run)
        after = event_files.files(run)
        expect(len(after) == 2 and after[0] == found[0], f"after a resume {run} has the event files {after}")
        expect(after[0].read_bytes() == before, "a resume changed the first event file")
        check_events(run, after[1], 5, 7, rows, layers, made_up=True)
        print("a resume from step 4: a second file, which begins with the start at step 5", flush=True)

        ranks = lamina.train("ranks", merged(BASE, {"train": {"micro_batch_size": 1}, "parallel": {"pipeline": 2}}), 2)
        found = event_files.files(ranks)
        expect(len(found) == 1, f"two ranks wrote the event files {found}")
        check_events(ranks, found[0], 1, 5, *rows_of(ranks))
        tags = event_files.read(found[0])[-1]["scalars"]
        expect({"comm_bytes/pipeline_blocks", "pipeline/bubble", "peak_bytes/activations/1"} <= set(tags), f"scalars {sorted(tags)}")
        off = lamina.train("off", merged(BASE, {"logging": {"tensorboard": False}}))
        expect(not event_files.files(off), "logging.tensorboard: false wrote event files")
        print("two ranks: one file; logging.tensorboard: false: none", flush=True)


if __name__ == "__main__":
    main()
