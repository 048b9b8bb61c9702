#!/usr/bin/env python3
"""`lamina report` on real runs, looked at in a real browser: what stands on the page is what the run folder says.

    report_test.py LAMINA SCREENSHOTS     keeps pictures of the pages in the folder SCREENSHOTS
"""
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))
from training import Lamina, metrics  # noqa: E402

BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
EVIL = "<!--<script>alert(1)&lt;"          # as a run's name
EVIL_FOLDER = Path("<") / "script><script>alert(1)"  # whose path has "</script>"
VOID = {"meta", "input", "br", "hr", "link", "img"}


class Node:
    def __init__(self, tag: str, attributes: dict):
        self.tag, self.attributes, self.children = tag, attributes, []

    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def all(self, tag: str = "", **wanted: str) -> list["Node"]:
        """Descendants of this tag; `cls`: one of its classes; other keys are attributes, '_' stands for '-'."""
        found = []
        for child in self.children:
            if isinstance(child, str):
                continue
            fits = not tag or child.tag == tag
            for key, value in wanted.items():
                if key == "cls":
                    fits = fits and value in (child.attributes.get("class") or "").split()
                else:
                    fits = fits and child.attributes.get(key.replace("_", "-")) == value
            found += ([child] if fits else []) + child.all(tag, **wanted)
        return found

    def one(self, tag: str = "", **wanted: str) -> "Node":
        found = self.all(tag, **wanted)
        if not found:
            raise AssertionError(f"nothing on the page is {tag or 'an element'} with {wanted}")
        return found[0]


class Tree(HTMLParser):
    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.root = Node("document", {})
        self.open = [self.root]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        for i in range(len(self.open) - 1, 0, -1):
            if self.open[i].tag == tag:
                del self.open[i:]
                return

    def handle_data(self, data):
        self.open[-1].children.append(data)


class Browser:
    def __init__(self, folder: Path):
        self.program = next((path for path in map(shutil.which, BROWSERS) if path), None)
        if not self.program:
            raise SystemExit(f"report_test: no browser to look at the pages with: none of {', '.join(BROWSERS)} is here. "
                             "apt-get install chromium, or install Google Chrome")
        self.folder = folder

    def run(self, page: Path, *options: str, fragment: str = "") -> str:
        command = [self.program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000",
                   f"--user-data-dir={self.folder / 'profile'}", *options, f"file://{page}{fragment}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{command}: exit {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def dom(self, page: Path, script: str = "", width: int = 1280) -> Node:
        """The page after its scripts have run, then `script`, and its height as data-height."""
        probe = self.folder / "probe.html"
        measure = "document.documentElement.dataset.height = document.documentElement.scrollHeight;"
        probe.write_text(page.read_text().replace("</body>", f"<script>{script}</script><script>{measure}</script></body>"))
        return Tree(self.run(probe, "--dump-dom", f"--window-size={width},900")).root

    def shoot(self, page: Path, picture: Path, theme: str, width: int = 1280) -> None:
        height = int(self.dom(page, width=width).one("html").attributes["data-height"])
        self.run(page, f"--window-size={width},{height}", f"--screenshot={picture}", fragment=f"#theme={theme}")
        data = picture.read_bytes()
        size = struct.unpack(">II", data[16:24])
        assert size == (width, height), f"{picture}: {size}, expected {(width, height)}"
        assert len(data) > 20000, f"{picture}: an empty picture of {len(data)} bytes"


def num_points(path: Node) -> int:
    return len(re.findall(r"[ML]", path.attributes["d"]))


def cells(table: Node) -> list[list[str]]:
    return [[cell.text() for cell in row.all("th") + row.all("td")] for row in table.one("tbody").all("tr")]


def same(found, expected, what: str) -> None:
    assert found == expected, f"{what}: found {found}, expected {expected}"


def close(found: float, expected: float, what: str, tolerance: float = 1e-5) -> None:
    assert abs(found - expected) <= tolerance * abs(expected), f"{what}: found {found}, expected {expected}"


def number(value: dict, key: str):
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def layers_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "layers.jsonl").read_text().splitlines()]


