#!/usr/bin/env python3
"""EleutherAI's lm-eval on an exported model, and `lamina eval --tasks` on the checkpoint. Not part of ctest: needs the network, or lm-eval.

    lm_eval_test.py LAMINA [VENV]

VENV is a virtual environment with lm-eval 0.4.13, transformers 5.24.0 and torch; without it one is made in a temporary folder (pip install
"lm-eval[hf]==0.4.13" transformers==5.24.0 torch). Run it with a Python that has yaml, as for the integration tests.

Two models with Attention Residuals are trained for some steps and exported in fp32; lm-eval loads them with trust_remote_code. Small files in the forms of
HellaSwag, ARC, PIQA and MMLU (also with examples) go through lm-eval's own tasks, whose data alone are replaced, and through
launch/convert_tasks.py. The log-probability of each choice of each item must agree within 1e-4, accuracies, normalised accuracies and standard errors to the digit.
"""
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))
from training import WORDS, Lamina  # noqa: E402

VERSIONS = {"lm-eval": "lm-eval[hf]==0.4.13", "transformers": "transformers==5.24.0"}
TOLERANCE = 1e-4
ITEMS = 24   # of each benchmark
SHOTS = 3
KDA = {"mixers": ["kda", "kda", "kda", "mla"], "linear_num_heads": 2, "linear_head_dim": 16}
EXPERTS = {"num_experts": 6, "num_experts_per_token": 2, "moe_intermediate_size": 20, "routed_scaling_factor": 2.446}
MODELS = {"block": ("bytes", {"residual": "block_attnres", **KDA, **EXPERTS}),
          "full": ("bpe", {"residual": "full_attnres", "attn_res_block_size": None, "gate_lower_bound": -5, **KDA})}

# Runs inside the virtual environment: lm-eval's own tasks with other data. Arguments: the model, the folder of the tasks, their names.
HARNESS = r"""
import json, sys
import lm_eval, torch, transformers
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, get_task_dict
folder, tasks, names = sys.argv[1], sys.argv[2], sys.argv[3:]
model = HFLM(pretrained=folder, trust_remote_code=True, dtype="float32", device="cpu", batch_size=5)
out = evaluate(model, get_task_dict(names, TaskManager(include_path=tasks)), log_samples=True)
found = {"versions": [lm_eval.__version__, transformers.__version__, torch.__version__], "class": type(model.model).__name__}
for name in names:
    samples = sorted(out["samples"][name], key=lambda one: one["doc_id"])
    found[name] = {"results": {key: value for key, value in out["results"][name].items() if isinstance(value, float)},
                   "logprobs": [[float(response[0]) for response in one["filtered_resps"]] for one in samples],
                   "first": samples[0]["arguments"]}
print("\n" + json.dumps(found, default=str))
"""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"lm_eval_test: {message}")


