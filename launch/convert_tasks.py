#!/usr/bin/env python3
"""HellaSwag, ARC, PIQA and MMLU, as they are distributed, as items for `lamina eval --tasks` and `train.eval.tasks`.

    launch/convert_tasks.py hellaswag --output hellaswag.jsonl hellaswag_val.jsonl
    launch/convert_tasks.py arc       --output arc_easy.jsonl  ARC-Easy/ARC-Easy-Test.jsonl
    launch/convert_tasks.py piqa      --output piqa.jsonl      valid.jsonl --labels valid-labels.lst
    launch/convert_tasks.py mmlu      --output mmlu.jsonl      data/test/*.csv --shots 5 --dev data/dev/*.csv

Inputs are the JSON lines or CSV of the data sets' authors, or Parquet with the columns of the Hugging Face hub, which needs pyarrow (python3 -m
venv DIR && DIR/bin/pip install pyarrow). The prompts are those of EleutherAI's lm-eval (0.4.13) for the tasks hellaswag, arc_easy and arc_challenge,
piqa and mmlu: a context ends with the space that lm-eval puts before a choice. MMLU's examples are the first ones of --dev of the same subject.
"""
import argparse
import csv
import json
import os
import re
import sys
from pathlib import Path

SOURCES = {"hellaswag": "JSON lines or Parquet", "arc": "JSON lines or Parquet", "piqa": "JSON lines or Parquet", "mmlu": "CSV or Parquet"}


class Refused(Exception):
    """What is wrong, with file and line."""


