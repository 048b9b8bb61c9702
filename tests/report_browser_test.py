#!/usr/bin/env python3
"""The pages of `lamina report` used as a reader uses them, in Chromium: zoom, downloads, axes, linked sliders. Not part of ctest: needs the
network, or Playwright.

    report_browser_test.py LAMINA [VENV [SCREENSHOTS]]

VENV is a virtual environment with playwright; without it one is made in a temporary folder (pip install playwright==1.65.2). The browser is
the system's (chromium, google-chrome). SCREENSHOTS: a folder that keeps pictures and the files that were downloaded.
"""
import csv
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from datetime import datetime, timezone
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent / "integration"))

PLAYWRIGHT = "playwright==1.65.2"
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
STEPS = 30
RUN = {"model": {"num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 12, "aux_loss_alpha": 1e-3},
       "train": {"num_steps": STEPS}, "checkpoint": {"interval": 10}, "logging": {"layer_stats_interval": 3, "peak_gflops": 10}}


def same(found, expected, what: str) -> None:
    if found != expected:
        raise SystemExit(f"report_browser_test: {what}: found {found!r}, expected {expected!r}")


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"report_browser_test: {message}")


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def own_environment(folder: Path) -> Path:
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "install", "-q", PLAYWRIGHT], check=True)
    return environment


def make_runs(binary: str, folder: Path) -> list[Path]:
    """One that was resumed and has a spike in its file, one that was not."""
    from training import Lamina, merged
    lamina = Lamina(binary, folder)
    lamina.prepare()
    validation = {"data": {"validation": {"path": str(lamina.tokens), "num_sequences": 4, "interval": 10}}}
    first = merged(RUN, validation)
    lamina.train("first", merged(first, {"train": {"num_steps": 20}}))
    lamina.train("first", first)
    lamina.train("other", first, overrides=("train.optimizer.lr=0.02",))
    spike = {"step": 25, "batch": 24, "action": "skip", "passed": "24", "reason": "step 25: loss 9 is far above"}
    (folder / "first" / "spikes.jsonl").write_text(json.dumps(spike) + "\n")
    same({row["start"] for row in rows_of(folder / "first" / "metrics.jsonl")}, {1, 2}, "starts of the first run")
    return [folder / "first", folder / "other"]


def report(binary: str, runs: list[Path], output: Path) -> Path:
    done = subprocess.run([binary, "report", *map(str, runs), "--output", str(output)], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"lamina report: {done.stderr}")
    return output


class Page:
    def __init__(self, browser, file: Path, kept: Path, width: int = 1280, theme: str = "light"):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, accept_downloads=True)
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"file://{file}#theme={theme}")
        self.page.wait_for_selector("body[data-ready=true]")
        self.kept = kept

    def plot(self, key: str) -> str:
        return f"figure[data-plot='{key}']"

    def ticks(self, key: str) -> list[str]:
        """Of the axis below."""
        return self.page.eval_on_selector_all(f"{self.plot(key)} text.tick[text-anchor=middle]", "list => list.map(e => e.textContent)")

    def range(self, key: str) -> list[float]:
        return self.page.eval_on_selector(f"{self.plot(key)} .plot", "frame => frame.shown.range")

    def box(self, key: str) -> dict:
        """The drawing's inner part, in the window."""
        self.page.locator(f"{self.plot(key)} .plot").first.scroll_into_view_if_needed()
        return self.page.eval_on_selector(f"{self.plot(key)} .plot", """frame => {
          const svg = frame.firstElementChild, bounds = svg.getBoundingClientRect(), r = bounds.width / svg.viewBox.baseVal.width, b = frame.shown.box;
          return {left: bounds.left + b.left * r, right: bounds.left + b.right * r, top: bounds.top + b.top * r, bottom: bounds.top + b.bottom * r};
        }""")

    def settle(self) -> None:
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def drag(self, key: str, begin: float, end: float, shift: bool = False) -> None:
        """Across the plot, between two shares of its width (with `shift` of its height)."""
        box = self.box(key)
        if shift:
            self.page.keyboard.down("Shift")
        for i, share in enumerate((begin, (begin + end) / 2, end)):
            x = box["left"] + (0.5 if shift else share) * (box["right"] - box["left"])
            y = box["top"] + (share if shift else 0.5) * (box["bottom"] - box["top"])
            self.page.mouse.move(x, y)
            if i == 0:
                self.page.mouse.down()
        self.page.mouse.up()
        if shift:
            self.page.keyboard.up("Shift")
        self.settle()

    def button(self, key: str, label: str):
        return self.page.locator(f"{self.plot(key)} .tools button", has_text=label).first

    def download(self, key: str, label: str) -> Path:
        with self.page.expect_download() as waiting:
            self.button(key, label).click()
        path = self.kept / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    def csv(self, key: str) -> tuple[list[str], list[dict]]:
        reader = csv.DictReader(io.StringIO(self.download(key, "CSV").read_text(), newline=""))
        rows = list(reader)
        return list(reader.fieldnames), rows

    def close(self) -> None:
        same(self.errors, [], "errors in the page")
        same([url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))], [], "what the page asked the network for")
        same(self.page.locator("#report-error").count(), 0, "the page's own error box")
        self.page.close()