def check_sound(page: Path, dom: Node) -> None:
    """What holds for every page: no errors, no addresses, nothing empty."""
    text = page.read_text()
    assert not re.search(r"https?://", text), f"{page}: has an address"
    assert "default-src 'none'" in text, f"{page}: may load things"
    same([node.text() for node in dom.all(id="report-error")], [], "errors on the page")
    same(dom.one("body").attributes.get("data-ready"), "true", "the scripts' end")
    for drawing in [d for d in dom.all("svg") if "swatch" not in d.attributes.get("class", "")]:
        marks = sum(len(drawing.all(tag)) for tag in ("path", "rect", "circle"))
        assert marks > 0, f"an empty plot: {drawing.attributes}"
        for mark in drawing.all():
            assert not re.search(r"NaN|undefined|Infinity", " ".join(str(v) for v in mark.attributes.values())), mark.attributes
    assert not re.search(r"\bNaN\b|undefined|\[object", dom.one("main").text()), "a value that is none"
    for figure in [f for f in dom.all("figure") if f.all("svg")]:
        assert figure.all("details") and figure.one("details").all("tr"), f"no table behind {figure.one('h3').text()}"


def check_curves(run: Path, dom: Node) -> None:
    rows = metrics(run)
    for key in ["loss", "validation_loss", "validation_bits_per_byte", "lr", "grad_norm", "tokens_per_second", "mfu", "aux_loss",
                "pipeline.bubble", "pipeline.bubble_bound", "pipeline.efficiency"]:
        expected = [(row["step"], number(row, key)) for row in rows if number(row, key) is not None]
        assert expected, f"the run logged no {key}"
        plot = {"validation_loss": "loss", "pipeline.bubble_bound": "pipeline.bubble"}.get(key, key)
        figure = dom.one("figure", data_plot=plot)
        second = plot != key
        path = figure.all("path", cls="curve")[1 if second else 0]
        same(num_points(path), len(expected), f"points of {key}")
        column = 3 if second else 2  # after step and tokens
        table = [(int(row[0]), float(row[column])) for row in cells(figure.one("table")) if row[column] != "\u2013"]
        same(table, expected, f"table of {key}")
        for row in cells(figure.one("table")):
            same(int(row[1]), next(r["tokens"] for r in rows if r["step"] == int(row[0])), f"tokens of {key}")


def check_maps(run: Path, dom: Node) -> None:
    rows = layers_of(run)
    steps = sorted({row["step"] for row in rows})
    for key in ["hidden_rms", "output_rms", "grad_rms", "grad_norm", "weight_norm", "max_logit", "max_violation", "router_entropy"]:
        sites = [(row["layer"], row["sublayer"]) for row in rows if row["step"] == steps[0] and key in row]
        assert sites, f"the run logged no {key}"
        figure = dom.one("figure", data_plot=f"map-{key}")
        same(len(figure.all("rect", cls="cell")), len(sites) * len(steps), f"cells of {key}")
        table = cells(figure.one("table"))
        same([int(row[0].replace(",", "")) for row in table], steps, f"steps of {key}")
        for line, step in zip(table, steps):
            for (layer, sublayer), found in zip(sites, line[1:]):
                value = next(row[key] for row in rows if (row["step"], row["layer"], row["sublayer"]) == (step, layer, sublayer))
                close(float(found), value, f"{key} of {layer} {sublayer} at {step}")
    last = [row for row in rows if row["step"] == steps[-1]]
    for key, plot in (("depth_weights", "depth-weights"), ("expert_load", "expert-load")):
        figure = dom.one("figure", data_plot=plot)
        expected = [row[key] for row in last if key in row]
        same(len(figure.all("rect", cls="cell")), sum(map(len, expected)), f"cells of {key}")
        for line, values in zip(cells(figure.one("table")), expected):
            found = [float(cell) for cell in line[1:] if cell != "\u2013"]
            same(len(found), len(values), f"columns of {key}")
            for a, b in zip(found, values):
                close(a, b, key)
        same(figure.one("output").text(), str(steps[-1]), f"the step of {key}")


