#!/usr/bin/env python3
"""OpenAI's own Python client against `lamina serve`: texts, streams, many at once, clients that go away, requests that are no requests.

    openai_test.py LAMINA [VENV]

VENV is a Python environment with openai; without it one is made in a temporary folder.
"""
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "launch"))
from sample_test import CONFIG, SENTENCE  # noqa: E402
from serve_test import FAULTS, Server, expect, samples  # noqa: E402

OPENAI = "3.57.0"

# Runs inside the virtual environment.
CLIENT = r"""
import asyncio, json, sys
import openai
port = int(sys.argv[1])
options = {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "none", "max_retries": 0}
client = openai.OpenAI(**options)
greedy = {"model": "tiny", "prompt": "caf", "max_tokens": 60, "temperature": 0}
out = {"version": openai.__version__, "models": [model.id for model in client.models.list()]}
whole = client.completions.create(**greedy, logprobs=2)
out["text"], out["finish"], out["usage"] = whole.choices[0].text, whole.choices[0].finish_reason, whole.usage.to_dict()
out["logprobs"] = whole.choices[0].logprobs.token_logprobs
chunks = list(client.completions.create(**greedy, stream=True, stream_options={"include_usage": True}))
out["streamed"], out["pieces"] = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices), len(chunks)
out["stream_usage"] = chunks[-1].usage.to_dict()
out["n"] = [choice.index for choice in client.completions.create(**{**greedy, "temperature": 1}, n=3, best_of=4, stop=["x", "y"], user="me", seed=3).choices]
out["errors"] = []
for change in ({"model": "other"}, {"temperature": 9}, {"prompt": "a" * 5000}, {"suffix": "x"}, {"extra_body": {"top_k": 3}}, {"prompt": "a" * 200000}):
    try:
        client.completions.create(**{**greedy, **change})
        out["errors"].append("none")
    except openai.APIStatusError as error:
        out["errors"].append([type(error).__name__, error.status_code, (error.body or {}).get("param")])

async def many():
    api = openai.AsyncOpenAI(**options)
    async def one(index):
        if index % 4 == 3:      # goes away
            stream = await api.completions.create(**{**greedy, "max_tokens": 100000}, stream=True)
            async for chunk in stream:
                break
            await stream.close()
            return None
        if index % 4 == 2:      # is given up before there is an answer
            try:
                await asyncio.wait_for(api.completions.create(**{**greedy, "max_tokens": 100000}), 0.5)
            except asyncio.TimeoutError:
                pass
            return None
        if index % 4 == 1:
            return "".join([chunk.choices[0].text async for chunk in await api.completions.create(**greedy, stream=True)])
        return (await api.completions.create(**greedy)).choices[0].text
    return await asyncio.gather(*(one(index) for index in range(64)))

found = asyncio.run(many())
out["many"] = [text for text in found if text is not None]
print(json.dumps(out))
"""


def make_environment(folder: Path) -> Path:
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "install", "-q", f"openai=={OPENAI}"], check=True)
    return environment


def throw_rubbish(server: Server) -> None:
    """Requests that are broken in every way: each is answered or its connection ends, and the server lives."""
    noise = random.Random(1)
    body = json.dumps({"model": "tiny", "prompt": "caf", "max_tokens": 5}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    for _ in range(300):
        damaged = bytearray(request)
        for _ in range(noise.randint(1, 8)):
            place = noise.randrange(len(damaged))
            kind = noise.randrange(3)
            if kind == 0:
                damaged[place] = noise.randrange(256)
            elif kind == 1:
                del damaged[place:place + noise.randint(1, 20)]
            else:
                damaged[place:place] = noise.randbytes(noise.randint(1, 20))
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            try:
                client.sendall(damaged)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except ConnectionError:
                pass
    expect("after the rubbish", server.process.poll(), None)


def main() -> int:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    program = str(Path(sys.argv[1]).resolve())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = (Path(sys.argv[2]).resolve() if len(sys.argv) == 3 else make_environment(folder)) / "bin" / "python"
        (folder / "text.txt").write_text(SENTENCE * 4000, encoding="utf-8")
        (folder / "test.yaml").write_text(CONFIG)
        for command in (["prepare", "--tokenizer", "bytes", "--output", "tokens", "text.txt"], ["train", "test.yaml"]):
            subprocess.run([program, *command], cwd=folder, capture_output=True, env=environment, check=True)
        lines = samples(program, folder, environment, "--prompt", "caf", "--temperature", "0", "--max-tokens", "60", "--threads", "1")
        server = Server(program, folder, environment, "--max-sequences", "32", "--max-tokens", "100000", "--max-prompt-tokens", "4000",
                        "--max-body-bytes", "100000", "--threads", "1")
        try:
            done = subprocess.run([str(python), "-c", CLIENT, str(server.port)], capture_output=True, text=True, timeout=600, check=False)
            if done.returncode != 0:
                raise SystemExit(f"the client failed: {done.stderr[-3000:]}\n{server.said()[-3000:]}")
            found = json.loads(done.stdout)
            text, usage = lines[-1]["text"], {"prompt_tokens": 4, "completion_tokens": 60, "total_tokens": 64}
            expect("models", found["models"], ["tiny"])
            expect("text", (found["text"], found["finish"], found["usage"]), (text, "length", usage))
            expect("log-probabilities", [a for a, line in zip(found["logprobs"], lines) if abs(a - line["logprob"]) > 1e-4], [])
            expect("stream", (found["streamed"], found["stream_usage"]), (text, usage))
            expect("n", found["n"], [0, 1, 2])
            bad = "BadRequestError"
            expect("errors", found["errors"], [["NotFoundError", 404, "model"], [bad, 400, "temperature"], [bad, 400, "prompt"], [bad, 400, "suffix"],
                                               [bad, 400, "top_k"], ["APIStatusError", 413, None]])
            expect("64 at once", found["many"], [text] * 32)
            server.wait_for("those that went away have left", 0)
            throw_rubbish(server)
            server.wait_for("nothing is left", 0)
            expect("it still answers", server.texts(prompt="caf", temperature=0, max_tokens=60), [text])
            server.process.terminate()
            expect("SIGTERM", server.process.wait(20), 0)
            print(f"openai {found['version']}: {found['pieces']} pieces of a stream; log:\n{server.said()[:600]}")
        finally:
            server.process.kill()
    for fault in FAULTS:
        print(f"FAILED: {fault}")
    return 1 if FAULTS else 0


if __name__ == "__main__":
    sys.exit(main())
