#!/usr/bin/env python3
"""Traces of real runs: what the format demands, and what every schedule, step and byte demands of the contents.

    trace_test.py LAMINA TRAIN_THREADS
"""
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from training import Lamina, merged, metrics

STEPS, TRACED = 4, [2, 4]
BASE = {"train": {"num_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 1, "optimizer": {"lr": 3e-3}},
        "checkpoint": {"interval": 2}, "logging": {"trace_steps": TRACED}}
LAYOUTS = {
    "one": (1, {}, {}),
    "pipeline": (2, {"pipeline": 2, "virtual_stages": 2, "schedule": "interleaved_1f1b", "split": [1, 2, 1, 1]},
                 {"model": {"tie_word_embeddings": True}}),
    "both": (4, {"pipeline": 2, "virtual_stages": 2, "data": 2, "schedule": "zero_bubble"}, {}),
    "data": (3, {"data": 3}, {}),
    "experts": (2, {"expert": 2}, {"model": {"num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 12,
                                             "first_k_dense_replace": 1}}),
}
ROUNDING = 1e-3   # microseconds, of ts + dur as doubles


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"trace_test: {message}")


def no_constants(name: str) -> None:
    raise SystemExit(f"trace_test: {name} is not JSON")


def check_format(trace: dict, where: str) -> None:
    """The rules of Chrome's trace event format that a viewer relies on: complete events that nest per thread, and names."""
    spans, named = defaultdict(list), {"process_name": {}, "thread_name": {}}
    for event in trace["traceEvents"]:
        expect(event["ph"] in ("X", "M"), f"{where}: an event of kind {event['ph']}")
        expect(isinstance(event["pid"], int) and isinstance(event["tid"], int), f"{where}: {event} has no integer pid and tid")
        if event["ph"] == "M":
            if event["name"] in named:
                key = (event["pid"], event["tid"] if event["name"] == "thread_name" else None)
                expect(key not in named[event["name"]], f"{where}: {key} is named twice")
                named[event["name"]][key] = event["args"]["name"]
            continue
        expect(event["ts"] >= 0 and event["dur"] >= 0, f"{where}: {event} before the step or backwards")
        spans[event["pid"], event["tid"]].append(event)
    for key, events in spans.items():
        expect((key[0], None) in named["process_name"] and key in named["thread_name"], f"{where}: {key} has no name")
        events.sort(key=lambda e: (e["ts"], -e["dur"]))
        open_ends = []
        for event in events:
            while open_ends and open_ends[-1] <= event["ts"] + ROUNDING:
                open_ends.pop()
            end = event["ts"] + event["dur"]
            expect(not open_ends or end <= open_ends[-1] + ROUNDING,
                   f"{where}: on {named['thread_name'][key]} of {named['process_name'][key[0], None]} {event['name']} reaches out of "
                   "the span that it begins in")
            open_ends.append(end)


def check_actions(trace: dict, layout: dict, micro_batches: int, where: str) -> None:
    """Every action once, in an order that the dependencies allow; the same for the simulation, to the last digit."""
    head = trace["lamina"]
    chunks = layout.get("pipeline", 1) * layout.get("virtual_stages", 1)
    backward = ("Bi", "W") if layout.get("schedule") == "zero_bubble" else ("B",)
    for part, slack, pipelines in (("real", 2 * max(head["clock_error"]), head["data"]), ("simulated", 1e-12, 1)):
        ends, starts, count = {}, {}, Counter()
        for action in head[part]:
            data = action["rank"] % head["data"] if part == "real" else 0
            pipeline = action["rank"] // head["data"] if part == "real" else action["rank"]
            expect(action["chunk"] % head["pipeline"] == pipeline, f"{where}: {action} is on the wrong rank")
            kind = "B" if action["kind"] == "Bi" else action["kind"]
            key = (data, kind, action["chunk"], action["microbatch"])
            count[data, action["kind"], action["chunk"], action["microbatch"]] += 1
            starts[key], ends[key] = action["start"], action["end"]
        whole = {(d, k, c, m) for d in range(pipelines) for c in range(chunks) for m in range(micro_batches)
                 for k in ("F", "B")}
        kinds = {k for _, k, _, _ in count}
        expect(kinds == {"F", *backward} or kinds == {"F", "B", *backward}, f"{where}: {part} has the kinds {kinds}")
        expect(set(count.values()) == {1}, f"{where}: {part} has an action twice")
        expect(whole <= set(ends), f"{where}: {part} lacks {sorted(whole - set(ends))[:3]}")
        for (data, kind, chunk, micro), start in starts.items():
            needs = {"F": [("F", chunk - 1)], "B": [("F", chunk), ("B", chunk + 1)], "W": [("B", chunk)]}[kind]
            for other_kind, other_chunk in needs:
                end = ends.get((data, other_kind, other_chunk, micro))
                expect(end is None or start >= end - slack,
                       f"{where}: {part} {chunk}{kind}{micro} begins at {start}, before {other_chunk}{other_kind}{micro} ends at {end}")
        busy = defaultdict(list)
        for action in head[part]:
            busy[action["rank"]].append((action["start"], action["end"]))
        for rank, actions in busy.items():
            actions.sort()
            for (_, end), (start, _) in zip(actions, actions[1:]):
                expect(start >= end - 1e-9, f"{where}: rank {rank} does two things at {start}")
    first = [min(a["start"] for a in head[part]) for part in ("real", "simulated")]
    expect(abs(first[0] - first[1]) < 1e-9, f"{where}: the simulation begins at {first[1]}, the step's actions at {first[0]}")