def check_timeline(run: Path, dom: Node) -> None:
    trace = json.loads((run / "traces" / "step-00000003.json").read_text())["lamina"]
    section = dom.one("section", id="pipeline")
    boxes = section.all("rect", cls="action")
    same(len(boxes), len(trace["real"]) + len(trace["simulated"]), "boxes of the timeline")
    texts = [node.text() for node in section.all("text", cls="part")]
    for text, actions in zip(texts, (trace["real"], trace["simulated"])):
        span = max(a["end"] for a in actions) - min(a["start"] for a in actions)
        ranks = len({a["rank"] for a in actions})
        bubble = 1 - sum(a["end"] - a["start"] for a in actions) / (ranks * span)
        close(float(re.search(r"bubble ([\d.]+)", text)[1]), 100 * bubble, "bubble", 0.006)
    for kind in ("F", "B"):
        expected = sum(a["kind"] == kind for a in trace["real"] + trace["simulated"])
        same(len(section.all("rect", cls=kind)), expected, f"actions {kind}")


def check_communication(run: Path, dom: Node) -> None:
    section = dom.one("section", id="communication")
    rows = metrics(run)
    used = [key for key in ("pipeline_hidden", "pipeline_blocks", "data", "expert") if any(row["comm_bytes"][key] for row in rows)]
    assert "pipeline_blocks" in used, "the run sent no block summaries"
    figure = section.one("figure", data_plot=f"comm_bytes.{used[0]}")
    same([num_points(path) for path in figure.all("path", cls="curve")], [len(rows)] * len(used), "points of bytes sent")
    same([[float(v) for v in row[2:]] for row in cells(figure.one("table"))], [[row["comm_bytes"][k] for k in used] for row in rows], "bytes sent")
    peaks = [row["peak_bytes"] for row in rows if "peak_bytes" in row][-1]
    same(len(section.one("figure", data_plot="peak_bytes").all("rect", cls="mark")), sum(len(v) for v in peaks.values() if any(v)), "bars of peak memory")


CONTROLS = """
document.querySelector('[value=tokens]').click();
document.getElementById('control-smooth').click();
const slider = document.querySelector('[data-plot=depth-weights] input');
slider.value = 0;
slider.dispatchEvent(new Event('input'));
document.getElementById('theme').click();
"""


def check_controls(run: Path, page: Path, browser: Browser) -> None:
    dom = browser.dom(page, CONTROLS)
    check_sound(page, dom)
    figure = dom.one("figure", data_plot="loss")
    assert "tokens" in [node.text() for node in figure.all("text", cls="label")], "the axis is not in tokens"
    same(num_points(figure.one("path", cls="smooth")), len(metrics(run)), "points of the smoothed loss")
    first = [row["depth_weights"] for row in layers_of(run) if row["step"] == 1 and "depth_weights" in row]
    depth = dom.one("figure", data_plot="depth-weights")
    same(depth.one("output").text(), "1", "the step of the slider")
    for line, values in zip(cells(depth.one("table")), first):
        for a, b in zip([float(cell) for cell in line[1:] if cell != "\u2013"], values):
            close(a, b, "depth weights of the first step")
    same(dom.one("html").attributes.get("data-theme"), "dark", "the theme after the button")


def first_difference(a: list[dict], b: list[dict]) -> tuple[int, str] | None:
    for left, right in zip(a, b):
        for key in ("loss", "grad_norm"):
            if left[key] != right[key]:
                return left["step"], key
    return None


def first_layer_difference(a: list[dict], b: list[dict]) -> tuple[int, str, str] | None:
    for left, right in zip(a, b):
        for key in ("hidden_rms", "depth_weights", "output_rms", "max_logit", "grad_rms", "grad_norm", "weight_norm"):
            if left.get(key) == right.get(key):
                continue
            place = "output" if left["sublayer"] == "output" else f"layer {left['layer']} {left['sublayer']}"
            at = ""
            if isinstance(left[key], list):
                at = f"[{next(i for i, (x, y) in enumerate(zip(left[key], right[key])) if x != y)}]"
            return left["step"], place, key + at
    return None


