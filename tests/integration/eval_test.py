#!/usr/bin/env python3
"""`lamina eval` on texts, validation sets and multiple-choice items, and `train.eval`, against the float64 reference.

    eval_test.py LAMINA
"""
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import compare_dump
import event_files
import reference
from training import Lamina, merged, metrics, text

STEPS, SEQ_LEN, END = 4, 21, 256
MODEL = {"mixers": ["kda", "mla"], "linear_num_heads": 2, "linear_head_dim": 16}
ITEMS = [{"context": "the quick brown ", "choices": ["fox", "dog", "wizards mix vexing potions;"], "answer": 0, "id": "quick"},
         {"context": "Question: what did each layer do?\nAnswer:", "choices": [" added to it", " forgot", " \u00e9t\u00e9"], "answer": 2},
         {"context": "", "choices": ["none of them knew", "jumps over a lazy dog"], "answer": 1},
         {"context": "the quick brown fox jumps over a lazy dog while seven wizards ", "choices": ["mix", "sum"], "answer": 0}]
NAMES = ("acc", "acc_norm", "acc_bytes", "logprob")


class Model:
    """The float64 reference with the parameters after the last step."""

    def __init__(self, dump: compare_dump.Dump):
        self.parameters = dump.parameters_after
        self.config = compare_dump.model_config(dump.config, dump.parameters)

    def log_probabilities(self, tokens: list[int]) -> list[float]:
        """Of each token but the first, given those before it."""
        inputs, targets = torch.tensor([tokens[:-1]]), torch.tensor([tokens[1:]])
        with torch.no_grad():
            logits = reference.forward(self.parameters, self.config, inputs, targets)["logits"][0].double()
        return torch.log_softmax(logits, -1).gather(1, targets[0][:, None])[:, 0].tolist()


def item_scores(model: Model, items: list[dict], context: int | None = None) -> list[list[float]]:
    scores = []
    for item in items:
        scores.append([])
        for choice in item["choices"]:
            before = len(item["context"].rstrip().encode())
            tokens = [END, *(item["context"] + choice).encode()]
            scored = len(tokens) - 1 - before
            if context:
                tokens = tokens[-(context + 1):]
            scores[-1].append(sum(model.log_probabilities(tokens)[-scored:]))
    return scores


def expected_task(items: list[dict], scores: list[list[float]]) -> dict:
    def accuracy(lengths) -> list[int]:
        chosen = [max(range(len(s)), key=lambda i, s=s, n=n: s[i] / n[i]) for s, n in zip(scores, lengths)]
        return [int(c == item["answer"]) for c, item in zip(chosen, items)]

    values = {"acc": accuracy([[1] * len(item["choices"]) for item in items]),
              "acc_norm": accuracy([[len(choice) for choice in item["choices"]] for item in items]),
              "acc_bytes": accuracy([[len(choice.encode()) for choice in item["choices"]] for item in items]),
              "logprob": [s[item["answer"]] for s, item in zip(scores, items)]}
    out = {"items": len(items)}
    for name, each in values.items():
        n, mean = len(each), sum(each) / len(each)
        out[name], out[name + "_stderr"] = mean, math.sqrt(sum((x - mean) ** 2 for x in each) / (n - 1) / n)
    return out


def expected_text(model: Model, documents: list[bytes], context: int) -> dict:
    total, count = 0.0, 0
    for document in documents:
        tokens = [END, *document]
        for begin in range(0, len(tokens) - 1, context):
            piece = tokens[begin:begin + context + 1]
            total -= sum(model.log_probabilities(piece))
            count += len(piece) - 1
    return {"loss": total / count, "perplexity": math.exp(total / count), "bits_per_byte": total / math.log(2) / count, "tokens": count, "bytes": count}


