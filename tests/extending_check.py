#!/usr/bin/env python3
"""Fails when a recipe of docs/extending.md and the tree disagree.

    extending_check.py ROOT        checks the page, then that every kind of fault is found in a made-up tree

A row of a table names a file and, in its last column, what stands in it: both must be there. "Example: `NAME`, every source file" lists
the sources that say NAME: none may be missing from the section's table.
"""
import re
import sys
import tempfile
from pathlib import Path

PAGE = "docs/extending.md"
ROOMS = ["core", "configs", "parallel", "data", "model", "inference", "evaluation", "trainer", "launch", "bench"]
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
EXAMPLE = re.compile(r"^Example: [^`\n]*`([^`]+)`.*every source file", re.MULTILINE)
ROW = re.compile(r"^\| `([^`]+)` \|.*\|([^|]*)\|$", re.MULTILINE)


def sources(root: Path) -> dict[str, str]:
    files = [file for room in ROOMS for file in (root / room).rglob("*") if file.suffix in SUFFIXES and file.is_file()]
    return {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files}


def check(root: Path) -> tuple[list[str], int]:
    """The faults of the page, one line each, and the number of rows read."""
    faults, num_rows = [], 0
    texts = sources(root)
    for section in re.split(r"^## ", (root / PAGE).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title = section.split("\n", 1)[0]
        rows = ROW.findall(section)
        num_rows += len(rows)
        if not rows:
            faults.append(f"{PAGE}: {title}: no row names a file")
        for path, symbols in rows:
            if not (root / path).is_file():
                faults.append(f"{PAGE}: {title}: {path} is not a file")
                continue
            text = (root / path).read_text(encoding="utf-8")
            faults += [f"{PAGE}: {title}: {path} has no {symbol}" for symbol in re.findall(r"`([^`]+)`", symbols) if symbol not in text]
        for path in re.findall(r"`([\w/]+/[\w]+\.\w+)`", section):
            if not (root / path).is_file():
                faults.append(f"{PAGE}: {title}: {path} is not a file")
        example = EXAMPLE.search(section)
        if not example:
            faults.append(f"{PAGE}: {title}: expected a line \"Example: `NAME`, every source file\"")
            continue
        listed = {path for path, _ in rows}
        faults += [f"{PAGE}: {title}: {path} says {example[1]}, but is in no row"
                   for path, text in sorted(texts.items()) if path not in listed and example[1] in text]
    return faults, num_rows


# A row of a made-up page about `thing`, whose tree has core/thing.h and model/user.cpp, and whether it is right.
FIRST, SECOND = "| `core/thing.h` | | `struct Thing` |\n", "| `model/user.cpp` | it | `thing()` |\n"
CASES = [
    (FIRST + SECOND, True),
    (FIRST + SECOND + "| `docs/extending.md` | | |\n", True),
    (FIRST, False),
    (FIRST + "| `model/user.cpp` | | `Thing()` |\n", False),
    (FIRST + SECOND + "| `model/gone.cpp` | | |\n", False),
    (FIRST + SECOND + "\nSee `model/gone.cpp`.\n", False),
    ("", False),
]


def self_test() -> list[str]:
    wrong = []
    for table, allowed in CASES:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name, text in {"core/thing.h": "struct Thing;", "model/user.cpp": "thing();", "model/other.cpp": "none",
                               PAGE: f"# Page\n\n## A thing\n\nExample: the `thing`, every source file.\n\n{table}"}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            faults, _ = check(root)
            if (not faults) != allowed:
                wrong.append(f"self-test: {table!r}: expected it {'right' if allowed else 'refused'}, got {faults}")
    return wrong


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    faults, num_rows = check(Path(sys.argv[1]))
    faults += self_test()
    print("\n".join(faults) if faults else f"{num_rows} rows are right; {len(CASES)} self-tests passed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