def check_pair(runs: list[Path], dom: Node) -> None:
    rows, layers = [metrics(run) for run in runs], [layers_of(run) for run in runs]
    lines = [line.text() for line in dom.one("div", cls="difference").all("li")]
    expected = first_difference(*rows)
    assert expected is not None
    step, key = expected
    same(expected, (2, "loss"), "runs with two learning rates part")
    assert lines[1].startswith(f"Loss and gradient norm, bit for bit: step {step}, {key}: "), lines
    told = [float(value) for value in re.findall(r"[\d.e+-]+(?= against)|(?<=against )[\d.e+-]+", lines[1])]
    same(told, [r[step - 1][key] for r in rows], "the values that differ")
    layer = first_layer_difference(*layers)
    assert layer is not None
    assert any(line.startswith(f"Sublayers, bit for bit: step {layer[0]}, {layer[1]}, {layer[2]}: ") for line in lines), (layer, lines)
    section = dom.one("section", id="differences")
    keys = [row[0] for row in cells(section.all("table")[1])]
    same(keys, ["run.name", "run.output_dir", "train.optimizer.attn_res_lr_factor", "train.optimizer.lr"], "keys that differ")
    final = cells(section.all("table")[0])
    for line, r in zip(final, rows):
        close(float(line[3]), r[-1]["loss"], "final loss")
    curves = dom.one("figure", data_plot="grad_norm").all("path", cls="curve")
    same([num_points(path) for path in curves], [len(r) for r in rows], "points of two runs")
    assert len({(path.attributes["style"], path.attributes.get("stroke-dasharray")) for path in curves}) == 2, "two runs look the same"
    assert curves[0].attributes.get("stroke-dasharray") != curves[1].attributes.get("stroke-dasharray"), "only colour tells the runs"
    same([node.text() for node in dom.one("figure", data_plot="map-hidden_rms").all("h4")][:2], [EVIL, "other"], "the maps' names")


def check_sweep(sweep: Path, names: list[str], dom: Node, page: Path) -> None:
    same([row[0] for row in cells(dom.one("section", id="runs").one("table"))], names, "runs of the sweep")
    for row in cells(dom.one("section", id="runs").one("table")):
        same(row[4], "done", "state")
        close(float(row[9]), metrics(sweep / row[0])[-1]["validation_loss"], "validation loss", 1e-4)
    fitted = dom.one("figure", data_plot="fit-power")
    same(len(fitted.all("circle", cls="mark")), len(names), "points of the fit")
    same(len(fitted.all("path", cls="curve")), 2, "fitted curves")
    same(len(fitted.all("path", cls="band")), 2, "interval bands")
    captions = [node.text() for node in dom.one("section", id="fit").all("caption")]
    assert any(text.startswith("Coefficients") for text in captions) and any(text.startswith("Compute-equivalent") for text in captions), captions
    embedded = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])["sweep"]
    for group in embedded["norms"]:
        runs = [sweep / name for name in names if name.startswith(f"{group['size']}-{group['variant']}-")]
        last = [[row["hidden_rms"] for row in layers_of(run) if row["step"] == layers_of(run)[-1]["step"]] for run in runs]
        for found, values in zip(group["hidden_rms"], zip(*last)):
            close(found, sum(values) / len(values), "mean norm", 1e-12)
    same(len(dom.one("section", id="norms").all("figure")), 3, "sizes with norms")


PIPELINE = {
    "model": {"hidden_size": 24, "num_hidden_layers": 6, "num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 12,
              "aux_loss_alpha": 1e-3},
    "parallel": {"pipeline": 2, "virtual_stages": 2},
    "train": {"num_steps": 24, "global_batch_size": 8},
    "logging": {"layer_stats_interval": 4, "peak_gflops": 10, "trace_steps": [3]},
}
PLAIN = {"train": {"num_steps": 12}, "logging": {"layer_stats_interval": 3, "peak_gflops": 10}}


