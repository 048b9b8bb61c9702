#include "core/ops/document_starts.h"

#include <gtest/gtest.h>

#include <vector>

namespace lamina::ops {
namespace {

TensorView view_of(std::vector<int32_t>& starts, int64_t batch) {
  return {starts.data(), DType::i32, {batch, static_cast<int64_t>(starts.size()) / batch}};
}

TEST(DocumentStarts, EveryTokenLiesInItsDocument) {
  std::vector<int32_t> starts = {0, 0, 2, 3, 3, 0, 0, 0, 0, 4};  // documents of 2, 1, 2 tokens; of 4, 1
  const TensorView view = view_of(starts, 2);
  check_document_starts(view, 2, 5);
  for (int64_t row = 0; row < 2; ++row)
    for (int64_t t = 0; t < 5; ++t) {
      const int64_t begin = document_start(view, row, t), end = document_end(view, row, begin, 5);
      EXPECT_EQ(begin, starts[static_cast<size_t>(5 * row + t)]);
      EXPECT_LE(begin, t);
      EXPECT_LT(t, end);
    }
  EXPECT_EQ(document_end(view, 0, 0, 5), 2);
  EXPECT_EQ(document_end(view, 0, 2, 5), 3);
  EXPECT_EQ(document_end(view, 0, 3, 5), 5);
  EXPECT_EQ(document_end(view, 1, 0, 5), 4);
}

TEST(DocumentStarts, EmptyIsOneDocumentPerSequence) {
  check_document_starts({}, 3, 7);
  EXPECT_EQ(document_start({}, 2, 6), 0);
  EXPECT_EQ(document_end({}, 2, 0, 7), 7);
}

TEST(DocumentStarts, RefusesWhatIsNoStart) {
  const auto check = [](std::vector<int32_t> starts) { check_document_starts(view_of(starts, 1), 1, 4); };
  EXPECT_NO_THROW(check({0, 0, 2, 2}));
  EXPECT_THROW(check({1, 1, 1, 1}), InternalError);  // the first token begins a document
  EXPECT_THROW(check({0, 0, 1, 1}), InternalError);  // a document that begins behind its first token
  EXPECT_THROW(check({0, 0, 2, 0}), InternalError);  // one that goes on after another
  EXPECT_THROW(check({0, 3, 3, 3}), InternalError);  // in the future
  EXPECT_THROW(check({0, 0, -1, -1}), InternalError);
  EXPECT_THROW(check({0, 0, 0}), InternalError);  // too short
  std::vector<float> wrong(4);
  EXPECT_THROW(check_document_starts({wrong.data(), DType::f32, {1, 4}}, 1, 4), InternalError);
}

}  // namespace
}  // namespace lamina::ops
