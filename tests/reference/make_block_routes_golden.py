#!/usr/bin/env python3
"""Writes tests/golden/pipeline/block_routes.txt from block_routes.py:

    python3 tests/reference/make_block_routes_golden.py > tests/golden/pipeline/block_routes.txt

A line: transport (cached, full), ranks, decoder layers per block (0: full_attnres), layers of each chunk; then, after a
colon, the summaries sent on each hop, hops separated by commas.
"""
import random

from block_routes import routes

HOLDS = {"cached": "own", "full": "full"}


def line(transport, num_ranks, block_size, splits):
    hops = routes(sum(splits), max(block_size, 1), splits, num_ranks, HOLDS[transport], block_size == 0)
    sent = ",".join(" ".join(map(str, hop)) for hop in hops)
    return f"{transport} {num_ranks} {block_size} {' '.join(map(str, splits))}:{sent}"


def random_layout(rng):
    num_ranks, chunks_per_rank = rng.randint(1, 5), rng.randint(1, 5)
    splits = [rng.randint(1, 3) for _ in range(num_ranks * chunks_per_rank)]
    if len(splits) > 1 and rng.random() < 0.25:
        splits[0] = 0                   # only the embedding
    if len(splits) > 2 and rng.random() < 0.25:
        splits[-1] = 0                  # only the head
    return num_ranks, rng.randint(1, 6) if rng.random() < 0.8 else 0, splits


def main():
    rng = random.Random(1)
    layouts = [(p, 1, [1] * (p * v)) for p, v in ((4, 1), (4, 2), (3, 3), (4, 4), (4, 8), (8, 2), (8, 4))]
    layouts += [(3, 3, [3] * 9), (4, 3, [4, 4, 4, 3, 3, 3, 3, 3]), (8, 3, [1] * 21 + [2] * 3)]  # 27 layers in blocks of 3
    layouts += [(2, 2, [0, 2, 2, 0]), (3, 3, [0, 3, 0]), (2, 1, [1, 0]), (2, 0, [0, 1])]
    layouts += [random_layout(rng) for _ in range(200)]
    for num_ranks, block_size, splits in layouts:
        print(line("cached", num_ranks, block_size, splits))
        if num_ranks > 1:               # one rank sends nothing, whatever the transport
            print(line("full", num_ranks, block_size, splits))


if __name__ == "__main__":
    main()