def make_sweep(lamina: Lamina, validation: dict) -> tuple[Path, list[str]]:
    sweep, runs = lamina.folder / "ladder", []
    sweep.mkdir()
    for size, (width, steps) in {"a": (12, 6), "b": (24, 12), "c": (36, 24)}.items():
        for variant in ("standard", "block_attnres"):
            for seed in (1, 2):
                name = f"{size}-{variant}-{seed}"
                changes = {"run": {"name": name, "seed": seed, "output_dir": str(sweep / name)}, **validation,
                           "model": {"hidden_size": width, "residual": variant, "num_hidden_layers": 2,
                                     "attn_res_block_size": 1 if variant == "block_attnres" else None},
                           "train": {"num_steps": steps}, "logging": PLAIN["logging"]}
                lamina.train(name, changes)
                runs.append({"name": name, "size": size, "variant": variant, "seed": seed})
    (sweep / "sweep.json").write_text(json.dumps({"name": "ladder", "runs": runs}))
    return sweep, [run["name"] for run in runs]


def check_errors(lamina: Lamina, good: Path) -> None:
    def broken(name: str, file: str, content: str | None) -> str:
        folder = lamina.folder / name
        shutil.copytree(good, folder, ignore=shutil.ignore_patterns("report.html", "checkpoints"))
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(content)
        return str(folder)

    rows = (good / "metrics.jsonl").read_text().splitlines(keepends=True)
    cases = [
        ([str(lamina.folder / "gone")], r"gone: no such folder, expected a run folder"),
        ([broken("no-config", "config.yaml", None)], r"found no config\.yaml"),
        ([broken("no-rows", "metrics.jsonl", "")], r"metrics\.jsonl: found no rows"),
        ([broken("malformed", "metrics.jsonl", rows[0] + "{broken\n" + rows[1])], r"metrics\.jsonl:2: found '\{broken'"),
        ([broken("no-loss", "metrics.jsonl", rows[0].replace('"loss"', '"lass"'))], r"metrics\.jsonl: step 1: found no 'loss'"),
        ([broken("bad-trace", "traces/step-00000003.json", "{}")], r"step-00000003\.json: found no 'lamina'"),
        ([broken("bad-layers", "layers.jsonl", '{"step": 1}\n')], r"layers\.jsonl: step 1: found layer null"),
        ([str(good), f"{good}/."], r"the same folder as"),
        ([str(good), "--output", str(lamina.folder / "nowhere" / "page.html")], r"nowhere/page\.html"),
        ([str(good), "--output", "/proc/page.html"], r"/proc/"),
        ([str(good), "--output", str(lamina.folder)], r"is a folder, expected the name of a file"),
        ([], r"report: runs is required"),
    ]
    for arguments, reason in cases:
        done = lamina.run(["report", *arguments])
        lines = [line for line in done.stderr.splitlines() if line]
        assert done.returncode == 1 and len(lines) == 1 and re.search(reason, lines[0]), f"{arguments}: {done.returncode}, {lines}, expected {reason}"
    left = [path for path in lamina.folder.rglob("*") if path.name == "page.html" or path.name.startswith("report.html")]
    same(left, [good / "report.html"], "files that failed reports leave")


def check_memory(lamina: Lamina, run: Path) -> None:
    """Thirty times the rows take no more memory; they would, some 200 MB, if they were held."""
    row, peaks = metrics(run)[-1], []
    for count in (2000, 60000):
        folder = lamina.folder / f"rows-{count}"
        folder.mkdir()
        shutil.copy(run / "config.yaml", folder)
        text = json.dumps(row).replace(f'"step": {row["step"]},', '"step": STEP,', 1)
        with (folder / "metrics.jsonl").open("w") as out:  # not in memory: a child's peak counts what its parent held at its start
            out.writelines(text.replace("STEP", str(step)) + "\n" for step in range(1, count + 1))
        # A sanitizer keeps what was freed, up to a limit.
        process = subprocess.Popen([lamina.binary, "report", str(folder)], stdout=subprocess.DEVNULL,
                                   env={**lamina.environment, "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=1"})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        same(process.returncode, 0, f"lamina report of {count} rows")
        peaks.append(usage.ru_maxrss / 1024)
        shutil.rmtree(folder)
    assert peaks[1] < peaks[0] + 40, f"peak memory of 2,000 and of 60,000 rows: {peaks} MiB"


