// The ranks of a job as a grid. Pure arithmetic.
//
//   world = pipeline x data;  expert divides data
//   rank = pp_rank * data + dp_rank;  ep_rank = dp_rank mod expert
//
// Dense parameters are replicated over the data group, an expert's over the expert_data group.
#pragma once

#include <string>
#include <vector>

namespace lamina::mesh {

struct MeshShape {
  int pipeline = 1;
  int data = 1;
  int expert = 1;
  int world_size() const { return pipeline * data; }
};

struct Coordinates {
  int pp_rank = 0;
  int dp_rank = 0;
  int ep_rank = 0;
  bool operator==(const Coordinates&) const = default;
};

// Throws Error with the rule and every factor when the shape does not fit the job.
void validate(const MeshShape& shape, int world_size);

Coordinates coordinates(const MeshShape& shape, int rank);
int rank_of(const MeshShape& shape, int pp_rank, int dp_rank);

// The ranks of the group that `rank` is in, ascending.
std::vector<int> pipeline_group(const MeshShape& shape, int rank);     // same dp_rank, in pipeline order
std::vector<int> data_group(const MeshShape& shape, int rank);         // same pp_rank
std::vector<int> expert_group(const MeshShape& shape, int rank);       // together they hold every expert once
std::vector<int> expert_data_group(const MeshShape& shape, int rank);  // same pp_rank and ep_rank: the same experts

// Every group, one a line; ranks as first..last or first..last step n.
std::string to_string(const MeshShape& shape);

}  // namespace lamina::mesh