def total(events: list[dict], category: str, key: str) -> int:
    return sum(event["args"].get(key, 0) for event in events if event.get("cat") == category)


def check_step(trace: dict, row: dict, ranks: int, tokens: int, name: str, where: str) -> None:
    events = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] < ranks]
    sent = row["comm_bytes"]
    expect(total(events, "send", "bytes") == sent["pipeline_hidden"] + sent["pipeline_blocks"],
           f"{where}: sends of {total(events, 'send', 'bytes')} bytes, metrics.jsonl has {sent}")
    expect(total(events, "send", "summary_bytes") == sent["pipeline_blocks"], f"{where}: other block summaries than {sent}")
    expect(total(events, "receive", "bytes") == total(events, "send", "bytes"), f"{where}: sent and received bytes differ")
    data = total(events, "data parallel", "bytes")
    if name == "experts":   # and what the experts' selection needs
        expect(0 < data <= sent["data"], f"{where}: reductions and gathers of {data} bytes, metrics.jsonl has {sent}")
        expect(0 < total(events, "experts", "bytes") < sent["expert"], f"{where}: rows to experts beside {sent}")
    else:
        expect(data == sent["data"], f"{where}: reductions and gathers of {data} bytes, metrics.jsonl has {sent}")
    for rank in range(ranks):
        mine = [event for event in events if event["pid"] == rank]
        phases = {event["name"]: event for event in mine if event["cat"] == "phases"}
        expected = {"load data", "forward and backward", "gradient norm", "update", "gather parameters", "checkpoint"}
        expect(set(phases) >= expected, f"{where}: rank {rank} has the phases {sorted(phases)}")
        around = phases["forward and backward"]
        begin, end = around["ts"], around["ts"] + around["dur"]
        used = 0.0
        for event in mine:
            if event["cat"] == "compute" or event["name"].startswith("wait for ") and "chunk" in event["args"]:
                expect(begin <= event["ts"] and event["ts"] + event["dur"] <= end + ROUNDING, f"{where}: {event} outside its phase")
                used += event["dur"]
        expect(0 < used <= around["dur"] + ROUNDING, f"{where}: rank {rank} computes and waits {used} us of {around['dur']}")
    whole = max(event["ts"] + event["dur"] for event in events if event["name"] == "gather parameters") / 1e6
    step = tokens / row["tokens_per_second"]
    # The step's clock starts right after the trace's origin, and goes on through the sums for metrics.jsonl.
    expect(whole <= step + 0.05, f"{where}: the traced step ends after {whole} s, metrics.jsonl says {step}")


