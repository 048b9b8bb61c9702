#include "parallel/mesh/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "core/base/error.h"
#include "core/base/hash.h"

namespace lamina::mesh {
namespace {

using ::testing::ElementsAre;

std::string refusal(const MeshShape& shape, int world_size) {
  try {
    validate(shape, world_size);
  } catch (const Error& failure) {
    return failure.what();
  }
  return "accepted";
}

TEST(Mesh, PrintsASmallGrid) {
  EXPECT_EQ(to_string({2, 4, 2}),
            "8 ranks = pipeline 2 x data 4, expert 2\n"
            "data group         pp_rank 0: ranks 0..3\n"
            "expert group       pp_rank 0: ranks 0, 1\n"
            "expert group       pp_rank 0: ranks 2, 3\n"
            "expert data group  pp_rank 0 ep_rank 0: ranks 0, 2\n"
            "expert data group  pp_rank 0 ep_rank 1: ranks 1, 3\n"
            "data group         pp_rank 1: ranks 4..7\n"
            "expert group       pp_rank 1: ranks 4, 5\n"
            "expert group       pp_rank 1: ranks 6, 7\n"
            "expert data group  pp_rank 1 ep_rank 0: ranks 4, 6\n"
            "expert data group  pp_rank 1 ep_rank 1: ranks 5, 7\n"
            "pipeline group     dp_rank 0: ranks 0, 4\n"
            "pipeline group     dp_rank 1: ranks 1, 5\n"
            "pipeline group     dp_rank 2: ranks 2, 6\n"
            "pipeline group     dp_rank 3: ranks 3, 7\n");
  EXPECT_EQ(to_string({1, 3, 1}),
            "3 ranks = pipeline 1 x data 3, expert 1\n"
            "data group         pp_rank 0: ranks 0..2\n");
  EXPECT_EQ(to_string({1, 1, 1}),
            "1 ranks = pipeline 1 x data 1, expert 1\n"
            "data group         pp_rank 0: ranks 0\n");
}

// 512 ranks: 8 pipeline ranks of 64, experts over 16.
TEST(Mesh, GoldenGridOf512Ranks) {
  const MeshShape shape{8, 64, 16};
  validate(shape, 512);
  const std::string text = to_string(shape);
  EXPECT_THAT(text, ::testing::StartsWith("512 ranks = pipeline 8 x data 64, expert 16\n"
                                          "data group         pp_rank 0: ranks 0..63\n"
                                          "expert group       pp_rank 0: ranks 0..15\n"
                                          "expert group       pp_rank 0: ranks 16..31\n"
                                          "expert group       pp_rank 0: ranks 32..47\n"
                                          "expert group       pp_rank 0: ranks 48..63\n"
                                          "expert data group  pp_rank 0 ep_rank 0: ranks 0..48 step 16\n"));
  EXPECT_THAT(text, ::testing::HasSubstr("data group         pp_rank 7: ranks 448..511\n"));
  EXPECT_THAT(text, ::testing::HasSubstr("expert data group  pp_rank 7 ep_rank 15: ranks 463..511 step 16\n"));
  EXPECT_THAT(text, ::testing::EndsWith("pipeline group     dp_rank 63: ranks 63..511 step 64\n"));
  EXPECT_EQ(hash_to_hex(hash64(text)), "c55eb6ab8858e6a7");
  EXPECT_EQ(coordinates(shape, 300), (Coordinates{4, 44, 12}));
}

TEST(Mesh, GroupsPartitionTheWorldAndAgreeWithTheCoordinates) {
  for (const MeshShape& shape : {MeshShape{1, 1, 1}, MeshShape{3, 1, 1}, MeshShape{1, 6, 3}, MeshShape{4, 12, 4}}) {
    const int world = shape.world_size();
    for (int rank = 0; rank < world; ++rank) {
      const Coordinates at = coordinates(shape, rank);
      EXPECT_EQ(at.pp_rank * shape.data + at.dp_rank, rank);
      EXPECT_EQ(at.ep_rank, at.dp_rank % shape.expert);
      EXPECT_EQ(rank_of(shape, at.pp_rank, at.dp_rank), rank);
      // A rank is in a group exactly when the coordinates that define the group agree.
      const auto expect_group = [&](const std::vector<int>& group, auto&& same) {
        const std::set<int> members(group.begin(), group.end());
        EXPECT_EQ(members.size(), group.size());
        for (int other = 0; other < world; ++other)
          EXPECT_EQ(members.contains(other), same(coordinates(shape, other)))
              << to_string(shape) << rank << " " << other;
      };
      expect_group(pipeline_group(shape, rank), [&](const Coordinates& c) { return c.dp_rank == at.dp_rank; });
      expect_group(data_group(shape, rank), [&](const Coordinates& c) { return c.pp_rank == at.pp_rank; });
      expect_group(expert_group(shape, rank), [&](const Coordinates& c) {
        return c.pp_rank == at.pp_rank && c.dp_rank / shape.expert == at.dp_rank / shape.expert;
      });
      expect_group(expert_data_group(shape, rank),
                   [&](const Coordinates& c) { return c.pp_rank == at.pp_rank && c.ep_rank == at.ep_rank; });
    }
  }
}

TEST(Mesh, OrdersGroupsByTheirOwnRank) {
  const MeshShape shape{3, 4, 2};
  EXPECT_THAT(pipeline_group(shape, 6), ElementsAre(2, 6, 10));
  EXPECT_THAT(data_group(shape, 6), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(expert_group(shape, 7), ElementsAre(6, 7));
  EXPECT_THAT(expert_data_group(shape, 7), ElementsAre(5, 7));
}

TEST(Mesh, RefusalsNameTheRuleAndEveryFactor) {
  EXPECT_EQ(refusal({2, 4, 2}, 8), "accepted");
  EXPECT_EQ(refusal({2, 3, 1}, 8), "parallel: world = pipeline x data, but 2 x 3 = 6 and the job has 8 ranks");
  EXPECT_EQ(refusal({65536, 65536, 1}, 0),
            "parallel: world = pipeline x data, but 65536 x 65536 = 4294967296 and the job has 0 ranks");
  EXPECT_EQ(refusal({2, 4, 3}, 8),
            "parallel: expert must divide data, but 3 does not divide 4 (pipeline 2 x data 4 = 8 ranks)");
  EXPECT_EQ(refusal({0, 4, 1}, 4), "parallel: pipeline 0, data 4 and expert 1 found, each must be at least 1");
  EXPECT_EQ(refusal({1, 4, -1}, 4), "parallel: pipeline 1, data 4 and expert -1 found, each must be at least 1");
}

TEST(Mesh, CoordinatesOutsideTheGridAreBugs) {
  const MeshShape shape{2, 4, 2};
  EXPECT_THROW(coordinates(shape, 8), InternalError);
  EXPECT_THROW(coordinates(shape, -1), InternalError);
  EXPECT_THROW(rank_of(shape, 2, 0), InternalError);
  EXPECT_THROW(rank_of(shape, 0, 4), InternalError);
}

}  // namespace
}  // namespace lamina::mesh
