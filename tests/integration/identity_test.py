#!/usr/bin/env python3
"""A checkpoint is used only with its own tokenizer, its own model as a whole, and validation text it was not trained on.

    identity_test.py LAMINA
"""
import json
import socket
import sys
import tempfile
from pathlib import Path

from training import Lamina, text

MODEL = {"num_hidden_layers": 4, "attn_res_block_size": 1}
NUM_VALIDATION = 8


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"identity_test: {message}")


def joined(base: dict, changes: dict) -> dict:
    """Both; a value of None stays, for write_config to remove the key by."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = joined(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


class Cases:
    def __init__(self, lamina: Lamina):
        self.lamina = lamina
        self.own, self.other = self.prepare("own", "bpe"), self.prepare("other", "unigram")
        self.changes = {"model": MODEL, "data": self.data(self.own)}
        self.run = lamina.train("run", self.changes)
        inspected = self.ok("inspect", str(self.run)).stdout
        self.hash = next(line.split()[-1] for line in inspected.splitlines() if line.startswith("tokenizer_hash"))
        expect(f"tokenizer {self.hash};" in inspected, f"the fingerprint has another tokenizer: {inspected}")

    def prepare(self, name: str, kind: str) -> str:
        """Token folders of tokenizers that have the same size, and differ."""
        source, model, folder = (self.lamina.folder / f"{name}{suffix}" for suffix in (".txt", ".model", ""))
        source.write_text(text())
        self.ok("tokenizer", "--vocab-size", "310", "--model-type", kind, "--output", str(model), str(source))
        self.ok("prepare", "--tokenizer", f"sentencepiece:{model}", "--output", str(folder), str(source))
        return str(folder)

    @staticmethod
    def data(folder: str, num_sequences: int = NUM_VALIDATION) -> dict:
        return {"train": [{"path": folder}], "validation": {"path": folder, "num_sequences": num_sequences}}

    def ok(self, *arguments: str):
        done = self.lamina.run(list(arguments), errors="replace")
        expect(done.returncode == 0, f"{arguments}: {done.returncode}: {done.stderr}")
        return done

    def refused(self, arguments: list[str], *reasons: str) -> None:
        done = self.lamina.run(arguments, errors="replace")
        expect(done.returncode == 1, f"{arguments} ended with {done.returncode}, expected to be refused: {done.stdout}{done.stderr}")
        last = done.stderr.strip().splitlines()[-1]
        for reason in reasons:
            expect(reason in last, f"{arguments}: '{reason}' is not in: {last}")
        for word in ("loss ", "parameters from", "configuration  "):
            expect(word not in done.stdout + done.stderr, f"{arguments}: has gone on: {done.stdout}{done.stderr}")

    def config(self, name: str, changes: dict) -> str:
        return str(self.lamina.write_config(name, joined(self.changes, changes)))


# Another model than the run's: the change, and the key that the refusal names.
OTHER_MODELS = [({"num_hidden_layers": 2}, "model.num_hidden_layers"), ({"attn_res_block_size": 2}, "model.attn_res_block_size"),
                ({"residual": "standard", "attn_res_block_size": None}, "model.residual"),
                ({"num_attention_heads": 1}, "model.num_attention_heads"), ({"rms_norm_eps": 1e-3}, "model.rms_norm_eps")]


def evaluation(cases: Cases) -> None:
    checkpoint = ["--checkpoint", str(cases.run)]
    own = cases.config("eval", {})
    result = cases.ok("eval", own, *checkpoint)
    expect(result.stdout.startswith("loss "), f"eval: {result.stdout}")
    expect("taken on trust" not in result.stderr, f"eval: {result.stderr}")
    cases.refused(["eval", cases.config("eval-other", {"data": cases.data(cases.other)}), *checkpoint],
                  f"{cases.other}: tokenizer ", f"expected {cases.hash}")
    for i, (model, key) in enumerate(OTHER_MODELS):
        cases.refused(["eval", cases.config(f"eval-{i}", {"model": model}), *checkpoint], f"{key}: ", " found, expected ")
    cases.refused(["eval", own, "data.document_mask=true", *checkpoint], "data.document_mask: found true, expected false")

    # The sequences that the run reserved, or the last of them.
    more = "data.validation.num_sequences=12"
    cases.refused(["eval", own, more, *checkpoint], "found 12 sequences of ", f"expected at most {NUM_VALIDATION}", "the first 4 ")
    cases.refused(["eval", own, "data.seq_len=20", "data.validation.num_sequences=40", *checkpoint], "found 40 sequences of ")
    fewer = cases.ok("eval", own, "data.validation.num_sequences=5", *checkpoint).stdout
    expect("tokens 105\n" in fewer, f"five sequences: {fewer}")
    expect("tokens 252\n" in cases.ok("eval", own, more, "--allow-trained", *checkpoint).stdout, "--allow-trained")


def sampling(cases: Cases) -> None:
    sample = ["sample", "--checkpoint", str(cases.run), "--prompt", "the ", "--max-tokens", "3"]
    cases.ok(*sample)
    cases.ok(*sample, "--tokenizer-from", cases.own)
    cases.refused([*sample, "--tokenizer-from", cases.other], f"{cases.other}: tokenizer ", f"expected {cases.hash}")
    # The checkpoint holds its tokenizer: a run folder that was moved, or whose data went, speaks all the same.
    said, run, away = cases.ok(*sample).stdout, cases.run, cases.lamina.folder / "elsewhere"
    run.rename(away)
    Path(cases.own).rename(cases.own + "-gone")
    expect(cases.ok("sample", "--checkpoint", str(away), *sample[3:]).stdout == said, "the moved run says something else")
    away.rename(run)
    Path(cases.own + "-gone").rename(cases.own)


def starting_from(cases: Cases) -> None:
    start = {"checkpoint": {"init_from": str(cases.run)}}

    def refused(name: str, changes: dict, *reasons: str) -> None:
        cases.refused(["train", cases.config(name, joined(start, changes))], *reasons)
        folder = cases.lamina.folder / name
        left = [str(path) for path in folder.glob("checkpoints/*")] + [str(path) for path in folder.glob("metrics.jsonl")]
        expect(not left, f"{name}: left {left}")

    refused("from-other", {"data": cases.data(cases.other)}, f"{cases.other}: tokenizer ", f"expected {cases.hash}")
    for i, (model, key) in enumerate(OTHER_MODELS):
        refused(f"from-{i}", {"model": model}, f"{key}: ", " found, expected ")
        cases.refused(["check", str(cases.lamina.folder / f"from-{i}.yaml")], f"{key}: ", " found, expected ")
    expect(f"parameters     from {cases.run}" in cases.ok("check", cases.config("from-check", start)).stdout, "check")
    # How it was initialised is not what it computes; other text of the same tokenizer is what starting from a checkpoint is for.
    cases.lamina.train("from-same", joined(cases.changes, joined(start, {
        "model": {"initializer_range": 0.5}, "data": {"document_mask": True, "seq_len": 30, "validation": None}})))


def verifying(cases: Cases) -> None:
    verify = ["--layouts", "1x1x1", "--checkpoint", str(cases.run)]
    cases.ok("verify", cases.config("verify", {}), *verify)
    cases.refused(["verify", cases.config("verify-other", {"data": cases.data(cases.other)}), *verify],
                  f"{cases.other}: tokenizer ", f"expected {cases.hash}")
    for i, (model, key) in enumerate(OTHER_MODELS):
        cases.refused(["verify", cases.config(f"verify-{i}", {"model": model}), *verify], f"{key}: ")


def imported(cases: Cases) -> None:
    """The tokenizer travels with the model; where nobody knows it, that is said."""
    exported, back = cases.lamina.folder / "exported", cases.lamina.folder / "back"
    cases.ok("export", "--checkpoint", str(cases.run), "--output", str(exported), "--dtype", "fp32")
    cases.ok("import", "--from", str(exported), "--output", str(back))
    own = cases.config("imported", {})
    done = cases.ok("eval", own, "--checkpoint", str(back))
    expect("taken on trust" not in done.stderr, f"eval: {done.stderr}")
    expect(done.stdout == cases.ok("eval", own, "--checkpoint", str(cases.run)).stdout, "eval: another loss")
    cases.refused(["eval", cases.config("imported-other", {"data": cases.data(cases.other)}), "--checkpoint", str(back)],
                  f"{cases.other}: tokenizer ", f"expected {cases.hash}")
    more = "data.validation.num_sequences=12"
    cases.refused(["eval", own, more, "--checkpoint", str(back)], f"expected at most {NUM_VALIDATION}", "the first 4 ")
    (exported / "origin.json").write_text("{}")
    cases.refused(["import", "--from", str(exported), "--output", str(cases.lamina.folder / "no")], "origin.json: found no `checkpoint`")
    (exported / "origin.json").unlink()
    config = json.loads((exported / "config.json").read_text())
    expect(config.pop("tokenizer_hash") == cases.hash, f"config.json: {config}")
    (exported / "config.json").write_text(json.dumps(config))
    unknown = cases.lamina.folder / "unknown"
    cases.ok("import", "--from", str(exported), "--output", str(unknown))
    done = cases.ok("eval", own, "--checkpoint", str(unknown))
    expect(f"{unknown}: does not say which tokenizer it belongs to" in done.stderr, f"eval: {done.stderr}")
    expect("on which text it was trained" in done.stderr, f"eval: {done.stderr}")


def origins(cases: Cases) -> None:
    """Who made a folder, where and with what, in all four kinds; and no byte of the tokens knows it."""
    exported = cases.lamina.folder / "with origin"
    cases.ok("export", "--checkpoint", str(cases.run), "--output", str(exported))
    cases.lamina.train("run", joined(cases.changes, {"train": {"num_steps": 2}}))
    starts = [json.loads(line) for line in (cases.run / "starts.jsonl").read_text().splitlines()]
    expect([(row["start"], row["step"]) for row in starts] == [(1, 0), (2, 1)], f"starts {starts}")
    expect(all(row["tokenizer_hash"] == cases.hash and f"tokenizer {cases.hash};" in row["data"] for row in starts), f"starts {starts}")
    host = socket.gethostname()
    for folder, command in ((cases.run, f" train {cases.lamina.folder}/run.yaml"), (cases.own, " prepare --tokenizer sentencepiece:"),
                            (exported, f" export --checkpoint {cases.run} --output '{exported}'")):
        told = cases.ok("inspect", str(folder)).stdout
        for part in (f"{command}", f"hosts          {host}\n", "libraries      ", "HDF5 ", "oneDNN ", "compiled by ", cases.hash):
            expect(part in told, f"inspect {folder}: '{part}' is not in {told}")
    origin = json.loads((exported / "origin.json").read_text())
    trained = origin["checkpoint"]
    expect(trained["data"] == starts[0]["data"] and trained["step"] == 1 and trained["tokenizer_hash"] == cases.hash, f"{origin}")
    expect(trained["command"].endswith(f" train {cases.lamina.folder}/run.yaml") and trained["hosts"] == host, f"{origin}")
    source, model = cases.lamina.folder / "own.txt", cases.lamina.folder / "own.model"
    cases.ok("prepare", "--tokenizer", f"sentencepiece:{model}", "--output", str(cases.lamina.folder / "third"), str(source))
    third = cases.lamina.folder / "third"
    expect((third / "tokens.h5").read_bytes() == (Path(cases.own) / "tokens.h5").read_bytes(), "tokens.h5 differs between two preparations")
    expect("third" in json.loads((third / "origin.json").read_text())["command"], "the command is another's")


def fits(cases: Cases) -> None:
    """Losses on other validation data are no points of one law."""
    shorter = cases.lamina.folder / "shorter.txt"
    shorter.write_text(text(3000))
    other = cases.lamina.folder / "shorter"
    cases.ok("prepare", "--tokenizer", f"sentencepiece:{cases.lamina.folder / 'own.model'}", "--output", str(other), str(shorter))
    sweep = cases.lamina.folder / "sweep.yaml"
    sweep.write_text(f"name: study\nbase: {cases.config('base', {'run': {'output_dir': None}})}\noutput_dir: {cases.lamina.folder}/study\n"
                     f"axes:\n  text:\n    own: {{data.validation.path: {cases.own}}}\n    other: {{data.validation.path: {other}}}\n")
    cases.ok("sweep", str(sweep))
    study = str(cases.lamina.folder / "study")
    cases.refused(["fit", study], "data.validation: ", " as in ", "(--force fits them all the same)")
    done = cases.lamina.run(["fit", study, "--force"])
    expect("losses of other tokens can't be compared" in done.stderr and "(--force" not in done.stderr, f"--force: {done.stderr}")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(Lamina(sys.argv[1], Path(folder)))
        for part in (evaluation, sampling, starting_from, verifying, imported, origins, fits):
            part(cases)
            print(f"{part.__name__}: only with its own tokenizer and model", flush=True)


if __name__ == "__main__":
    main()