class Test:
    def __init__(self, lamina: Lamina):
        self.lamina, self.faults, self.checks = lamina, [], 0

    def close(self, what: str, found, expected, limit: float = 1e-5) -> None:
        self.checks += 1
        if not isinstance(found, (int, float)) or not abs(found - expected) <= limit * max(1.0, abs(expected)):
            self.faults.append(f"{what}: found {found}, expected {expected}")

    def equal(self, what: str, found, expected) -> None:
        self.checks += 1
        if found != expected:
            self.faults.append(f"{what}: found {found}, expected {expected}")

    def agree(self, what: str, found: dict, expected: dict) -> None:
        for key, value in expected.items():
            self.close(f"{what}: {key}", found.get(key), value)

    def eval(self, *arguments: str, ranks: int = 1, stdin: bytes | None = None) -> dict:
        command = self.lamina.command(["eval", *arguments, "--json"], ranks)
        done = subprocess.run(command, env=self.lamina.environment, cwd=self.lamina.folder, capture_output=True, input=stdin, timeout=300, check=False)
        if done.returncode != 0:
            raise SystemExit(f"eval_test: {arguments}: {done.returncode}\n{done.stdout.decode()}{done.stderr.decode()}")
        return json.loads(done.stdout)   # one object, and nothing else

    def refused(self, what: str, arguments: list[str], *words: str) -> None:
        done = self.lamina.run(["eval", "--checkpoint", "run", *arguments])
        self.checks += 1
        said = [line for line in done.stderr.splitlines() if " E error: " in line]
        if done.returncode != 1 or done.stdout or len(said) != 1 or not all(word in said[0] for word in words):
            self.faults.append(f"{what}: exit {done.returncode}: {done.stdout}{done.stderr}, expected one line with {words}")


