#!/usr/bin/env python3
"""`lamina serve` over plain HTTP, on a model that has learnt one sentence by heart: what it answers is what `lamina sample` writes.

    serve_test.py LAMINA
"""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from sample_test import CONFIG, SENTENCE

FAULTS = []
END = 256   # the token that ends a document


def expect(what: str, found, expected) -> None:
    if found != expected:
        FAULTS.append(f"{what}: found {found!r}, expected {expected!r}")


class Server:
    def __init__(self, program: str, folder: Path, environment: dict, *options: str):
        self.log = open(folder / "serve.log", "wb+")
        self.process = subprocess.Popen([program, "serve", "run", "--port", "0", "--model-name", "tiny", *options], cwd=folder, env=environment,
                                        stdout=subprocess.PIPE, stderr=self.log)
        said = self.process.stdout.readline().decode()
        match = re.fullmatch(r"serving tiny at http://127\.0\.0\.1:(\d+)/v1\n", said)
        if not match:
            raise SystemExit(f"the server said {said!r}, {self.said()}")
        self.port = int(match[1])

    def said(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text(encoding="utf-8")

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, bytes, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def complete(self, **fields) -> tuple[int, dict]:
        body = json.dumps({"model": "tiny", **fields}).encode()
        status, text, _ = self.send("POST", "/v1/completions", body, {"Content-Type": "application/json; charset=utf-8"})
        return status, json.loads(text)

    def send_json(self, body: bytes) -> tuple[int, dict]:
        status, text, _ = self.send("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return status, json.loads(text)

    def right(self, **fields) -> dict:
        status, answer = self.complete(**fields)
        expect(f"{fields}: status of {answer}", status, 200)
        return answer

    def texts(self, **fields) -> list[str]:
        return [choice["text"] for choice in self.right(**fields)["choices"]]

    def stream(self, **fields) -> list[dict]:
        """Its events; each piece is decoded on its own."""
        body = json.dumps({"model": "tiny", "stream": True, **fields}).encode()
        status, text, headers = self.send("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        expect("stream: type", (status, headers.get("Content-Type")), (200, "text/event-stream"))
        *events, done, rest = text.decode("utf-8").split("\n\n")
        expect("stream: end", (done, rest), ("data: [DONE]", ""))
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def health(self) -> dict:
        return json.loads(self.send("GET", "/health")[1])

    def open(self, **fields) -> socket.socket:
        """Asks, and leaves the answer to whoever has the socket."""
        body = json.dumps({"model": "tiny", **fields}).encode()
        client = socket.create_connection(("127.0.0.1", self.port))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        return client

    def wait_for(self, what: str, sequences: int, waiting: int = 0) -> None:
        for _ in range(500):
            found = self.health()
            if (found["sequences"], found["waiting"]) == (sequences, waiting):
                return
            time.sleep(0.02)
        FAULTS.append(f"{what}: {found}, expected {sequences} sequences and {waiting} waiting")


def samples(program: str, folder: Path, environment: dict, *arguments: str) -> list[dict]:
    done = subprocess.run([program, "sample", "--checkpoint", "run", "--json", *arguments], cwd=folder, capture_output=True, env=environment, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_texts(server: Server, sample) -> None:
    lines = sample("--prompt", "caf", "--temperature", "0", "--max-tokens", "60", "--likeliest", "2")
    tokens, end = lines[:-1], lines[-1]
    greedy = {"prompt": "caf", "temperature": 0, "max_tokens": 60}
    answer = server.right(**greedy)
    expect("greedy", [answer[key] for key in ("object", "model")] + [answer["choices"]],
           ["text_completion", "tiny", [{"text": end["text"], "index": 0, "logprobs": None, "finish_reason": "length"}]])
    expect("usage", answer["usage"], {"prompt_tokens": 4, "completion_tokens": 60, "total_tokens": 64})
    expect("16 tokens unless said", server.right(prompt="caf", temperature=0, max_tokens=None)["usage"]["completion_tokens"], 16)
    in_tokens = [END, *b"caf"]
    expect("prompt of tokens", server.texts(**{**greedy, "prompt": in_tokens}), [end["text"]])
    others = server.texts(**{**greedy, "prompt": "\u4e16"}) + server.texts(**{**greedy, "prompt": ""})
    expect("several prompts", server.texts(**{**greedy, "prompt": ["caf", "\u4e16", ""]}), [end["text"], *others])
    expect("several prompts of tokens", server.texts(**{**greedy, "prompt": [in_tokens, [END, *"\u4e16".encode()]]}), [end["text"], others[0]])
    expect("echo", server.texts(**greedy, echo=True), ["caf" + end["text"]])
    expect("echo of tokens", server.texts(**{**greedy, "prompt": in_tokens}, echo=True), ["caf" + end["text"]])
    for stop in ("\u754c", ["never", "\u754c"]):
        choice = server.right(**greedy, stop=stop)["choices"][0]
        expect(f"stop {stop}", (choice["text"], choice["finish_reason"]), ("\u00e9 \u4e16", "stop"))

    hot = ("--prompt", "caf", "--temperature", "2", "--top-p", "0.9", "--max-tokens", "30", "--seed", "7", "--num-samples", "3")
    drawn = {"prompt": "caf", "temperature": 2, "top_p": 0.9, "max_tokens": 30, "seed": 7}
    expected = sorted((line["sample"], line["text"]) for line in sample(*hot) if "finish" in line)
    expect("n samples of a seed", list(enumerate(server.texts(**drawn, n=3))), expected)
    best = [line for line in sample(*hot) if "finish" in line]
    best.sort(key=lambda line: -line["logprob"] / line["num_tokens"])
    answer = server.right(**drawn, n=2, best_of=3)
    expect("the best of 3", [(choice["index"], choice["text"]) for choice in answer["choices"]], list(enumerate(line["text"] for line in best[:2])))
    expect("tokens of the best of 3", answer["usage"]["completion_tokens"], sum(line["num_tokens"] for line in best))
    free = {"temperature": 2, "max_tokens": 300}
    expect("another draw without a seed", len(set(server.texts(prompt=["caf", "caf"], **free) + server.texts(prompt="caf", **free))), 3)

    check_log_probabilities(server, greedy, tokens)
    check_streams(server, greedy, end["text"], drawn)


def check_log_probabilities(server: Server, greedy: dict, tokens: list[dict]) -> None:
    def name(token: int) -> str:
        return "" if token == END else bytes([token]).decode() if token < 128 else f"bytes:\\x{token:02x}"

    found = server.right(**greedy, logprobs=2)["choices"][0]["logprobs"]
    expect("logprobs: tokens", found["tokens"], [name(line["token"]) for line in tokens])
    far = [(a, line["logprob"]) for a, line in zip(found["token_logprobs"], tokens) if abs(a - line["logprob"]) > 1e-4]
    expect("logprobs: as sample's", far, [])
    for top, line in zip(found["top_logprobs"], tokens):
        expect("logprobs: the likeliest", set(top), {name(each["token"]) for each in line["likeliest"]})
    text, offsets, offset = bytes(line["token"] for line in tokens).decode(errors="ignore"), [], 0
    for index, character in enumerate(text):
        offsets += [index] * len(character.encode())
        offset = index + 1
    expect("logprobs: offsets", found["text_offset"], offsets + [offset] * (len(tokens) - len(offsets)))
    expect("logprobs: 0", {len(top) for top in server.right(**greedy, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"]}, {1})
    cut = server.right(**greedy, logprobs=0, stop="\u754c")["choices"][0]["logprobs"]
    expect("logprobs end at a stop", cut["tokens"], [name(byte) for byte in "\u00e9 \u4e16".encode()])

    # The same text as a prompt has the same log-probabilities.
    known = [END, *b"caf", *(line["token"] for line in tokens[:57])]
    for max_tokens, behind in ((0, 0), (1, 1)):
        echoed = server.right(prompt=known, temperature=0, max_tokens=max_tokens, echo=True, logprobs=1)["choices"][0]
        scores = echoed["logprobs"]
        expect("echo: no text but the prompt's", len(scores["tokens"]), len(known) + behind)
        expect("echo: tokens", scores["tokens"][:len(known)], [name(token) for token in known])
        expect("echo: the first has none", (scores["token_logprobs"][0], scores["top_logprobs"][0]), (None, None))
        far = [(a, line["logprob"]) for a, line in zip(scores["token_logprobs"][4:], tokens) if abs(a - line["logprob"]) > 1e-4]
        expect("echo: log-probabilities", far, [])
        expect("echo: offsets", scores["text_offset"][:6], [0, 0, 1, 2, 3, 3])


def check_streams(server: Server, greedy: dict, text: str, drawn: dict) -> None:
    events = server.stream(**greedy)
    expect("stream: text", "".join(event["choices"][0]["text"] for event in events), text)
    expect("stream: one id", len({event["id"] for event in events}), 1)
    expect("stream: reasons", [event["choices"][0]["finish_reason"] for event in events], [None] * (len(events) - 1) + ["length"])
    events = server.stream(**drawn, n=3, logprobs=0, echo=True, stream_options={"include_usage": True})
    expect("stream: usage", (events[-1]["choices"], events[-1]["usage"]["prompt_tokens"]), ([], 4))
    expect("stream: no usage before", {event["usage"] for event in events[:-1]} if all(event["usage"] is None for event in events[:-1]) else None, {None})
    whole = server.right(**drawn, n=3, logprobs=0, echo=True)["choices"]
    for index in range(3):
        pieces = [event["choices"][0] for event in events[:-1] if event["choices"][0]["index"] == index]
        expect("stream: of several", "".join(piece["text"] for piece in pieces), whole[index]["text"])
        expect("stream: logprobs", sum((piece["logprobs"]["tokens"] for piece in pieces), []), whole[index]["logprobs"]["tokens"])


def check_refusals(server: Server) -> None:
    def refused(what: str, found: tuple, status: int, param: str | None, *words: str) -> None:
        code, answer = found
        error = answer.get("error", {})
        right = code == status and set(error) == {"message", "type", "param", "code"} and error["param"] == param and all(w in error["message"] for w in words)
        if not right:
            FAULTS.append(f"{what}: {code} {answer}, expected {status} for {param}, {words}")

    for field, value in {"max_tokens": -1, "temperature": 2.5, "top_p": "1", "n": 0, "best_of": 99, "stop": ["a"] * 5, "seed": 1.5, "logprobs": 6,
                         "echo": 1, "stream": "yes", "suffix": "end", "logit_bias": {"5": 1}, "presence_penalty": 1, "frequency_penalty": -1,
                         "user": 3, "stream_options": {"include_usage": True}, "prompt": [], "n ": 1}.items():
        refused(field, server.complete(prompt="a", **{field: value}) if field != "prompt" else server.complete(prompt=value), 400, field, field)
    for prompt, param in (([1, "a"], "prompt[1]"), (["a", 1], "prompt[1]"), ([[1], []], "prompt[1]"), ([257], "prompt[0]"), ([[-1]], "prompt[0][0]"), (3, "prompt")):
        refused(f"prompt {prompt}", server.complete(prompt=prompt), 400, param, "expected")
    refused("best_of with stream", server.complete(best_of=2, stream=True), 400, "best_of", "stream")
    refused("best_of below n", server.complete(best_of=2, n=3), 400, "best_of", "3")
    refused("unknown field", server.complete(max_token=3), 400, "max_token", "max_tokens")
    refused("unknown inner field", server.complete(stream=True, stream_options={"usage": True}), 400, "stream_options.usage")
    refused("max_tokens over the limit", server.complete(max_tokens=100001), 400, "max_tokens", "100000")
    refused("long prompt", server.complete(prompt="a" * 2000), 400, "prompt", "2001", "2000")
    refused("another model", server.complete(model="other"), 404, "model", "other", "tiny")
    nothing = {"suffix": None, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "user": "me", "logprobs": None, "stop": None,
               "best_of": 1, "n": 1, "echo": False, "stream": False, "seed": None, "stream_options": None}
    expect("what changes nothing", server.texts(prompt="caf", temperature=0, max_tokens=3, **nothing), ["\u00e9 "])

    def send(what: str, status: int, body: bytes, *words: str, method: str = "POST", path: str = "/v1/completions", kind: str = "application/json") -> dict:
        code, text, headers = server.send(method, path, body, {"Content-Type": kind} if kind else {})
        refused(what, (code, json.loads(text)), status, None, *words)
        return headers

    for body in (b"", b"{", b"nonsense", b"[1]", b'{"model": "tiny", "prompt": "\xff"}', b'{"a": 1' * 1000, b"[" * 100000, b'{"prompt": "\\ud800"}'):
        send(f"body {body[:20]}", 400, body, "body")
    refused("a field twice", server.send_json(b'{"model": "tiny", "n": 1, "n": 2}'), 400, "n", "twice")
    refused("no model", server.send_json(b'{"prompt": "a"}'), 400, "model", "tiny")
    send("no JSON", 415, b"{}", "text/plain", kind="text/plain")
    send("a form", 415, b"--x\r\n\r\n--x--", kind="multipart/form-data; boundary=x")
    send("no type", 415, b"{}", kind="")
    send("too much", 413, b"[" + b"1," * 60000, "100000")
    expect("Allow", send("another method", 405, b"", "GET", method="GET", kind="").get("Allow"), "POST")
    send("another method with a body", 405, b"{}", "PUT", method="PUT")
    send("a method of models", 405, b"{}", "POST", path="/v1/models")
    send("no such address", 404, b"{}", "/v1/completions", path="/v1/chat/completions")
    send("a long address", 404, b"{}", path="/" + "a" * 4000)
    send("OPTIONS", 405, b"", method="OPTIONS", kind="")
    status, text, _ = server.send("GET", "/v1/models")
    expect("models", (status, [model["id"] for model in json.loads(text)["data"]]), (200, ["tiny"]))
    expect("a model", json.loads(server.send("GET", "/v1/models/tiny")[1])["object"], "model")
    expect("no such model", server.send("GET", "/v1/models/other")[0], 404)
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(b"nonsense\r\n\r\n")
    expect("no HTTP", raw.recv(12), b"HTTP/1.1 400")
    raw.close()
    # In chunks nobody says before how much will come.
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(20):
        raw.sendall(b"2710\r\n" + b" " * 10000 + b"\r\n")
    raw.sendall(b"0\r\n\r\n")
    expect("too much in chunks", raw.recv(12), b"HTTP/1.1 413")
    raw.close()


def check_places(server: Server) -> None:
    """The server has 16 places, and 20 requests may wait."""
    long = {"prompt": "caf", "max_tokens": 100000, "temperature": 0}
    for stream in (False, True):
        clients = [server.open(**long, stream=stream) for _ in range(2)]
        server.wait_for("two run", 2)
        if stream:   # while the text is being written
            text = b""
            while b"\ndata: " not in text:
                text += clients[0].recv(65536)
            expect("a stream begins", (text[:12], server.health()["sequences"]), (b"HTTP/1.1 200", 2))
        clients[0].close()
        server.wait_for("one has hung up", 1)
        clients[1].close()
        server.wait_for("both have hung up", 0)

    busy = server.open(**long, n=16)
    server.wait_for("all places are taken", 16)
    waiting = [server.open(**long) for _ in range(20)]
    server.wait_for("the queue is full", 16, 20)
    body = json.dumps({"model": "tiny", "prompt": "caf"}).encode()
    status, text, headers = server.send("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    expect("too many", (status, json.loads(text)["error"]["type"], headers.get("Retry-After")), (429, "rate_limit_error", "1"))
    for client in (busy, *waiting):
        client.close()
    server.wait_for("all have hung up", 0)

    expected = server.texts(prompt="caf", temperature=0, max_tokens=40) * 32
    found, lock = [], threading.Lock()

    def ask(index: int) -> None:
        if index % 2:
            texts = server.texts(prompt="caf", temperature=0, max_tokens=40)
        else:
            texts = ["".join(event["choices"][0]["text"] for event in server.stream(prompt="caf", temperature=0, max_tokens=40))]
        with lock:
            found.extend(texts)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect("32 at once", found, expected)


def check_end(program: str, folder: Path, environment: dict, server: Server) -> None:
    second = subprocess.run([program, "serve", "run", "--port", str(server.port)], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    expect("a port that is taken", (second.returncode, str(server.port) in second.stderr and "in use" in second.stderr), (1, True))
    idle = http.client.HTTPConnection("127.0.0.1", server.port)
    idle.request("GET", "/health")
    idle.getresponse().read()
    client = server.open(prompt="caf", max_tokens=4000, temperature=0, stream=True)
    server.wait_for("one runs", 1)
    server.process.send_signal(signal.SIGTERM)
    text = b""
    while part := client.recv(65536):
        text += part
        if text.endswith(b"0\r\n\r\n"):
            break
    expect("what runs comes to its end", b"data: [DONE]" in text, True)
    start = time.monotonic()
    expect("SIGTERM", server.process.wait(20), 0)
    expect("an idle connection does not hold it up", time.monotonic() - start < 3, True)
    said = server.said()
    expect("no text in the log", [word for word in ("caf", "\u754c", "other") if word in said.replace("/v1/models/other", "")], [])
    expect("a line per request", len(re.findall(r"POST /v1/completions 200 in [0-9.]+ s: 4 \+ 60 tokens, [0-9.]+ tokens/s", said)) > 3, True)
    expect("hang-ups", said.count("the client hung up"), 25)

    server = Server(program, folder, environment, "--stop-seconds", "0", "--max-seconds", "1", "--max-tokens", "1000000", "--threads", "1")
    long = {"prompt": "caf", "max_tokens": 1000000, "temperature": 0}
    status, answer = server.complete(**long)
    expect("too long", (status, answer["error"]["code"]), (504, "timeout"))
    client = server.open(**long)
    server.wait_for("one runs", 1)
    server.process.send_signal(signal.SIGINT)
    expect("cut off at the end", client.recv(12), b"HTTP/1.1 503")
    expect("SIGINT", server.process.wait(20), 0)


def main() -> int:
    program = str(Path(sys.argv[1]).resolve())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text(SENTENCE * 4000, encoding="utf-8")
        (folder / "test.yaml").write_text(CONFIG)
        for command in (["prepare", "--tokenizer", "bytes", "--output", "tokens", "text.txt"], ["train", "test.yaml"]):
            done = subprocess.run([program, *command], cwd=folder, capture_output=True, text=True, env=environment, check=False)
            if done.returncode != 0:
                raise SystemExit(done.stdout + done.stderr)
        server = Server(program, folder, environment, "--max-sequences", "16", "--max-waiting", "20", "--max-tokens", "100000",
                        "--max-prompt-tokens", "2000", "--max-body-bytes", "100000", "--threads", "1")
        try:
            check_texts(server, lambda *arguments: samples(program, folder, environment, *arguments, "--threads", "1"))
            check_refusals(server)
            check_places(server)
            check_end(program, folder, environment, server)
        finally:
            server.process.kill()
    for fault in FAULTS:
        print(f"FAILED: {fault}")
    return 1 if FAULTS else 0


if __name__ == "__main__":
    sys.exit(main())
