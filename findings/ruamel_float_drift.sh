#!/usr/bin/env bash
# ruamel.yaml 0.19.1: a file that is loaded and saved untouched holds other numbers: a quarter of those that Python writes with an exponent.
#
# Guess, written down before the run: the round trip, which keeps a number's spelling, writes another number for some spelling of it.
# Seen: yes, for fractions with an exponent. YAML(), whose point is to change one line of a file and leave the rest, puts the number's
# digits together anew and loses the last one: 1.778279410038923e-06, a quarter decade of a sweep as Python prints it, becomes ..922e-06;
# shorter ones lose up to 1e-14 of the value (9.1315468092373e-09 becomes ..372e-09). Half as many change again at the next save
# (2.648424437636153e-08, ..152e-08, ..151e-08). Numbers without an exponent, up to 13 digits, and typ="safe" come through. So saving a
# comment into the configuration of a run changes its learning rate in the last place: a resume that compares configurations finds
# another run, and one that doesn't is not equal to the bit. Nothing is said. PyYAML and json write what they read.
# Fails when every number comes back.
#
#   ruamel_float_drift.sh [VENV]      a virtual environment with ruamel.yaml 0.19.1 and pyyaml 6.0.4; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check ruamel.yaml==0.19.1 pyyaml==6.0.4
fi
"$venv/bin/python" - <<'PYTHON'
import importlib.metadata
import io
import random
import re
import sys

import yaml
from ruamel.yaml import YAML

print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("ruamel.yaml", "pyyaml")))


def saved(text, **kind):
    """A file of many numbers, loaded and dumped."""
    file = io.StringIO()
    parser = YAML(**kind)
    parser.dump(parser.load(text), file)
    return file.getvalue()


def numbers(text):
    """In the order of the names: typ="safe" sorts them."""
    return [float(spelling) for _, spelling in sorted(re.findall(r"a(\d+): ([^\s,}]+)", text), key=lambda pair: int(pair[0]))]


def compare(name, spellings, **kind):
    text = "".join(f"a{count}: {spelling}\n" for count, spelling in enumerate(spellings))
    first = saved(text, **kind)
    second = saved(first, **kind)
    before, once, twice = (numbers(each) for each in (text, first, second))
    assert before == [float(spelling) for spelling in spellings] and len(before) == len(once) == len(twice)
    changed = sum(a != b for a, b in zip(before, once))
    largest = max(abs(b / a - 1) for a, b in zip(before, once))
    print(f"{name}: {changed} of {len(before)} numbers changed by a save, by up to {largest:.1g}, "
          f"{sum(a != b for a, b in zip(once, twice))} again by the next")
    return changed


source = random.Random(0)
rates = [10 ** source.uniform(-9, -5) for _ in range(3000)]
for rate in (10**-5.75, 9.1315468092373e-09, 2.648424437636153e-08):
    line = f"lr: {rate!r}  # the best of the sweep\n"
    print("  ", line.strip(), "->", saved(line).strip(), "->", saved(saved(line)).strip())
wrong = compare("as Python prints them", [repr(rate) for rate in rates])
compare("17 digits, exponent", [f"{10 ** source.uniform(-6, 6):.16e}" for _ in range(3000)])
assert compare("13 digits, exponent", [f"{10 ** source.uniform(-6, 6):.12e}" for _ in range(3000)]) == 0
assert compare("no exponent", [repr(source.uniform(0.001, 1)) for _ in range(3000)]) == 0
assert compare("typ safe", [repr(rate) for rate in rates], typ="safe", pure=True) == 0
assert yaml.safe_load(yaml.safe_dump(rates)) == rates
if wrong == 0:
    sys.exit("CHANGED: every number comes back")
PYTHON
