#include "parallel/mesh/mesh.h"

#include "core/base/error.h"

namespace lamina::mesh {

namespace {

std::vector<int> arithmetic(int first, int step, int count) {
  std::vector<int> ranks;
  for (int i = 0; i < count; ++i) ranks.push_back(first + i * step);
  return ranks;
}

std::string describe(const std::vector<int>& ranks) {
  if (ranks.size() == 1) return fmt::format("{}", ranks[0]);
  const int step = ranks[1] - ranks[0];
  if (ranks.size() == 2) return fmt::format("{}, {}", ranks[0], ranks[1]);
  return step == 1 ? fmt::format("{}..{}", ranks.front(), ranks.back())
                   : fmt::format("{}..{} step {}", ranks.front(), ranks.back(), step);
}

}  // namespace

void validate(const MeshShape& shape, int world_size) {
  if (shape.pipeline < 1 || shape.data < 1 || shape.expert < 1)
    throw Error("parallel: pipeline {}, data {} and expert {} found, each must be at least 1", shape.pipeline,
                shape.data, shape.expert);
  // Wider than int: the product of two plausible typing errors overflows.
  const long long product = static_cast<long long>(shape.pipeline) * shape.data;
  if (product != world_size)
    throw Error("parallel: world = pipeline x data, but {} x {} = {} and the job has {} ranks", shape.pipeline,
                shape.data, product, world_size);
  if (shape.data % shape.expert != 0)
    throw Error("parallel: expert must divide data, but {} does not divide {} (pipeline {} x data {} = {} ranks)",
                shape.expert, shape.data, shape.pipeline, shape.data, world_size);
}

Coordinates coordinates(const MeshShape& shape, int rank) {
  LAMINA_CHECK(rank >= 0 && rank < shape.world_size(), "rank {} of {} x {}", rank, shape.pipeline, shape.data);
  const int dp_rank = rank % shape.data;
  return {rank / shape.data, dp_rank, dp_rank % shape.expert};
}

int rank_of(const MeshShape& shape, int pp_rank, int dp_rank) {
  LAMINA_CHECK(pp_rank >= 0 && pp_rank < shape.pipeline, "pp_rank {} of {}", pp_rank, shape.pipeline);
  LAMINA_CHECK(dp_rank >= 0 && dp_rank < shape.data, "dp_rank {} of {}", dp_rank, shape.data);
  return pp_rank * shape.data + dp_rank;
}

std::vector<int> pipeline_group(const MeshShape& shape, int rank) {
  return arithmetic(coordinates(shape, rank).dp_rank, shape.data, shape.pipeline);
}

std::vector<int> data_group(const MeshShape& shape, int rank) {
  return arithmetic(coordinates(shape, rank).pp_rank * shape.data, 1, shape.data);
}

std::vector<int> expert_group(const MeshShape& shape, int rank) {
  return arithmetic(rank - coordinates(shape, rank).ep_rank, 1, shape.expert);
}

std::vector<int> expert_data_group(const MeshShape& shape, int rank) {
  const Coordinates at = coordinates(shape, rank);
  return arithmetic(at.pp_rank * shape.data + at.ep_rank, shape.expert, shape.data / shape.expert);
}

std::string to_string(const MeshShape& shape) {
  std::string text = fmt::format("{} ranks = pipeline {} x data {}, expert {}\n", shape.world_size(), shape.pipeline,
                                 shape.data, shape.expert);
  for (int pp = 0; pp < shape.pipeline; ++pp) {
    const int first = rank_of(shape, pp, 0);
    text += fmt::format("data group         pp_rank {}: ranks {}\n", pp, describe(data_group(shape, first)));
    if (shape.expert == 1) continue;
    for (int dp = 0; dp < shape.data; dp += shape.expert)
      text += fmt::format("expert group       pp_rank {}: ranks {}\n", pp, describe(expert_group(shape, first + dp)));
    for (int ep = 0; ep < shape.expert; ++ep)
      text += fmt::format("expert data group  pp_rank {} ep_rank {}: ranks {}\n", pp, ep,
                          describe(expert_data_group(shape, first + ep)));
  }
  if (shape.pipeline == 1) return text;
  for (int dp = 0; dp < shape.data; ++dp)
    text += fmt::format("pipeline group     dp_rank {}: ranks {}\n", dp, describe(pipeline_group(shape, dp)));
  return text;
}

}  // namespace lamina::mesh