def close(a: float, b: float, what: str, tolerance: float) -> None:
    expect(abs(a - b) <= tolerance, f"{what}: found {a}, expected {b} within {tolerance}")


def check_zoom(page: Page) -> None:
    same(page.range("loss"), [1, STEPS], "the whole axis")
    page.drag("loss", 0.25, 0.75)
    low, high = page.range("loss")
    close(low, 1 + 0.25 * (STEPS - 1), "left end after a drag", 0.3)
    close(high, 1 + 0.75 * (STEPS - 1), "right end after a drag", 0.3)
    same(page.range("grad_norm"), [low, high], "another plot of the axis")
    shown = [int(tick) for tick in page.ticks("map-hidden_rms")]
    expect(shown and all(low - 3 <= step <= high for step in shown), f"the maps of steps show {shown}")
    expect(all(low <= int(tick) <= high for tick in page.ticks("loss")), f"ticks {page.ticks('loss')}")
    page.button("grad_norm", "Reset zoom").click()
    page.settle()
    same(page.range("loss"), [1, STEPS], "after the reset")
    expect(not page.button("loss", "Reset zoom").is_visible(), "a reset is offered where all is shown")

    frame = page.page.locator(f"{page.plot('loss')} .plot")
    frame.focus()
    page.page.keyboard.press("+")
    page.settle()
    low, high = page.range("loss")
    close(high - low, (STEPS - 1) / 2, "length after +", 1e-6)
    page.page.keyboard.press("ArrowRight")
    page.settle()
    close(page.range("loss")[0], low + 0.2 * (high - low), "after the arrow", 1e-6)
    page.page.keyboard.press("Escape")
    page.settle()
    same(page.range("loss"), [1, STEPS], "after Escape")

    box = page.box("loss")
    middle = ((box["left"] + box["right"]) / 2, (box["top"] + box["bottom"]) / 2)
    page.page.evaluate("document.activeElement.blur()")
    page.page.mouse.move(*middle)
    before = page.page.evaluate("scrollY")
    page.page.mouse.wheel(0, 60)
    page.page.wait_for_timeout(200)
    expect(page.page.evaluate("scrollY") > before and page.range("loss") == [1, STEPS], "the wheel alone must scroll the page")
    box = page.box("loss")
    page.page.mouse.move((box["left"] + box["right"]) / 2, (box["top"] + box["bottom"]) / 2)
    page.page.keyboard.down("Control")
    page.page.mouse.wheel(0, -120)
    page.page.keyboard.up("Control")
    page.settle()
    low, high = page.range("loss")
    close((high - low) / (STEPS - 1), math.exp(-0.36), "length after Ctrl and the wheel", 1e-6)
    close((low + high) / 2, (1 + STEPS) / 2, "the middle stays", 0.1)
    page.button("loss", "Reset zoom").click()
    page.settle()

    ends = "frame => frame.shown.y.domain"
    whole = page.page.eval_on_selector(f"{page.plot('loss')} .plot", ends)
    page.drag("loss", 0.5, 1.0, shift=True)
    lower = page.page.eval_on_selector(f"{page.plot('loss')} .plot", ends)
    close(lower[1], (whole[0] + whole[1]) / 2, "the height after Shift and a drag", 0.03 * (whole[1] - whole[0]))
    same(page.range("loss"), [1, STEPS], "the axis below after it")
    page.drag("map-hidden_rms", 0.5, 0.9)
    expect(page.range("loss")[0] > STEPS / 3, "a drag in a map zooms the curves")
    page.page.locator(f"{page.plot('loss')} .plot").dblclick()
    page.settle()
    same([page.range("loss"), page.page.eval_on_selector(f"{page.plot('loss')} .plot", ends)], [[1, STEPS], whole], "after a double click")


