#!/usr/bin/env python3
"""launch/convert_tasks.py on small files in the forms of the data sets' authors; Parquet is only tested where pyarrow is.

    convert_tasks_test.py ROOT

What comes out is compared with the prompts of lm-eval's own tasks, written out here; tests/lm_eval_test.py compares them with lm-eval itself.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HELLASWAG = [{"ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he", "ctx": "A man is sitting on a roof. he",
              "split": "val", "split_type": "indomain", "label": 3, "source_id": "activitynet~v_-JhWjGDPHMY",
              "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.", "is holding a rubik's cube.", "starts pulling up roofing [step] on a roof."]},
             {"ind": 37, "activity_label": "Home and Garden", "ctx_a": "[header] How to clean [title] Get water.  Mix it.", "ctx_b": "", "ctx": "", "split": "val",
              "split_type": "zeroshot", "label": "0", "source_id": "wikihow~1", "endings": ["[substeps] Rinse.", "b", "c", "d"]}]
HELLASWAG_ITEMS = [{"id": "24", "context": "Roof shingle removal: A man is sitting on a roof. He ",
                    "choices": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.", "is holding a rubik's cube.", "starts pulling up roofing on a roof."], "answer": 3},
                   {"id": "37", "context": "Home and Garden: How to clean. Get water. Mix it. ", "choices": [" Rinse.", "b", "c", "d"], "answer": 0}]
ARC = [{"id": "Mercury_7175875", "question": {"stem": "Which is warm?", "choices": [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"},
                                                                                  {"text": "snow", "label": "C"}]}, "answerKey": "B"},
       {"id": "NY_1", "question": {"stem": "How many?", "choices": [{"text": "one", "label": "1"}, {"text": "two", "label": "2"}]}, "answerKey": "1"}]
ARC_ITEMS = [{"id": "Mercury_7175875", "context": "Question: Which is warm?\nAnswer: ", "choices": ["ice", "fire", "snow"], "answer": 1},
             {"id": "NY_1", "context": "Question: How many?\nAnswer: ", "choices": ["one", "two"], "answer": 0}]
PIQA = [{"goal": "Keep an apple fresh.", "sol1": "Freeze it.", "sol2": "Cool it.\u00e9"}, {"goal": "Dry a shoe", "sol1": "Use paper.", "sol2": "Use water."}]
PIQA_ITEMS = [{"context": "Question: Keep an apple fresh.\nAnswer: ", "choices": ["Freeze it.", "Cool it.\u00e9"], "answer": 1},
              {"context": "Question: Dry a shoe\nAnswer: ", "choices": ["Use paper.", "Use water."], "answer": 0}]
MMLU = '"Find the degree, over Q, of\n""x"". ",0,4,2,6,B\nIs it?,"a, b",yes,no,never,C\n'
DEV = "First?,1,2,3,4,A\nSecond?,1,2,3,4,D\nThird?,1,2,3,4,C\n"
HEAD = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
QUESTIONS = ['Find the degree, over Q, of\n"x".\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer: ', "Is it?\nA. a, b\nB. yes\nC. no\nD. never\nAnswer: "]
SHOTS = "First?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: A\n\nSecond?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: D\n\n"
# The columns of the hub's Parquet files.
HUB = {"hellaswag": [{**row, "label": str(row["label"])} for row in HELLASWAG],
       "arc": [{"id": row["id"], "question": row["question"]["stem"], "answerKey": row["answerKey"],
                "choices": {"text": [c["text"] for c in row["question"]["choices"]], "label": [c["label"] for c in row["question"]["choices"]]}} for row in ARC],
       "piqa": [{**row, "label": item["answer"]} for row, item in zip(PIQA, PIQA_ITEMS)],
       "mmlu": [{"question": 'Find the degree, over Q, of\n"x". ', "subject": "abstract_algebra", "choices": ["0", "4", "2", "6"], "answer": 1},
                {"question": "Is it?", "subject": "abstract_algebra", "choices": ["a, b", "yes", "no", "never"], "answer": 2}]}


def mmlu_items(head: str) -> list[dict]:
    return [{"context": head + question, "choices": list("ABCD"), "answer": answer} for question, answer in zip(QUESTIONS, (1, 2))]


def main() -> int:
    script, faults = Path(sys.argv[1]) / "launch" / "convert_tasks.py", []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def lines(rows: list[dict]) -> str:
            return "".join(json.dumps(row) + "\n" for row in rows)

        def convert(*arguments: str) -> subprocess.CompletedProcess:
            return subprocess.run([sys.executable, script, *arguments, "--output", "out.jsonl"], cwd=folder, capture_output=True, text=True, check=False)

        def expect(items: list[dict], *arguments: str) -> None:
            done = convert(*arguments)
            found = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()] if done.returncode == 0 else done.stderr
            if found != items or done.stdout != f"out.jsonl: {len(items)} items\n":
                faults.append(f"{arguments}: {done.stdout}{found}, expected {items}")
            (folder / "out.jsonl").unlink(missing_ok=True)

        def refuse(words: str, *arguments: str) -> None:
            done = convert(*arguments)
            said = done.stderr.strip().splitlines()
            if done.returncode == 0 or words not in done.stderr or (done.returncode == 1 and len(said) != 1) or list(folder.glob("out.jsonl*")):
                faults.append(f"{arguments}: {done.returncode}: {done.stderr}, expected {words}, files {list(folder.glob('out.jsonl*'))}")

        def write(file: str, content: str) -> str:
            (folder / file).write_text(content, encoding="utf-8")
            return file

        hellaswag, arc = write("hellaswag_val.jsonl", lines(HELLASWAG)), write("ARC-Easy-Test.jsonl", lines(ARC))
        piqa, labels = write("valid.jsonl", lines(PIQA)), write("valid-labels.lst", "1\n0\n")
        mmlu, dev = write("abstract_algebra_test.csv", MMLU), write("abstract_algebra_dev.csv", DEV)
        expect(HELLASWAG_ITEMS, "hellaswag", hellaswag)
        expect(ARC_ITEMS, "arc", arc)
        expect(PIQA_ITEMS, "piqa", piqa, "--labels", labels)
        expect(mmlu_items(HEAD), "mmlu", mmlu)
        expect(mmlu_items(HEAD + SHOTS), "mmlu", mmlu, "--shots", "2", "--dev", dev)
        try:
            import pyarrow
            import pyarrow.parquet as parquet
            for benchmark, items in (("hellaswag", HELLASWAG_ITEMS), ("arc", ARC_ITEMS), ("piqa", PIQA_ITEMS), ("mmlu", mmlu_items(HEAD))):
                parquet.write_table(pyarrow.Table.from_pylist(HUB[benchmark]), folder / f"{benchmark}.parquet")
                expect(items, benchmark, f"{benchmark}.parquet")
            refuse("hellaswag.parquet: row 1: sol1: found nothing, expected a text", "piqa", "hellaswag.parquet", "--labels", labels)
        except ImportError:
            write("piqa.parquet", "PAR1")
            refuse("piqa.parquet: is Parquet, and", "piqa", "piqa.parquet")

        bad = {**HELLASWAG[0], "label": ""}
        refuse("bad.jsonl:2: label: found \"\", expected the right choice's index, 0 to 3", "hellaswag", write("bad.jsonl", lines([HELLASWAG[0], bad])))
        refuse("bad.jsonl:1: ctx_b: found nothing, expected a text", "hellaswag",
               write("bad.jsonl", lines([{k: v for k, v in bad.items() if k != "ctx_b"}])))
        refuse("bad.jsonl:1: found no JSON", "arc", write("bad.jsonl", "{\n"))
        refuse("bad.jsonl:1: found a list, expected an object", "arc", write("bad.jsonl", "[]\n"))
        refuse('bad.jsonl:1: answerKey: found "E", expected one of A, B, C', "arc", write("bad.jsonl", lines([{**ARC[0], "answerKey": "E"}])))
        refuse("valid.jsonl:1: label: found nothing", "piqa", piqa)
        refuse("short.lst: found 1 answers, expected the 2 of valid.jsonl", "piqa", piqa, "--labels", write("short.lst", "1\n"))
        refuse("x_test.csv:2: found 3 fields, expected a question", "mmlu", write("x_test.csv", "q,1,2,3,4,A\na,b,c\n"))
        refuse("x_test.csv:1: found 6 fields and the answer 'E', expected", "mmlu", write("x_test.csv", "q,1,2,3,4,E\n"))
        refuse("found 3 examples of abstract_algebra in --dev, expected 5", "mmlu", mmlu, "--shots", "5", "--dev", dev)
        refuse("found CSV, expected JSON lines or Parquet", "arc", mmlu)
        refuse("expected CSV or Parquet", "mmlu", arc)
        refuse("found no items", "piqa", write("none.jsonl", "\n"))
        refuse("gone.jsonl", "piqa", "gone.jsonl")
        refuse("--labels: only with piqa", "arc", arc, "--labels", labels)
        refuse("--shots and --dev: only with mmlu, and together", "mmlu", mmlu, "--shots", "2")
    print("\n".join(faults) or "all conversions are right")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
