#include "configs/schema/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>

#include "core/base/error.h"

namespace lamina {
namespace {

const std::string folder = LAMINA_SOURCE_DIR "/configs/devices/";

constexpr const char* own = R"(name: mine
memory_gib: {value: 32, basis: datasheet, source: a sheet}
ranks_per_node: 4
launch_us: {value: 4, basis: assumed, source: nobody}
rates:
  bf16_tflops: {value: 100, basis: datasheet, source: a sheet}
  memory_gbps: {value: 750, basis: measured, source: a copy}
  node_gbps: {value: 40, basis: datasheet, source: a sheet}
  network_gbps: {value: 10, basis: datasheet, source: a sheet}
attainable:
  products: {value: 0.5, basis: measured, source: a product}
  experts: {value: 0.4, basis: assumed, source: nobody}
  attention: {value: 0.3, basis: assumed, source: nobody}
  kda: {value: 0.2, basis: assumed, source: nobody}
  memory: {value: 1, basis: measured, source: a copy}
  node: {value: 0.8, basis: assumed, source: nobody}
  network: {value: 0.9, basis: assumed, source: nobody}
  capacity: {value: 0.95, basis: assumed, source: nobody}
)";

std::string failure_of(const std::string& from, const std::string& to) {
  const std::string text = std::regex_replace(std::string(own), std::regex(from), to);
  EXPECT_NE(text, own) << from;
  try {
    parse_device(text, "mine.yaml");
  } catch (const Error& failure) {
    return failure.what();
  }
  return "nothing";
}

TEST(Device, FiguresAreTheFiles) {
  const DeviceConfig device = parse_device(own, "mine.yaml");
  EXPECT_EQ(device.name, "mine");
  EXPECT_EQ(device.memory_gib.value, 32);
  EXPECT_EQ(device.ranks_per_node, 4);
  EXPECT_EQ(device.launch_us.value, 4);
  EXPECT_EQ(device.launch_us.basis, FigureBasis::assumed);
  EXPECT_EQ(device.rates.bf16_tflops.value, 100);
  EXPECT_EQ(device.rates.memory_gbps.value, 750);
  EXPECT_EQ(device.rates.memory_gbps.basis, FigureBasis::measured);
  EXPECT_EQ(device.rates.memory_gbps.source, "a copy");
  EXPECT_EQ(device.rates.node_gbps.value, 40);
  EXPECT_EQ(device.rates.network_gbps.value, 10);
  const DeviceShares& shares = device.attainable;
  EXPECT_EQ(shares.products.value, 0.5);
  EXPECT_EQ(shares.experts.value, 0.4);
  EXPECT_EQ(shares.attention.value, 0.3);
  EXPECT_EQ(shares.kda.value, 0.2);
  EXPECT_EQ(shares.memory.value, 1);
  EXPECT_EQ(shares.node.value, 0.8);
  EXPECT_EQ(shares.network.value, 0.9);
  EXPECT_EQ(shares.capacity.value, 0.95);
}

// Dense bf16, half of what the sheets tell with sparsity; NVLink in one direction, half of what they tell of both. Nobody has measured one.
TEST(Device, KnownOnesHaveTheirDataSheets) {
  struct Sheet {
    const char* name;
    double tflops_sparse, gbps, gib, nvlink;
  };
  for (const Sheet& sheet : {Sheet{"h100", 1979, 3350, 80, 900}, Sheet{"h200", 1979, 4800, 140, 900},
                             Sheet{"b200", 36000.0 / 8, 8000, 179, 1800}}) {
    const DeviceConfig device = load_device(folder + sheet.name + ".yaml");
    EXPECT_EQ(device.rates.bf16_tflops.value, sheet.tflops_sparse / 2) << sheet.name;
    EXPECT_EQ(device.rates.memory_gbps.value, sheet.gbps) << sheet.name;
    EXPECT_EQ(device.memory_gib.value, sheet.gib) << sheet.name;
    EXPECT_EQ(device.rates.node_gbps.value, sheet.nvlink / 2) << sheet.name;
    EXPECT_EQ(device.rates.network_gbps.value, 400.0 / 8) << sheet.name;
    EXPECT_EQ(device.rates.bf16_tflops.basis, FigureBasis::datasheet) << sheet.name;
    EXPECT_EQ(device.attainable.products.basis, FigureBasis::assumed) << sheet.name;
  }
}

TEST(Device, OwnFilesMayIncludeAKnownOne) {
  const std::filesystem::path file = std::filesystem::path(testing::TempDir()) / "device_of_ones_own.yaml";
  std::ofstream(file) << "include: " << folder
                      << "h200.yaml\nattainable:\n  kda: {value: 0.1, basis: measured, source: bench_gpu_ops}\n";
  const DeviceConfig device = load_device(file.string());
  std::filesystem::remove(file);
  EXPECT_EQ(device.rates.memory_gbps.value, 4800);
  EXPECT_EQ(device.attainable.kda.value, 0.1);
  EXPECT_EQ(device.attainable.kda.basis, FigureBasis::measured);
}

TEST(Device, RefusesWhatIsWrong) {
  EXPECT_EQ(failure_of("value: 750, ", ""),
            "mine.yaml:7: rates.memory_gbps.value: required key is missing, expected a number above 0");
  EXPECT_EQ(failure_of("memory_gib: .*", ""),
            "mine.yaml: memory_gib.value: required key is missing, expected a number above 0");
  EXPECT_EQ(failure_of("  kda: .*", ""),
            "mine.yaml:10: attainable.kda.value: required key is missing, expected a number above 0");
  EXPECT_EQ(failure_of("name: mine", "nam: mine"), "mine.yaml:1: nam: unknown key, did you mean name?");
  EXPECT_EQ(failure_of("name: mine", "pipeline: 4"),
            "mine.yaml:1: pipeline: unknown key, expected one of name, memory_gib, ranks_per_node, launch_us, rates, "
            "attainable");
  EXPECT_EQ(failure_of("value: 0.5", "value: 1.5"),
            "mine.yaml:11: attainable.products.value: found 1.5, expected above 0 and at most 1");
  EXPECT_EQ(failure_of("value: 750", "value: 0"), "mine.yaml:7: rates.memory_gbps.value: found 0, expected above 0");
  EXPECT_EQ(failure_of("value: 750", "value: fast"),
            "mine.yaml:7: rates.memory_gbps.value: found 'fast', expected a number");
  EXPECT_EQ(failure_of("basis: measured, source: a copy\\}\n  node", "basis: guessed, source: a copy}\n  node"),
            "mine.yaml:7: rates.memory_gbps.basis: found 'guessed', expected one of datasheet, measured, assumed");
  EXPECT_EQ(failure_of("basis: measured, source: a product", "basis: datasheet, source: a product"),
            "mine.yaml:11: attainable.products.basis: found datasheet, expected measured or assumed: no data sheet "
            "tells a share");
  EXPECT_EQ(failure_of("source: a product", "source: \"\""),
            "mine.yaml:11: attainable.products.source: found an empty text, expected where the figure is from");
  EXPECT_EQ(failure_of("ranks_per_node: 4", "ranks_per_node: 0"),
            "mine.yaml:3: ranks_per_node: found 0, expected at least 1");
  EXPECT_EQ(failure_of("\\{value: 40.*", "40"),
            "mine.yaml:8: rates.node_gbps: found '40', expected a section of key: value lines");
  EXPECT_THAT([] { load_device("no_such_device.yaml"); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("no_such_device.yaml: ")));
}

}  // namespace
}  // namespace lamina