def check_validation(test: Test, model: Model) -> None:
    own = test.eval("--checkpoint", "run")
    test.equal("what a run folder is evaluated on", (own["step"], own["context"], len(own["validation"]), "tasks" in own), (STEPS, SEQ_LEN, 1, False))
    last = metrics(test.lamina.folder / "run")[-1]
    for key, name in (("loss", "validation_loss"), ("bits_per_byte", "validation_bits_per_byte")):
        test.close(f"the run's own {name}", own["validation"][0][key], last[name], 1e-6)
    test.equal("with the experiment file", test.eval("run.yaml", "--checkpoint", "run")["validation"], own["validation"])
    test.equal("of a checkpoint", test.eval("train.micro_batch_size=1", "--checkpoint", f"run/checkpoints/step-{STEPS:08d}")["validation"][0]["tokens"],
               own["validation"][0]["tokens"])
    # The same targets in one long sequence, and in pieces that don't divide it, as the reference computes them.
    data = [*text().encode(), END]
    begin = ((len(data) - 1) // SEQ_LEN - 4) * SEQ_LEN
    tokens = data[begin:begin + 4 * SEQ_LEN + 1]
    for context in (10000, 4 * SEQ_LEN, 50, 8):
        losses = [-each for at in range(0, len(tokens) - 1, context) for each in model.log_probabilities(tokens[at:at + context + 1])]
        found = test.eval("--checkpoint", "run", "--context", str(context))["validation"][0]
        test.close(f"context {context}", found["loss"], sum(losses) / len(losses))
        test.equal(f"context {context}: tokens and bytes", (found["tokens"], found["bytes"]), tuple(own["validation"][0][key] for key in ("tokens", "bytes")))
    both = test.eval("--checkpoint", "run", "--validation", "tokens", "other", "--allow-trained", ranks=2)
    test.equal("sets", [each["path"] for each in both["validation"]], ["tokens", "other"])
    test.close("the first of two sets", both["validation"][0]["loss"], own["validation"][0]["loss"], 1e-6)


def check_texts(test: Test, model: Model) -> None:
    documents = [b"the quick brown fox jumps over a lazy dog while seven wizards mix vexing potions", "caf\u00e9".encode()]
    (test.lamina.folder / "two.jsonl").write_bytes(b"".join(json.dumps({"text": d.decode()}).encode() + b"\n" for d in documents))
    for context in (None, 5, 4 * SEQ_LEN):
        found = test.eval("--checkpoint", "run", "--text", "two.jsonl", *(["--context", str(context)] if context else []))
        test.equal("only the text", (len(found["texts"]), "validation" in found), (1, False))
        test.agree(f"text, context {context}", found["texts"][0], expected_text(model, documents, context or SEQ_LEN))
    piped = [test.eval("--checkpoint", "run", "--text", "-", ranks=ranks, stdin=documents[0])["texts"][0] for ranks in (1, 2)]
    for found in piped:
        test.agree("standard input", found, expected_text(model, documents[:1], SEQ_LEN))


def check_tasks(test: Test, model: Model) -> None:
    scores = item_scores(model, ITEMS)
    expected = expected_task(ITEMS, scores)
    for ranks, layout in ((1, []), (2, []), (2, ["parallel.pipeline=2"]), (3, ["parallel.pipeline=3"])):
        found = test.eval("--checkpoint", "run", "--tasks", "items.jsonl", "few.jsonl", "--per-item", "each.jsonl", *layout, ranks=ranks)
        what = f"{ranks} ranks {layout}"
        test.agree(what, found["tasks"][0], expected)
        lines = [json.loads(line) for line in (test.lamina.folder / "each.jsonl").read_text().splitlines()]
        test.equal(f"{what}: lines", [line["task"] for line in lines], ["items"] * len(ITEMS) + ["few"])
        test.equal(f"{what}: id", lines[0]["id"], "quick")
        for i, (line, item) in enumerate(zip(lines, scores)):
            for j, score in enumerate(item):
                test.close(f"{what}: item {i} choice {j}", line["logprobs"][j], score)
        test.equal(f"{what}: one item has no error", found["tasks"][1]["acc_stderr"], None)
    cut = test.eval("--checkpoint", "run", "--tasks", "items.jsonl", "--context", "30")["tasks"][0]
    test.agree("cut to 30 tokens", cut, expected_task(ITEMS, item_scores(model, ITEMS, 30)))


def check_probes(test: Test) -> None:
    one, two = (test.eval("--checkpoint", "run", "--probes", "--probe-lengths", "150", "--probe-items", "2", ranks=ranks)["probes"] for ranks in (1, 2))
    test.equal("probes", [(p["probe"], p["length"], p["depth"], p["items"]) for p in one],
               [(name, 150, depth, 2) for name in ("needle", "recall") for depth in (0, 0.25, 0.5, 0.75, 1)])
    for mine, other in zip(one, two):
        test.agree(f"probe {mine['probe']} at {mine['depth']} on two ranks", other, {key: mine[key] for key in ("acc", "logprob", "logprob_stderr")})


def check_refusals(test: Test) -> None:
    bad = test.lamina.folder / "bad.jsonl"
    bad.write_text(json.dumps(ITEMS[0]) + "\n" + json.dumps({**ITEMS[0], "answer": 3}) + "\n")
    test.refused("a bad item", ["--tasks", "bad.jsonl", "--per-item", "none.jsonl"], "bad.jsonl:2: answer: found the number 3, expected the index of", "0 to 2")
    test.equal("nothing is written", (test.lamina.folder / "none.jsonl").exists(), False)
    test.refused("no file", ["--tasks", "gone.jsonl"], "gone.jsonl")
    test.refused("no items", ["--text", "two.jsonl", "--per-item", "x"], "--per-item: found no items, expected --tasks")
    test.refused("an empty text", ["--text", "empty.txt"], "empty.txt: found no text")
    test.refused("short probes", ["--probes", "--probe-lengths", "20"], "--probe-lengths: found 20, expected at least")
    test.refused("two texts", ["--text", "-", "-"], "--text: found - twice")
    test.refused("sources of a text", ["--text", "two.jsonl", "--ablate-sources"], "--ablate-sources: found no validation set")


def check_training(test: Test, changes: dict) -> None:
    """Rows and events have what `lamina eval` says; other layouts, resumed and interrupted runs the same."""
    lamina = test.lamina
    rows = {row["step"]: row.get("tasks") for row in metrics(lamina.folder / "run")}
    test.equal("rows with tasks", [step for step, tasks in rows.items() if tasks], [2, STEPS])
    now = test.eval("--checkpoint", "run", "--tasks", "items.jsonl", "--context", str(SEQ_LEN))["tasks"][0]
    for name in NAMES:
        test.close(f"train.eval: {name}", rows[STEPS]["items"][name], now[name], 1e-6)
    events = event_files.read(next((lamina.folder / "run").glob("events.out.tfevents.*")))
    test.equal("event", [event["scalars"]["tasks/items/logprob"] for event in events if "tasks/items/logprob" in event.get("scalars", {})],
               [event_files.rounded(rows[step]["items"]["logprob"]) for step in (2, STEPS)])
    lamina.train("without", merged(changes, {"train": {"eval": None}}))
    for key in ("loss", "grad_norm", "validation_loss"):
        test.equal(f"{key} of a run without tasks", [row.get(key) for row in metrics(lamina.folder / "without")], [row.get(key) for row in metrics(lamina.folder / "run")])
    lamina.train("ranks", merged(changes, {"parallel": {"pipeline": 2}}), ranks=2)
    for row in metrics(lamina.folder / "ranks"):
        for name in NAMES if rows[row["step"]] else ():
            test.close(f"two ranks, step {row['step']}: {name}", row["tasks"]["items"][name], rows[row["step"]]["items"][name])
    lamina.train("resumed", merged(changes, {"train": {"num_steps": 2}}))
    # As a stop leaves the row when it comes during the evaluation.
    path = lamina.folder / "resumed" / "metrics.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])
    del last["tasks"]
    path.write_text("".join(path.read_text().splitlines(True)[:-1]) + json.dumps(last) + "\n")
    lamina.train("resumed", changes)
    # Of a damaged checkpoint nothing is taken, nor its configuration.
    (lamina.folder / "resumed" / "checkpoints" / f"step-{STEPS:08d}" / "checkpoint.h5").write_bytes(b"damaged")
    test.equal("the checkpoint before a damaged one", test.eval("--checkpoint", "resumed")["step"], 2)
    test.equal("resumed", {row["step"]: row.get("tasks") for row in metrics(lamina.folder / "resumed")}, rows)
    events = [event["scalars"] for file in sorted((lamina.folder / "resumed").glob("events.*")) for event in event_files.read(file)[2:]]
    test.equal("events of a resumed run", sum("tasks/items/acc" in scalars for scalars in events), 3)   # step 2 twice
    done = lamina.run(["check", "run.yaml"])
    test.equal("check", "tasks          items.jsonl: 4 items, 10 choices; 6 of them" in done.stdout, True)
    for change, words in (("train.eval.tasks=[a/x.jsonl, b/x.jsonl]", "metrics call both 'x'"), ("train.eval.tasks=[bad.jsonl]", "bad.jsonl:2: answer"),
                          ("train.eval.tasks=null", "train.eval.interval has no effect without train.eval.tasks")):
        for command in ("check", "train"):
            done = lamina.run([command, "run.yaml", change, "run.output_dir=refused"])
            test.equal(f"{command} {change}: {done.stderr}", (done.returncode, words in done.stderr, (lamina.folder / "refused").exists()), (1, True, False))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        (lamina.folder / "other.txt").write_text(text(2000)[::-1])
        lamina.run(["prepare", "--output", "other", "other.txt"])
        (lamina.folder / "empty.txt").write_text("")
        for name, items in (("items", ITEMS), ("few", ITEMS[:1])):
            (lamina.folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        changes = {"model": MODEL, "data": {"train": [{"path": "tokens"}], "validation": {"path": "tokens", "num_sequences": 4, "interval": 0}},
                   "train": {"num_steps": STEPS, "eval": {"tasks": ["items.jsonl"], "interval": 2}}, "checkpoint": {"interval": 2}}
        model = Model(compare_dump.Dump(str(lamina.dump("run", STEPS, changes))))
        test = Test(lamina)
        check_validation(test, model)
        check_texts(test, model)
        check_tasks(test, model)
        check_probes(test)
        check_refusals(test)
        check_training(test, changes)
    print("\n".join(test.faults) or f"{test.checks} checks passed")
    return 1 if test.faults else 0


if __name__ == "__main__":
    sys.exit(main())
