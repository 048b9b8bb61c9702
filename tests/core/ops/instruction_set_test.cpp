// Runs this program's tests on a lesser instruction set: LAMINA_TEST_INSTRUCTION_SET=avx2 or portable.
#include "core/ops/simd/instruction_set.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace lamina::ops::cpu {
namespace {

std::string asked() {
  const char* text = std::getenv("LAMINA_TEST_INSTRUCTION_SET");
  return text == nullptr ? "best" : text;
}

class LimitedInstructionSet : public ::testing::Environment {
 public:
  void SetUp() override {
    if (asked() == "avx2") limit_instruction_set(InstructionSet::avx2);
    if (asked() == "portable") limit_instruction_set(InstructionSet::portable);
    std::printf("kernels use %s\n", instruction_set_name());
  }
};

const ::testing::Environment* const environment = ::testing::AddGlobalTestEnvironment(new LimitedInstructionSet);

TEST(InstructionSet, IsWhatWasAsked) {
  const std::string name = instruction_set_name();
  if (asked() == "portable") {
    EXPECT_TRUE(name == "SCALAR" || name == "EMU128" || name == "SSE2") << name;
  } else if (asked() == "avx2") {
    EXPECT_EQ(name.find("AVX3"), std::string::npos) << name;
  }
  EXPECT_NE(environment, nullptr);
}

}  // namespace
}  // namespace lamina::ops::cpu