def check_run(run: Path, name: str, ranks: int, layout: dict, extra: set[str]) -> None:
    found = sorted(path.name for path in (run / "traces").iterdir())
    expect(found == [f"step-{step:08}.json" for step in TRACED], f"{run}: traces/ holds {found}")
    rows = {row["step"]: row for row in metrics(run)}
    for step in TRACED:
        where = f"{name} step {step}"
        trace = json.loads((run / "traces" / f"step-{step:08}.json").read_text(), parse_constant=no_constants)
        head = trace["lamina"]
        data = ranks // layout.get("pipeline", 1)
        expect((head["version"], head["step"], head["ranks"], head["pipeline"], head["data"]) ==
               (1, step, ranks, layout.get("pipeline", 1), data), f"{where}: {[head[k] for k in list(head)[:6]]}")
        expect(head["schedule"] == layout.get("schedule", "interleaved_1f1b"), f"{where}: schedule {head['schedule']}")
        expect(len(head["clock_error"]) == ranks and head["clock_error"][0] == 0 and max(head["clock_error"]) < 0.1 and
               head["dropped_spans"] == [0] * ranks, f"{where}: clocks {head['clock_error']}, dropped {head['dropped_spans']}")
        names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
        expect(len(names) == ranks + layout.get("pipeline", 1), f"{where}: processes {names}")
        for rank in range(ranks):
            place = f"pipeline {rank // data}, data {rank % data})"
            expect(names[rank].startswith(f"rank {rank} (") and names[rank].endswith(place), f"{where}: process {names[rank]}")
        threads = {e["args"]["name"].rstrip(" 0123456789") for e in trace["traceEvents"] if e["name"] == "thread_name"}
        expect(threads >= {"compute", "phases", "waiting"} | extra, f"{where}: threads {threads}")
        check_format(trace, where)
        check_actions(trace, layout, 12 // data, where)
        check_step(trace, rows[step], ranks, 12 * 21, name, where)


def extra_threads(layout: dict) -> set[str]:
    found = {"data parallel"}
    if layout.get("pipeline", 1) > 1:
        found |= {"send", "receive"}
    if layout.get("expert", 1) > 1:
        found.add("experts")
    return found


def negative_checks(run: Path) -> None:
    """The checks above see what they are for."""
    text = (run / "traces" / f"step-{TRACED[0]:08}.json").read_text()

    def refused(change, check) -> None:
        trace = json.loads(text)
        change(trace)
        try:
            check(trace)
        except SystemExit:
            return
        raise AssertionError("a broken trace passes")

    layout = LAYOUTS["pipeline"][1]
    row = {row["step"]: row for row in metrics(run)}[TRACED[0]]
    compute = [i for i, e in enumerate(json.loads(text)["traceEvents"]) if e.get("cat") == "compute"]

    def overlap(trace: dict) -> None:
        first, second = (trace["traceEvents"][compute[i]] for i in (0, 1))
        first["dur"] = second["ts"] + second["dur"] / 2 - first["ts"]

    refused(overlap, lambda t: check_format(t, ""))
    refused(lambda t: t["lamina"]["real"].pop(), lambda t: check_actions(t, layout, 12, ""))
    refused(lambda t: t["lamina"]["real"].append(t["lamina"]["real"][0]), lambda t: check_actions(t, layout, 12, ""))
    refused(lambda t: [a.update(start=0.0, end=0.0) for a in t["lamina"]["real"] if a["kind"] == "B"],
            lambda t: check_actions(t, layout, 12, ""))
    send = next(i for i, e in enumerate(json.loads(text)["traceEvents"]) if e.get("cat") == "send")
    refused(lambda t: t["traceEvents"][send]["args"].update(bytes=1), lambda t: check_step(t, row, 2, 12 * 21, "pipeline", ""))


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    threads_program = str(Path(sys.argv[2]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        for name, (ranks, parallel, more) in LAYOUTS.items():
            changes = merged(merged(BASE, more), {"parallel": parallel})
            run = lamina.train(name, changes, ranks)
            extra = extra_threads(parallel)
            check_run(run, name, ranks, parallel, extra)
            if ranks > 1:
                config = lamina.write_config(f"{name}-threads", changes)
                done = subprocess.run([threads_program, str(ranks), str(config)], env=lamina.environment, check=False,
                                      stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, cwd=lamina.folder)
                expect(done.returncode == 0, f"{ranks} threads ended with {done.returncode}:\n{done.stdout}{done.stderr}")
                check_run(lamina.folder / f"{name}-threads", name, ranks, parallel, extra)
            print(f"{name}: {ranks} ranks, every action, message and byte is in the trace", flush=True)
        negative_checks(lamina.folder / "pipeline")
        plain = lamina.train("plain", merged(BASE, {"logging": {"trace_steps": "none"}}))
        expect(not (plain / "traces").exists(), "a run without traced steps has a folder of traces")
        # Tracing changes no number.
        for a, b in zip(metrics(plain), metrics(lamina.folder / "one"), strict=True):
            expect((a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"]), f"a traced run differs in step {a['step']}")


if __name__ == "__main__":
    main()
