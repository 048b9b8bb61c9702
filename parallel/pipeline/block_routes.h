// Which block summaries travel on each pipeline hop, and where every copy comes from and ends. Pure functions of the split.
//
// Sublayers are numbered from 0 (mixer 0, MLP 0, mixer 1, ..). Summary 0 is the embedding, summary b + 1 the sum of block b.
// When a block opens, everything before it is finished: its readers see summaries 0..b. What crosses a hop as the hidden
// stream is the open partial sum, or the summary that was finished exactly at the chunk's end, or (before the first block
// opens) the embedding; it always travels and is not counted here.
//
// A rank keeps one copy of each summary for all its chunks (cached): what it received, what it finished inside a chunk, what
// arrived as the hidden stream, and what it finished at a chunk's end and sent on as the hidden stream. With
// BlockTransport::full nothing is kept from chunk to chunk: every finished summary travels on every hop.
//
// A copy is therefore named by (cache_of(chunk), summary, micro-batch), and code that uses this key treats both transports
// alike: cached, the chunks of a rank share one cache; full, each chunk has its own, which holds exactly what the chunk
// reads, and all of it is released by that chunk.
// The counts equal an independent program's (tests/reference/block_routes.py).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

// Blocks as ranges of sublayers: block b is [begin[b], begin[b + 1]). Empty `begin`: no blocks (the standard residual), no
// summaries, nothing to route.
struct BlockLayout {
  std::vector<int> begin;  // num_blocks + 1 entries; the last is the number of sublayers
  int num_blocks() const { return begin.empty() ? 0 : static_cast<int>(begin.size()) - 1; }
  int block_of(int sublayer) const;
  bool opens_block(int sublayer) const { return begin[static_cast<size_t>(block_of(sublayer))] == sublayer; }
};
BlockLayout make_block_layout(const ModelConfig& config);  // full_attnres: one sublayer per block

// Sublayers of each chunk: [begin[c], begin[c + 1]). The first and the last chunk may be empty (only the embedding, only the
// head).
struct ChunkSplit {
  std::vector<int> begin;  // num_chunks + 1 entries
  int num_chunks() const { return static_cast<int>(begin.size()) - 1; }
};
ChunkSplit make_chunk_split(std::span<const int64_t> layers_per_chunk);  // decoder layers, two sublayers each

struct ChunkRoutes {
  std::vector<int> reads;     // finished summaries that some read in this chunk sees, ascending
  std::vector<int> received;  // arrive on the hop into this chunk, ascending; their gradients go back on it
  std::vector<int> sent;      // travel on the hop out of this chunk, ascending: the next chunk's `received`
  std::vector<int> finished;  // finished inside this chunk and read in it, ascending (not the two below)
  int arrives_as_stream =
      -1;  // the summary that the incoming stream (chunk 0: the embedding) is, or becomes when this chunk
           // opens a block with it; -1: the stream is an open sum, or stays unread by this chunk
  int leaves_as_stream = -1;   // the summary that was finished at this chunk's end and leaves as the stream; -1: open
  bool keeps_leaving = false;  // this rank keeps that one because a later chunk of it reads it
  // Copies of this chunk's cache whose last reader in backward order (the lowest chunk of the cache that reads it) is this
  // chunk: the values are freed after its backward. The gradient of what an earlier chunk of the rank finished and kept
  // (keeps_leaving) stays until that chunk's backward takes it. In a forward-only pass a cache is freed after the forward of
  // its last chunk.
  std::vector<int> released;
};

struct BlockRoutes {
  int num_ranks = 1;
  BlockTransport transport = BlockTransport::cached;
  std::vector<ChunkRoutes> chunks;
  int64_t num_sent() const;  // summaries per micro-batch and direction, over all hops
  // Chunks with the same number share their copies; always on one rank.
  int cache_of(int chunk) const { return transport == BlockTransport::full ? chunk : chunk % num_ranks; }
  std::string to_string() const;
};
// With one rank there are no messages, whatever the transport says: `cached`. There, what one chunk finishes at its end is
// brought by the next chunk, which it reaches as the stream (keeps_leaving is false).
BlockRoutes make_block_routes(const ChunkSplit& split, const BlockLayout& blocks, int num_ranks,
                              BlockTransport transport);
// Throws InternalError when a route is wrong, naming chunk and summary: one read that is neither held nor received, sent that
// is not held or not received, received although it is held, kept or brought for nobody, released by another chunk than its
// last reader, twice or never.
void validate(const BlockRoutes& routes, const ChunkSplit& split, const BlockLayout& blocks);

// The most summaries alive on each rank at one time when `schedule` runs: from the start of the action that brings a copy
// (its forward) to the end of the backward (B or I) that releases it. The tight bound that the block cache must meet. A
// schedule without any backward is a forward-only pass.
std::vector<int> peak_summaries(const BlockRoutes& routes, const Schedule& schedule);

}  // namespace lamina::pipeline
