#!/usr/bin/env python3
"""Completion and manual pages, against what --help says: bash completes for real; zsh, fish, mandoc and groff are asked where they
are there.

    completion_test.py LAMINA SOURCE
"""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LAMINA = str(Path(sys.argv[1]).resolve())
SOURCE = Path(sys.argv[2])


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"completion_test: {message}")


def output(words: list[str], **options) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)
    expect(done.returncode == 0 and not done.stderr, f"{words} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def commands_of(help_text: str) -> list[str]:
    return re.findall(r"^  ([a-z]+) ", help_text.partition("Subcommands:")[2].partition("\n\n")[0], re.MULTILINE)


def options_of(help_text: str) -> set[str]:
    """The names at the beginnings of the entries: of what follows `Options:` up to an empty line."""
    found = set()
    for line in help_text.partition("\nOptions:\n")[2].partition("\n\n")[0].splitlines():
        if names := re.match(r"  (-[^ ]+)", line):
            found.update(names[1].split(","))
    return found


def completed(script: str, words: list[str]) -> set[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    program = f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n_lamina\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    return set(output(["bash", "--norc", "-c", program]).split())


def check_bash(script: str, helps: dict[str, str]) -> None:
    expect(completed(script, ["lamina", ""]) == set(helps) - {""} | options_of(helps[""]), "the commands are others")
    expect(completed(script, ["lamina", "tr"]) == {"train"}, "tr is not train")
    for name, text in helps.items():
        if name:
            expect(completed(script, ["lamina", name, "-"]) == options_of(text), f"{name}: {completed(script, ['lamina', name, '-'])}")
    reference = (SOURCE / "docs/configuration.md").read_text()
    for key in ("train.optimizer.lr", "data.train.0.weight", "model.mixers"):
        expect(key.rsplit(".", 1)[-1] in reference, f"{key} is none")
        expect(completed(script, ["lamina", "train", "x.yaml", key]) >= {key + "="}, f"{key} is not offered")
    optimizer = completed(script, ["lamina", "train", "x.yaml", "train.opt"])
    expect(len(optimizer) > 5 and all(key.startswith("train.optimizer.") and key.endswith("=") for key in optimizer), str(optimizer))
    expect(completed(script, ["lamina", "train", "tra"]) == set(), "a key where the experiment file is expected")
    expect(completed(script, ["lamina", "train", "x.yaml", "data.train.0.path", "=", "da"]) == set(), "not left to file names")
    for words in (["--dtype", ""], ["--dtype", "="], ["--dtype", "=", "b"]):
        expect(completed(script, ["lamina", "export", *words]) == ({"bf16"} if words[-1] == "b" else {"bf16", "fp32"}), f"export {words}")
    expect(completed(script, ["lamina", "export", "--output", ""]) == set(), "not left to file names")
    expect(completed(script, ["lamina", "completion", ""]) == {"bash", "zsh", "fish"}, "shells")
    expect(completed(script, ["lamina", "man", "ver"]) == {"verify"}, "commands of man")
    expect(completed(script, ["lamina", "nonsense", "-"]) == set(), "something for an unknown command")


def check_pages(folder: Path, helps: dict[str, str]) -> None:
    pages = {path.name: path.read_text() for path in folder.iterdir()}
    expect(set(pages) == {f"lamina-{name}.1" if name else "lamina.1" for name in helps}, f"pages {sorted(pages)}")
    for name, text in helps.items():
        page = pages[f"lamina-{name}.1" if name else "lamina.1"]
        plain = page.replace("\\-", "-")
        for option in options_of(text):
            expect(f"\\fB{option}\\fR" in plain, f"{name}: {option} is not in the page")
        expect(name == "" or page == output([LAMINA, "man", name]), f"{name}: the page that is printed is another")
    for name in helps:
        expect(name == "" or f".B {name}\n" in pages["lamina.1"], f"{name} is not in lamina.1")
    if shutil.which("mandoc"):
        done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", *sorted(map(str, folder.iterdir()))], capture_output=True, text=True,
                              check=False)
        expect(done.returncode == 0, f"mandoc: {done.stdout}{done.stderr}")
    if shutil.which("groff"):
        for path in sorted(folder.iterdir()):
            text = output(["groff", "-ww", "-man", "-Tutf8", str(path)])
            plain = re.sub("\x1b\\[[0-9;]*m|.\b", "", text)   # colours, or letters printed twice
            expect("--help" in plain, f"{path.name}: {plain[:300]}")


def check_other_shells(zsh: str, fish: str, folder: Path) -> None:
    (folder / "_lamina").write_text(zsh)
    (folder / "lamina.fish").write_text(fish)
    if shutil.which("zsh"):
        output(["zsh", "-f", "-c", f"autoload -Uz compinit && compinit -D -u && source {folder}/_lamina && [[ $_comps[lamina] == _lamina ]]"],
               cwd=folder)
    if shutil.which("fish"):
        for typed, wanted in (("lamina tr", "train"), ("lamina export --dtype f", "fp32"), ("lamina serve --po", "--port"),
                              ("lamina train x train.optimizer.l", "train.optimizer.lr="), ("lamina completion z", "zsh")):
            offered = output(["fish", "--no-config", "-c", f"source {folder}/lamina.fish; complete -C '{typed}'"])
            expect(wanted in {line.split("\t")[0] for line in offered.splitlines()}, f"fish: {typed}: {offered}")


def main() -> None:
    root = output([LAMINA, "--help"])
    helps = {"": root} | {name: output([LAMINA, name, "--help"]) for name in commands_of(root)}
    expect({"train", "prepare", "completion", "man"} <= set(helps), f"commands {sorted(helps)}")
    bash, zsh, fish = (output([LAMINA, "completion", shell]) for shell in ("bash", "zsh", "fish"))
    check_bash(bash, helps)
    with tempfile.TemporaryDirectory(prefix="lamina-completion-") as name:
        check_other_shells(zsh, fish, Path(name))
        output([LAMINA, "man", "--output", f"{name}/man1"])
        check_pages(Path(name) / "man1", helps)
    done = subprocess.run([LAMINA, "completion", "tcsh"], capture_output=True, text=True, check=False)
    expect(done.returncode == 1 and "tcsh" in done.stderr and done.stderr.count("\n") == 1, f"tcsh: {done.stderr}")
    print("completion_test: passed")


if __name__ == "__main__":
    main()