def main() -> int:
    screenshots = Path(sys.argv[2]).resolve()
    screenshots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        browser, lamina = Browser(folder), Lamina(sys.argv[1], folder)
        lamina.prepare()
        validation = {"data": {"validation": {"path": str(lamina.tokens), "num_sequences": 4, "interval": 8}}}

        def report(*folders: Path, output: str = "") -> Path:
            done = lamina.run(["report", *map(str, folders), *(["--output", output] if output else [])])
            assert done.returncode == 0, f"lamina report: {done.stderr}"
            return folder / done.stdout.split("  ")[0]

        one = lamina.train("pipeline", {**PIPELINE, **validation}, ranks=2)
        page = report(one)
        same(page, one / "report.html", "where the page of one run is")
        dom = browser.dom(page)
        check_sound(page, dom)
        check_curves(one, dom)
        check_maps(one, dom)
        check_timeline(one, dom)
        check_communication(one, dom)
        same(dom.one("pre").text().rstrip(), (one / "config.yaml").read_text().rstrip(), "the configuration")
        check_controls(one, page, browser)
        for name, theme, width in (("run-light", "light", 1280), ("run-dark", "dark", 1280), ("run-narrow", "light", 480)):
            browser.shoot(page, screenshots / f"{name}.png", theme, width)

        check_memory(lamina, one)
        first = folder / EVIL_FOLDER
        lamina.train("first", {**PLAIN, "run": {"name": EVIL, "output_dir": str(first)}})
        other = lamina.train("other", {**PLAIN, "run": {"name": "other"}}, overrides=("train.optimizer.lr=0.01",))
        again = lamina.train("again", {**PLAIN, "run": {"name": EVIL}})
        page = report(first, other)
        same(page, folder / "report.html", "where the page of two runs is")
        dom = browser.dom(page)
        check_sound(page, dom)
        same(dom.one("h1").text(), f"{EVIL}, other", "the title of a run with a hostile name")
        same(len(dom.all("script")), 4, "scripts: the data, the page's, and two of this test")
        same(cells(dom.one("header").one("table"))[0], ["Folder", str(first), str(other)], "folders of the runs")
        check_pair([first, other], dom)
        assert dom.all("p", cls="note") and not dom.all("section", id="pipeline"), "a pipeline of one rank"
        browser.shoot(page, screenshots / "compare-light.png", "light")
        browser.shoot(page, screenshots / "compare-dark.png", "dark")
        page.unlink()
        same(first_difference(metrics(first), metrics(again)), None, "the same run again")
        dom = browser.dom(report(first, again, output=str(folder / "same.html")))
        lines = [line.text() for line in dom.one("div", cls="difference").all("li")]
        same([line.split(": ")[-1] for line in lines[1:]], ["no difference.", "no difference."], "identical runs")

        sweep, names = make_sweep(lamina, validation)
        page = report(sweep)
        dom = browser.dom(page)
        check_sound(page, dom)
        check_sweep(sweep, names, dom, page)
        browser.shoot(page, screenshots / "sweep-light.png", "light")
        browser.shoot(page, screenshots / "sweep-dark.png", "dark")
        page.unlink()
        (sweep / "sweep.json").write_text(json.dumps({"name": "ladder", "runs": [
            {"name": names[0], "size": "a", "variant": "standard", "seed": 1}, {"name": "later", "size": "b", "variant": "standard", "seed": 1}]}))
        page = report(sweep)
        dom = browser.dom(page)
        check_sound(page, dom)
        assert dom.one("p", cls="problem").text().startswith("No law was fitted: "), "a refused fit has no reason"
        assert "1 not started" in dom.one("header").text(), dom.one("header").text()
        page.unlink()

        check_errors(lamina, one)
    print(f"the pages say what the runs did; pictures in {screenshots}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