def make_environment(folder: Path) -> Path:
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "install", "-q", *VERSIONS.values(), "torch"], check=True)
    return environment


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Benchmarks:
    """Items of random words: as the authors distribute them, and as the hub has them, from which lm-eval reads."""

    def __init__(self, folder: Path, package: Path):
        self.folder, self.package, self.random, self.names = folder, package, random.Random(4), []
        self.hellaswag()
        self.arc()
        self.piqa()
        self.mmlu()

    def words(self, least: int, most: int) -> str:
        return " ".join(self.random.choice(WORDS[:-1]) for _ in range(self.random.randint(least, most)))

    def add(self, name: str, original: str, data: dict[str, Path], arguments: list[str], shots: int = 0) -> None:
        """lm-eval's task `original` on other data, and the converted items."""
        self.names.append(name)
        files = "".join(f"    {split}: {path}\n" for split, path in data.items())
        (self.folder / f"{name}.yaml").write_text(f"include: {self.package / original}\ntask: {name}\ntag: null\ndataset_path: json\n"
                                                  f"dataset_name: null\ndataset_kwargs:\n  data_files:\n{files}training_split: null\nnum_fewshot: {shots}\n")
        done = subprocess.run([sys.executable, ROOT / "launch" / "convert_tasks.py", *arguments, "--output", self.folder / f"{name}.jsonl"],
                              capture_output=True, text=True, check=False)
        expect(done.returncode == 0, done.stderr)

    def hellaswag(self) -> None:
        rows = [{"ind": i, "activity_label": self.words(1, 3), "ctx_a": self.words(5, 12) + " [title] " + self.words(2, 4), "ctx_b": self.words(0, 3) if i % 3 else "",
                 "endings": [self.words(2, 9) + (" [step] caf\u00e9" if self.random.random() < 0.3 else "") for _ in range(4)],
                 "label": str(self.random.randrange(4))} for i in range(ITEMS)]
        path = lines(self.folder / "hellaswag_val.jsonl", rows)
        self.add("own_hellaswag", "hellaswag/hellaswag.yaml", {"validation": path}, ["hellaswag", str(path)])

    def arc(self) -> None:
        authors, hub = [], []
        for i in range(ITEMS):
            count = self.random.choice((3, 4, 5))
            labels = list("ABCDE" if i % 4 else "12345")[:count]
            texts, question = [self.words(1, 6) for _ in labels], self.words(4, 15) + "?"
            key = self.random.choice(labels)
            authors.append({"id": f"item-{i}", "question": {"stem": question, "choices": [{"text": t, "label": l} for t, l in zip(texts, labels)]}, "answerKey": key})
            hub.append({"id": f"item-{i}", "question": question, "choices": {"text": texts, "label": labels}, "answerKey": key})
        self.add("own_arc", "arc/arc_easy.yaml", {split: lines(self.folder / "arc-hub.jsonl", hub) for split in ("validation", "test")},
                 ["arc", str(lines(self.folder / "ARC-Easy-Test.jsonl", authors))])

    def piqa(self) -> None:
        rows = [{"goal": self.words(4, 12), "sol1": self.words(3, 14), "sol2": self.words(3, 14)} for _ in range(ITEMS)]
        labels = [self.random.randrange(2) for _ in rows]
        (self.folder / "valid-labels.lst").write_text("".join(f"{label}\n" for label in labels))
        hub = lines(self.folder / "piqa-hub.jsonl", [{**row, "label": label} for row, label in zip(rows, labels)])
        self.add("own_piqa", "piqa/piqa.yaml", {"validation": hub},
                 ["piqa", str(lines(self.folder / "valid.jsonl", rows)), "--labels", str(self.folder / "valid-labels.lst")])

    def mmlu(self) -> None:
        splits = {}
        for split in ("test", "dev"):
            rows = [{"question": self.words(4, 12) + " ", "subject": "anatomy", "choices": [self.words(1, 4) for _ in range(4)],
                     "answer": self.random.randrange(4)} for _ in range(ITEMS if split == "test" else 5)]
            fields = [[row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in rows]
            (self.folder / f"anatomy_{split}.csv").write_text("".join(",".join(f'"{f}"' for f in line) + "\n" for line in fields))
            splits[split] = lines(self.folder / f"mmlu-{split}.jsonl", rows)
        test, dev = (str(self.folder / f"anatomy_{split}.csv") for split in ("test", "dev"))
        self.add("own_mmlu", "mmlu/default/mmlu_anatomy.yaml", splits, ["mmlu", test])
        self.add("own_mmlu_shots", "mmlu/default/mmlu_anatomy.yaml", splits, ["mmlu", test, "--shots", str(SHOTS), "--dev", dev], SHOTS)


def make_model(lamina: Lamina, name: str) -> Path:
    """A run of some steps, and its exported folder."""
    tokenizer, model = MODELS[name]
    tokens, spec = lamina.folder / f"tokens-{tokenizer}", "bytes"
    if tokenizer != "bytes":
        spec = f"sentencepiece:{lamina.folder / 'bpe'}.model"
        run(lamina, "tokenizer", "--vocab-size", "340", "--output", spec.split(":")[1], str(lamina.folder / "text.txt"))
    run(lamina, "prepare", "--tokenizer", spec, "--output", str(tokens), str(lamina.folder / "text.txt"))
    lamina.train(name, {"data": {"train": [{"path": str(tokens)}], "seq_len": 64}, "model": model, "train": {"num_steps": 12}})
    folder = lamina.folder / f"{name}-exported"
    run(lamina, "export", "--checkpoint", str(lamina.folder / name), "--output", str(folder), "--dtype", "fp32")
    return folder


def run(lamina: Lamina, *arguments: str) -> str:
    done = lamina.run(list(arguments))
    expect(done.returncode == 0, f"{arguments}: {done.stderr}")
    return done.stdout


def harness(environment: Path, model: Path, benchmarks: Benchmarks) -> dict:
    with tempfile.TemporaryDirectory() as home:   # of the code and the data that it copies
        done = subprocess.run([str(environment / "bin" / "python"), "-c", HARNESS, str(model), str(benchmarks.folder), *benchmarks.names],
                              capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
                              env={**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    expect(done.returncode == 0, f"lm-eval failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(name: str, task: str, theirs: dict, ours: dict, items: list[dict]) -> None:
    expect(len(items) == len(theirs["logprobs"]) == ITEMS, f"{name} {task}: {len(items)} items, lm-eval has {len(theirs['logprobs'])}")
    worst = 0.0
    for item, expected in zip(items, theirs["logprobs"]):
        expect(len(item["logprobs"]) == len(expected), f"{name} {task} line {item['line']}: {item['logprobs']}, lm-eval has {expected}")
        worst = max(worst, *(abs(a - b) for a, b in zip(item["logprobs"], expected)))
    print(f"{name} {task}: log-probabilities differ by at most {worst:.1e}; acc {ours['acc']:.4f}, lm-eval {theirs['results']['acc,none']:.4f}", flush=True)
    expect(worst < TOLERANCE, f"{name} {task}: log-probabilities differ by {worst}, expected less than {TOLERANCE}; lm-eval's first requests: {theirs['first']}")
    checked = [key for key in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr") if f"{key},none" in theirs["results"]]
    expect("acc_stderr" in checked and ("acc_norm" in checked or "mmlu" in task), f"{name} {task}: lm-eval says {theirs['results']}")
    for key in checked:
        expect(abs(ours[key] - theirs["results"][f"{key},none"]) < 1e-12, f"{name} {task}: {key} {ours[key]}, lm-eval {theirs['results']}")


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(sys.argv[2]).resolve() if len(sys.argv) == 3 else make_environment(Path(folder))
        where = [str(environment / "bin" / "python"), "-c", "import lm_eval, pathlib; print(pathlib.Path(lm_eval.__file__).parent / 'tasks')"]
        package = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        (lamina.folder / "tasks").mkdir()
        benchmarks = Benchmarks(lamina.folder / "tasks", package)
        files = [str(benchmarks.folder / f"{name}.jsonl") for name in benchmarks.names]
        for name in MODELS:
            exported = make_model(lamina, name)
            ours = json.loads(run(lamina, "eval", "--checkpoint", name, "--tasks", *files, "--per-item", "items.jsonl", "--json"))
            items = [json.loads(line) for line in (lamina.folder / "items.jsonl").read_text().splitlines()]
            theirs = harness(environment, exported, benchmarks)
            print(f"lm-eval {theirs['versions'][0]}, transformers {theirs['versions'][1]}, torch {theirs['versions'][2]}: {theirs['class']}", flush=True)
            expect(theirs["class"] == "LaminaForCausalLM", f"{name}: lm-eval loaded {theirs['class']}")
            for task, result in zip(benchmarks.names, ours["tasks"]):
                compare(name, task, theirs[task], result, [item for item in items if item["task"] == task])


if __name__ == "__main__":
    main()