def check_csv(page: Page, runs: list[Path]) -> None:
    names, rows = page.csv("loss")
    same(names, ["run", "step", "tokens", "time [UTC]", "time running [s]", "training [nats per token]", "validation [nats per token]"], "columns")
    expected = [(run.name if len(runs) > 1 else "test", row) for run in runs for row in rows_of(run / "metrics.jsonl")]
    same(len(rows), len(expected), "rows of the losses")
    for found, (name, row) in zip(rows, expected):
        same([found["run"], int(found["step"]), int(found["tokens"]), found["time [UTC]"]],
             [found["run"], row["step"], row["tokens"], row["time"]], "a row's place")
        same(float(found["training [nats per token]"]), row["loss"], f"loss of step {row['step']}")
        validation = found["validation [nats per token]"]
        same(float(validation) if validation else None, row.get("validation_loss"), f"validation of step {row['step']}")
    names, rows = page.csv("map-hidden_rms")
    same(names, ["run", "layer", "sublayer", "step", "hidden_rms [root mean square]"], "columns of a map")
    logged = {(row["step"], row["layer"], row["sublayer"]): row["hidden_rms"] for row in rows_of(runs[0] / "layers.jsonl")}
    first = [row for row in rows if row["run"] == rows[0]["run"]]
    same(len(first), len(logged), "rows of a map")
    for row in first:
        value = logged[int(row["step"]), int(row["layer"]), row["sublayer"]]
        close(float(row[names[4]]), value, "hidden_rms", 1e-5 * value)


def check_png(page: Page, key: str) -> None:
    data = page.download(key, "PNG").read_bytes()
    same(data[:8], b"\x89PNG\r\n\x1a\n", "the picture's signature")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    shown = page.page.eval_on_selector(f"{page.plot(key)} .plot svg", "svg => [svg.width.baseVal.value, svg.height.baseVal.value]")
    same(width, 2 * (shown[0] + 24), "the picture's width")
    expect(2 * shown[1] < height < 4000, f"the picture's height {height}")
    same((depth, colour), (8, 6), "bits and channels")
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        same(zlib.crc32(kind + body), struct.unpack(">I", data[at + 8 + length:at + 12 + length])[0], "a chunk's sum")
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    pixels = zlib.decompress(packed)
    same(len(pixels), height * (1 + 4 * width), "the picture's bytes")
    expect(len(set(pixels[i:i + 4] for i in range(1, len(pixels) - 4, 4003 * 4))) > 2, "an empty picture")