class Row:
    """A record and where it stands."""

    def __init__(self, place: str, values: dict):
        self.place, self.values = place, values

    def get(self, key: str, *kinds: type):
        value = self.values
        for name in key.split("."):
            if not isinstance(value, dict) or name not in value:
                raise Refused(f"{self.place}: {key}: found nothing, expected {describe(kinds)}")
            value = value[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise Refused(f"{self.place}: {key}: found {json.dumps(value, default=str)[:80]}, expected {describe(kinds)}")
        return value

    def index(self, key: str, count: int) -> int:
        """A number, or digits, below `count`."""
        value = self.get(key, int, str)
        if not re.fullmatch(r"\d+", str(value)) or int(value) >= count:
            raise Refused(f"{self.place}: {key}: found {json.dumps(value)}, expected the right choice's index, 0 to {count - 1}")
        return int(value)

    def texts(self, key: str) -> list[str]:
        values = self.get(key, list)
        if len(values) < 2 or not all(isinstance(value, str) and value for value in values):
            raise Refused(f"{self.place}: {key}: found {json.dumps(values)[:80]}, expected at least two texts, none empty")
        return values


def describe(kinds: tuple[type, ...]) -> str:
    names = {str: "a text", int: "a number", list: "a list", dict: "an object"}
    return " or ".join(names[kind] for kind in kinds)


def item(row: Row, context: str, choices: list[str], answer: int, name: object = None) -> dict:
    if not all(choices):
        raise Refused(f"{row.place}: found an empty choice, expected texts to score")
    out = {} if name is None else {"id": str(name)}
    return {**out, "context": context, "choices": choices, "answer": answer}


def clean(text: str) -> str:
    """lm-eval's hellaswag/utils.py: brackets are left from WikiHow."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(row: Row) -> dict:
    context = f"{row.get('activity_label', str)}: {row.get('ctx_a', str)} {row.get('ctx_b', str).capitalize()}"
    endings = row.texts("endings")
    return item(row, clean(context) + " ", [clean(ending) for ending in endings], row.index("label", len(endings)), row.values.get("ind"))


def arc(row: Row) -> dict:
    if isinstance(row.values.get("question"), dict):   # the authors' form
        question = row.get("question.stem", str)
        choices = [Row(row.place, choice if isinstance(choice, dict) else {}) for choice in row.get("question.choices", list)]
        texts, labels = [c.get("text", str) for c in choices], [c.get("label", str) for c in choices]
    else:
        question, texts, labels = row.get("question", str), row.texts("choices.text"), row.texts("choices.label")
    key = row.get("answerKey", str)
    if key not in labels or len(labels) != len(texts):
        raise Refused(f"{row.place}: answerKey: found {json.dumps(key)}, expected one of {', '.join(labels)}")
    return item(row, f"Question: {question}\nAnswer: ", texts, labels.index(key), row.values.get("id"))


def piqa(row: Row) -> dict:
    choices = [row.get("sol1", str), row.get("sol2", str)]
    return item(row, f"Question: {row.get('goal', str)}\nAnswer: ", choices, row.index("label", 2), row.values.get("id"))


def mmlu_question(row: Row) -> str:
    choices = row.get("choices", list)   # shown and not scored: one may be empty
    if len(choices) != 4 or not all(isinstance(choice, str) for choice in choices):
        raise Refused(f"{row.place}: choices: found {json.dumps(choices)[:80]}, expected four texts")
    lines = [row.get("question", str).strip(), *(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices))]
    return "\n".join(lines) + "\nAnswer: "


class Mmlu:
    def __init__(self, shots: int, examples: list[Row]):
        self.shots, self.examples = shots, {}
        for row in examples:
            text = mmlu_question(row) + "ABCD"[row.index("answer", 4)] + "\n\n"
            self.examples.setdefault(row.get("subject", str), []).append(text)

    def __call__(self, row: Row) -> dict:
        subject = row.get("subject", str)
        examples = self.examples.get(subject, [])[:self.shots]
        if len(examples) < self.shots:
            raise Refused(f"{row.place}: found {len(examples)} examples of {subject} in --dev, expected {self.shots}")
        head = f"The following are multiple choice questions (with answers) about {' '.join(subject.split('_'))}.\n\n"
        return item(row, head + "".join(examples) + mmlu_question(row), list("ABCD"), row.index("answer", 4), row.values.get("id"))


def parquet_rows(path: Path):
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise Refused(f"{path}: is Parquet, and {sys.executable} has no pyarrow: python3 -m venv DIR && DIR/bin/pip install pyarrow") from None
    try:
        rows = parquet.read_table(path, page_checksum_verification=True).to_pylist()
    except (OSError, ValueError) as error:   # pyarrow's errors are of these two
        raise Refused(f"{path}: {' '.join(str(error).split())}") from error
    for number, row in enumerate(rows, 1):
        yield Row(f"{path}: row {number}", row)


def json_rows(path: Path):
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise Refused(f"{path}:{number}: found no JSON: {error.msg}") from error
            if not isinstance(values, dict):
                raise Refused(f"{path}:{number}: found {describe((type(values),)) if type(values) in (str, int, list) else 'no object'}, expected an object")
            yield Row(f"{path}:{number}", values)


def csv_rows(path: Path):
    """MMLU's: question, four choices and the right one's letter, without a header; the file's name begins with the subject."""
    subject = re.sub(r"_(test|val|dev)$", "", path.stem)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        for fields in reader:
            place = f"{path}:{reader.line_num}"
            if len(fields) != 6 or fields[5] not in ("A", "B", "C", "D"):
                raise Refused(f"{place}: found {len(fields)} fields{' and the answer ' + repr(fields[5]) if len(fields) == 6 else ''}, "
                              "expected a question, four choices and A, B, C or D")
            yield Row(place, {"question": fields[0], "choices": fields[1:5], "answer": "ABCD".index(fields[5]), "subject": subject})


def rows_of(path: Path, benchmark: str):
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    is_csv = path.suffix == ".csv"
    if not is_parquet and is_csv != (benchmark == "mmlu"):
        raise Refused(f"{path}: found {'CSV' if is_csv else 'no Parquet and no .csv'}, expected {SOURCES[benchmark]}")
    yield from parquet_rows(path) if is_parquet else csv_rows(path) if is_csv else json_rows(path)


def with_labels(rows: list[Row], paths: list[Path], labels: Path | None) -> list[Row]:
    """PIQA's authors keep the answers in a file of their own, one a line."""
    if labels is None:
        return rows
    answers = labels.read_text(encoding="utf-8").split()
    if len(answers) != len(rows):
        raise Refused(f"{labels}: found {len(answers)} answers, expected the {len(rows)} of {paths[0]}")
    return [Row(row.place, {**row.values, "label": answer}) for row, answer in zip(rows, answers)]


def convert(options: argparse.Namespace) -> list[dict]:
    rows = [row for path in options.paths for row in rows_of(path, options.benchmark)]
    if not rows:
        raise Refused(f"{options.paths[0]}: found no items, expected some")
    if options.benchmark == "mmlu":
        return list(map(Mmlu(options.shots, [row for path in options.dev for row in rows_of(path, "mmlu")]), rows))
    if options.benchmark == "piqa":
        return list(map(piqa, with_labels(rows, options.paths, options.labels)))
    return list(map({"hellaswag": hellaswag, "arc": arc}[options.benchmark], rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=sorted(SOURCES))
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="items, one a line")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="piqa: the right choices, 0 or 1, one a line")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="mmlu: solved examples before each question")
    parser.add_argument("--dev", nargs="+", default=[], type=Path, metavar="FILE", help="mmlu: where the examples are")
    options = parser.parse_args()
    if options.labels and options.benchmark != "piqa":
        parser.error("--labels: only with piqa")
    if (options.shots or options.dev) and options.benchmark != "mmlu" or options.shots < 0 or bool(options.shots) != bool(options.dev):
        parser.error("--shots and --dev: only with mmlu, and together")
    try:
        items = convert(options)
        half = options.output.with_name(options.output.name + ".tmp")
        try:
            half.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in items), encoding="utf-8")
            os.replace(half, options.output)
        finally:
            half.unlink(missing_ok=True)
    except (Refused, OSError, UnicodeError, csv.Error) as error:
        print(f"convert_tasks: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {len(items)} items")
    return 0


if __name__ == "__main__":
    sys.exit(main())
