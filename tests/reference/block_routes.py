#!/usr/bin/env python3
"""Which block summaries travel on each pipeline hop: an independent statement of parallel/pipeline/block_routes.h, written as
a walk over the layers with the set of summaries that each rank holds. Run it for the published counts;
make_block_routes_golden.py writes the file that the C++ tests compare with.

A chunk is a range of decoder layers; chunk c runs on rank c mod P. The hidden stream (the open partial sum, or a block that
was finished exactly at the chunk's end) always travels and is not counted. `holds` says what a rank keeps for later chunks:
  full      nothing: every finished summary travels on every hop
  received  what it received or finished inside a chunk (the published scheme)
  own       also the block it finished at a chunk's end and sent on as the hidden stream (fewer bytes still)
"""
import sys


def routes(num_layers, block_size, splits, num_ranks, holds="own", full_attnres=False):
    """splits: layers per chunk. Returns a list over hops c -> c+1 of the summaries sent (ids; 0 is the embedding)."""
    done, hidden = [], 0               # finished summaries a reader must see; id of the stream (0: the embedding itself)
    held = [set() for _ in range(num_ranks)]
    hops, layer = [], 0
    finished_stream = True             # is the stream a finished summary?
    for c, n in enumerate(splits):
        rank = c % num_ranks
        held[rank] |= set(done)
        for i in range(layer, layer + n):
            for site in range(2):      # mixer, MLP
                if (site == 0 and i % block_size == 0) or full_attnres:
                    done.append(hidden); held[rank].add(hidden); hidden += 1; finished_stream = False
        layer += n
        finished_stream = full_attnres or layer % block_size == 0
        if holds == "own" and finished_stream:
            held[rank].add(hidden)
        if c + 1 < len(splits):
            nxt = (c + 1) % num_ranks
            hops.append([b for b in done if holds == "full" or b not in held[nxt]])
    assert layer == num_layers, "splits must add up to num_layers"
    return hops


if __name__ == "__main__":
    print("P x V, one block per chunk:   full   received   own   (peak hop of each)")
    for P, V in ((4, 1), (2, 2), (4, 2), (3, 3), (4, 4), (4, 8), (8, 2), (8, 4)):
        row = [routes(P * V, 1, [1] * (P * V), P, h) for h in ("full", "received", "own")]
        n = [sum(map(len, r)) for r in row]
        assert n[0] == P * V * (P * V - 1) // 2 and n[1] == P * (P - 1) * (2 * V - 1) // 2, (P, V, n)
        assert n[2] == P * (P - 1) // 2 + P * (V - 1) * (P - 2), (P, V, n)
        print(f"{P} x {V}:  {n[0]:5d} {n[1]:8d} {n[2]:8d}    peaks {[max(map(len, r), default=0) for r in row]}")
    for P, V, split in ((3, 3, [3] * 9), (4, 2, [4, 4, 4, 3, 3, 3, 3, 3]), (8, 3, [1] * 21 + [2] * 3)):
        n = [sum(map(len, routes(27, 3, split, P, h))) for h in ("full", "received", "own")]
        print(f"48B, 27 layers, 3 per block, {P} x {V}: full {n[0]}, received {n[1]}, own {n[2]}")