def check_axes(page: Page, run: Path) -> None:
    rows = rows_of(run / "metrics.jsonl")
    seconds = [datetime.fromisoformat(row["time"].replace("Z", "+00:00")).replace(tzinfo=timezone.utc).timestamp() for row in rows]
    pick = lambda kind: (page.page.check(f"input[value={kind}]"), page.settle())  # noqa: E731
    pick("tokens")
    same(page.range("loss"), [rows[0]["tokens"], rows[-1]["tokens"]], "the axis in tokens")
    pick("time")
    low, high = page.range("loss")
    expect(seconds[0] <= low < seconds[0] + 1 and seconds[-1] <= high < seconds[-1] + 1, f"time of day: {low} to {high}")
    label = page.page.locator(f"{page.plot('loss')} text.label").first.text_content()
    expect(label.startswith("time of day (UTC), " + rows[0]["time"][:10]), f"the label is {label}")
    path = page.page.locator(f"{page.plot('loss')} path.curve").first.get_attribute("d")
    same(path.count("M"), 2, "a line has a gap between two starts")
    pick("running")
    low, high = page.range("loss")
    pause = next(b - a for (a, x), (b, y) in zip(zip(seconds, rows), list(zip(seconds, rows))[1:]) if x["start"] != y["start"])
    expect(high <= seconds[-1] - seconds[0] - pause + 4, f"running: {low} to {high}, with a pause of {pause}")
    pick("step")
    same(page.page.eval_on_selector_all(f"{page.plot('loss')} .event", "list => list.map(e => [e.classList[1], Number(e.dataset.step)])"),
         [["resumed", 21], ["skip", 25]], "the signs in the plot")
    page.page.locator("#curves summary").first.click()
    table = page.page.locator("#curves details table").first.inner_text()
    expect("resumed (start 2)" in table and "passed over: 24" in table and "far above" in table, f"the table of events: {table}")
    labels = page.page.eval_on_selector_all(f"{page.plot('grad_norm')} text.label", "list => list.map(e => e.textContent)")
    expect("L2 norm (log)" in labels, f"the axis of the gradient norm says {labels}")


def check_sliders(page: Page, runs: list[Path]) -> None:
    steps = sorted({row["step"] for row in rows_of(runs[0] / "layers.jsonl")})
    said = lambda: page.page.eval_on_selector_all(".slider output", "list => list.map(e => Number(e.textContent))")  # noqa: E731
    move = "(input, index) => { input.value = index; input.dispatchEvent(new Event('input')); }"
    same(set(said()), {steps[-1]}, "sliders begin at the last step")
    sliders = page.page.locator(".slider input")
    expect(sliders.count() >= 6, f"{sliders.count()} sliders")
    sliders.nth(0).evaluate(move, 2)
    same(set(said()), {steps[2]}, "linked sliders")
    page.page.locator("form.link input").first.uncheck()
    sliders.nth(0).evaluate(move, 4)
    same([said()[0], set(said()[1:])], [steps[4], {steps[2]}], "unlinked sliders")
    same(page.page.eval_on_selector_all("form.link input", "list => list.map(e => e.checked)"), [False] * page.page.locator("form.link input").count(),
         "the boxes of all sections")
    page.page.locator("form.link input").first.check()
    same(len(set(said())), 1, "linked again")
    page.page.locator(".slider input").nth(0).evaluate(move, 0)


def check_difference(page: Page, runs: list[Path]) -> None:
    rows = [{(row["step"], row["layer"], row["sublayer"]): row for row in rows_of(run / "layers.jsonl")} for run in runs]
    host = f"{page.plot('map-hidden_rms')} .difference-map"
    cells = page.page.locator(f"{host} rect.cell")
    same(cells.count(), len(rows[0].keys() & rows[1].keys()), "cells of the difference")
    legend = page.page.eval_on_selector_all(f"{host} text.tick:not([text-anchor])", "list => list.map(e => Number(e.textContent))")
    expect(0 in legend and min(legend) < 0 < max(legend), f"the legend says {legend}")
    close(min(legend), -max(legend), "zero is in the middle", 1e-9)
    # Of the depth weights, through the file.
    _, found = page.csv("depth-weights-difference")
    columns = list(found[0])
    last = max(step for step, _, _ in rows[0])
    place = lambda row: "output" if row["sublayer"] == "output" else f"{row['layer']} {row['sublayer']}"  # noqa: E731
    expected = {place(a): [y - x for x, y in zip(a["depth_weights"], rows[1][key]["depth_weights"])] for key, a in rows[0].items() if key[0] == last}
    got: dict[str, list[float]] = {}
    for row in found:
        if int(row["step"]) == last:
            got.setdefault(row["read before"], []).append(float(row[columns[4]]))
    same(sorted(got), sorted(expected), "reads of the difference")
    for name, values in expected.items():
        same(len(got[name]), len(values), f"sources of {name}")
        for a, b in zip(got[name], values):
            close(a, b, f"difference of {name}", 2e-5)


