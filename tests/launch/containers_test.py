#!/usr/bin/env python3
"""The image definitions parse, name files and options that are there, and both build with launch/setup.sh.

    containers_test.py SOURCE_FOLDER

No image is built. The grammars are those of the Dockerfile reference and of Apptainer's definition files, as far as ours use them;
anything else in them is an error here.
"""
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    base: str
    name: str = ""
    copies: list[tuple[str, str, str]] = field(default_factory=list)   # stage or "" for the repository, from, to
    scripts: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"containers_test.py: {message}")


def dockerfile(path: Path) -> list[Stage]:
    stages, defaults = [], {}
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M)
    for line in filter(None, re.sub(r"\\\n", " ", text).splitlines()):
        word, _, rest = line.partition(" ")
        expect(word in ("FROM", "ARG") or bool(stages), f"{path}: {line}: before the first FROM")
        known = defaults if word in ("FROM", "ARG") else {**defaults, **(stages[-1].environment if stages else {})}
        if word not in ("ENV", "CMD"):
            for name in re.findall(r"\$\{(\w+)\}", rest):
                expect(name in known, f"{path}: {line}: {name} has no ARG")
                rest = rest.replace(f"${{{name}}}", known[name])
        if word == "ARG":
            name, equals, value = rest.partition("=")
            expect(equals == "=", f"{path}: {line}: without a default")
            defaults[name] = value
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif word == "COPY":
            match = re.fullmatch(r"(?:--from=(\S+) )?(\S+) (\S+)", rest)
            expect(match is not None, f"{path}: {line}: expected COPY [--from=STAGE] FROM TO")
            stages[-1].copies.append((match[1] or "", match[2], match[3]))
        elif word == "RUN":
            stages[-1].scripts.append(rest)
        elif word == "ENV":
            name, equals, value = rest.partition("=")
            expect(equals == "=", f"{path}: {line}: expected NAME=VALUE")
            stages[-1].environment[name] = value
        else:
            expect(word in ("WORKDIR", "CMD"), f"{path}: {line}: unknown instruction")
    return stages


def definition(path: Path) -> list[Stage]:
    """Each stage has its header, then sections; %arguments hold for their own stage."""
    stages = []
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.M)
    for part in re.split(r"^(?=Bootstrap:)", text, flags=re.M)[1:]:
        header, *sections = re.split(r"^%", part, flags=re.M)
        arguments = {}
        for section in sections:
            if section.startswith("arguments\n"):
                arguments = dict(line.strip().split("=", 1) for line in section.splitlines()[1:] if line.strip())
        missing = set(re.findall(r"\{\{ *(\w+) *\}\}", part)) - set(arguments)
        expect(not missing, f"{path}: {missing} not in the %arguments of their stage")
        def filled(value: str) -> str:
            return re.sub(r"\{\{ *(\w+) *\}\}", lambda match: arguments[match[1]], value)
        keys = dict(re.fullmatch(r"(\w+): (.+)", line).groups() for line in header.splitlines() if line)
        expect(set(keys) == {"Bootstrap", "From", "Stage"} and keys["Bootstrap"] == "docker", f"{path}: header {keys}")
        stages.append(Stage(filled(keys["From"]), keys["Stage"]))
        for section in sections:
            title, _, body = section.partition("\n")
            lines = [filled(line.strip()) for line in body.splitlines() if line.strip()]
            name, _, source = title.partition(" from ")
            if name == "files":
                for line in lines:
                    words = line.split()
                    stages[-1].copies.append((source, words[0], words[-1]))
            elif name in ("post", "runscript"):
                stages[-1].scripts.append("\n".join(lines))
            elif name == "environment":
                stages[-1].environment.update(line.removeprefix("export ").split("=", 1) for line in lines)
            else:
                expect(name == "arguments", f"{path}: unknown section %{title}")
    return stages


def judge(path: Path, stages: list[Stage], source: Path) -> None:
    expect(len(stages) == 2 and stages[0].name == "build", f"{path}: found {stages}, expected a stage that builds and one that runs")
    build, final = stages
    expect(build.base == final.base, f"{path}: the stages start from {build.base} and {final.base}: packages of the one may not fit the other")
    options = subprocess.run([source / "launch/setup.sh", "--help"], capture_output=True, text=True, check=True).stdout
    for stage in stages:
        for origin, file, _ in stage.copies:
            if origin:
                expect(origin == build.name and (file == "/opt/lamina" or (source / file.removeprefix("/lamina/")).exists()),
                       f"{path}: {file} is not in stage {origin}")
            else:
                expect((source / file).exists(), f"{path}: {file} is not in the repository")
        for script in stage.scripts:
            done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
            expect(done.returncode == 0, f"{path}: {script}: {done.stderr}")
            for option in re.findall(r"setup\.sh\s+(.*)", script):
                for word in re.findall(r"--[a-z-]+", option):
                    expect(word in options, f"{path}: launch/setup.sh has no {word}")
    expect(any(copy == ("", ".", "/lamina") for copy in build.copies), f"{path}: the clone is not copied")
    expect(any(re.match(r"/lamina/launch/setup\.sh\s+--prefix /opt/lamina$", script) for script in build.scripts), f"{path}: {build.scripts}")
    expect((build.name, "/opt/lamina", "/opt/lamina") in final.copies, f"{path}: the tree is not copied")
    expect(any("setup.sh --packages /opt/lamina/share/lamina/packages" in script for script in final.scripts), f"{path}: {final.scripts}")
    expect(final.environment.get("PATH") == "/opt/lamina/bin:$PATH", f"{path}: {final.environment}")


def main() -> None:
    source = Path(sys.argv[1])
    folder = source / "launch" / "containers"
    judge(folder / "Dockerfile", dockerfile(folder / "Dockerfile"), source)
    judge(folder / "lamina.def", definition(folder / "lamina.def"), source)
    print("containers_test.py: passed")


if __name__ == "__main__":
    main()
