#!/usr/bin/env python3
"""A run folder as an offline run of Weights & Biases. Needs wandb (python3 -m venv DIR && DIR/bin/pip install wandb), and no account.

    launch/wandb_offline.py [--project NAME] [--output DIR] RUN_FOLDER...
    wandb sync DIR/wandb/offline-run-*          # later, where there is an account

Configuration, every number of metrics.jsonl and layers.jsonl under TensorBoard's tags, and the summary. DIR is the run folder unless --output
says otherwise. A run keeps its id: when it has gone on, convert it again, and `wandb sync` brings the rest to the same run.
"""
import argparse
import hashlib
import json
import sys
from datetime import datetime
from pathlib import Path

NAN = float("nan")


class Mistake(Exception):
    """What a user can mend, in one line."""


def rows_of(path: Path) -> list[dict]:
    if not path.is_file():
        raise Mistake(f"{path}: not found, expected the folder of a run")
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break   # half written by a run that lives or was killed
            raise Mistake(f"{path}: line {number}: no JSON object: {error}") from None
    return rows


def flattened(value, prefix: str) -> dict:
    """The numbers of a row by path. null stands for one that is not finite."""
    if value is None:
        return {prefix: NAN}
    if isinstance(value, bool) or isinstance(value, str):
        return {}
    if isinstance(value, (int, float)):
        return {prefix: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    result = {}
    for key, entry in entries:
        result |= flattened(entry, f"{prefix}/{key}" if prefix else str(key))
    return result


def numbers_by_step(folder: Path) -> dict[int, dict]:
    steps = {}
    for row in rows_of(folder / "metrics.jsonl"):
        numbers = flattened({key: value for key, value in row.items() if key != "step"}, "")
        if "time" in row:
            numbers["_timestamp"] = datetime.fromisoformat(row["time"].replace("Z", "+00:00")).timestamp()
        steps[row["step"]] = numbers
    if not steps:
        raise Mistake(f"{folder / 'metrics.jsonl'}: found no step")
    if (folder / "layers.jsonl").is_file():
        for row in rows_of(folder / "layers.jsonl"):
            place = f"{row['layer']:03}.{row['sublayer']}"
            for key, value in row.items():
                if key not in ("step", "layer", "sublayer") and row["step"] in steps:
                    numbers = flattened(value, f"layers/{key}/{place}")
                    steps[row["step"]] |= numbers
    return dict(sorted(steps.items()))


def convert(folder: Path, output: Path, project: str, wandb) -> Path:
    import yaml   # wandb brings it
    if not (folder / "config.yaml").is_file():
        raise Mistake(f"{folder}: found no config.yaml, expected the folder of a run")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    steps = numbers_by_step(folder)
    first = rows_of(folder / "metrics.jsonl")[0]   # stays the same however far the run goes, and wherever its folder is moved
    identity = hashlib.sha256(json.dumps([config["run"]["name"], first], sort_keys=True).encode()).hexdigest()[:12]
    times = [numbers["_timestamp"] for numbers in steps.values() if "_timestamp" in numbers]
    diverged = folder / "diverged.json"
    settings = wandb.Settings(mode="offline", console="off", silent=True, disable_git=True, disable_code=True, save_code=False,
                              x_disable_stats=True, x_disable_meta=True, **({"x_start_time": times[0]} if times else {}))
    run = wandb.init(dir=str(output), project=project, name=config["run"]["name"], id=identity, config=config, settings=settings)
    place = Path(run.dir).parent
    for step, numbers in steps.items():
        run.log(numbers, step=step)
    if diverged.is_file():
        run.summary["diverged"] = json.loads(diverged.read_text(encoding="utf-8"))["reason"]
    run.finish(exit_code=1 if diverged.is_file() else 0)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--project", default="lamina", help="default: lamina")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the run folder")
    options = parser.parse_args()
    try:
        import wandb
    except ImportError:
        print(f"wandb_offline: {sys.executable} has no wandb: python3 -m venv DIR && DIR/bin/pip install wandb", file=sys.stderr)
        return 1
    for folder in options.folders:
        output = options.output or folder
        try:
            if options.output and not output.is_dir():
                raise Mistake(f"{output}: no such folder")
            place = convert(folder, output, options.project, wandb)
        except (Mistake, OSError, wandb.Error) as error:
            print(f"wandb_offline: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
        print(f"{folder}: wandb sync {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