def check_tables(page: Page) -> None:
    """In a narrow window: the page itself never scrolls sideways, and tables that do say so."""
    same(page.page.evaluate("document.documentElement.scrollWidth"), 400, "the page's width")
    page.page.locator("#curves details.numbers > summary").first.click()
    page.page.locator(f"{page.plot('loss')} summary").first.click()
    page.page.wait_for_timeout(1000)
    state = page.page.evaluate("""() => [...document.querySelectorAll('.scrolled')].filter(e => e.checkVisibility()).map(e => {
      const box = e.firstElementChild, hint = e.parentNode.querySelector('.scroll-hint');
      return [box.scrollWidth > box.clientWidth + 1, box.scrollHeight > box.clientHeight + 1, e.classList.contains('more-right'),
              e.classList.contains('more-bottom'), !hint.hidden];
    })""")
    expect(any(wide for wide, *_ in state), "no table of this page is too wide for the window")
    for wide, high, right, bottom, said in state:
        same([right, bottom, said], [wide, high, wide or high], "what a table says of its size")


def browse(binary: str, kept: Path) -> None:
    from playwright.sync_api import sync_playwright
    program = next((path for path in map(shutil.which, BROWSERS) if path), None)
    expect(program is not None, f"no browser: none of {', '.join(BROWSERS)} is here")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        runs = make_runs(binary, Path(temporary))
        one, two = report(binary, runs[:1], Path(temporary) / "one.html"), report(binary, runs, Path(temporary) / "two.html")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = Page(browser, one, kept)
        check_zoom(page)
        check_csv(page, runs[:1])
        check_axes(page, runs[0])
        for key in ("loss", "map-hidden_rms", "depth-weights", "peak_bytes"):
            check_png(page, key)
        page.close()
        print("one run: zoom, axes, marks, CSV and PNG", flush=True)
        page = Page(browser, two, kept)
        check_sliders(page, runs)
        check_difference(page, runs)
        page.csv("grad_norm")
        page.close()
        print("two runs: sliders and differences", flush=True)
        for name, file, width, theme in (("one-light", one, 1280, "light"), ("one-dark", one, 1280, "dark"), ("two-light", two, 1280, "light"),
                                         ("two-dark", two, 1280, "dark"), ("one-narrow", one, 400, "dark"), ("two-narrow", two, 400, "light")):
            page = Page(browser, file, kept, width, theme)
            if width == 400:
                check_tables(page)
            page.page.screenshot(path=kept / f"{name}.png", full_page=True)
            page.close()
        browser.close()
    print(f"narrow windows and both themes; pictures in {kept}" if len(sys.argv) > 3 else "narrow windows and both themes")


def main() -> None:
    if not 2 <= len(sys.argv) <= 4:
        raise SystemExit(__doc__)
    binary = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        environment = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else own_environment(Path(temporary))
        kept = Path(sys.argv[3]).resolve() if len(sys.argv) > 3 else Path(temporary) / "kept"
        kept.mkdir(parents=True, exist_ok=True)
        # The rest needs the packages of the environment, and this interpreter's (yaml).
        packages = next((environment / "lib").glob("python*/site-packages"))
        sys.path.insert(0, str(packages))
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        browse(binary, kept)


if __name__ == "__main__":
    main()
