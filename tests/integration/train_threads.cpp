// Trains as `mpirun -n RANKS lamina train CONFIG` would, with the ranks as threads of this process.
//   train_threads RANKS CONFIG [key.path=value ...]
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/device/cpu/parallel_for.h"
#include "parallel/comm/thread.h"
#include "trainer/train.h"

int main(int argc, char** argv) {
  using namespace lamina;
  if (argc < 3) {
    std::fprintf(stderr, "usage: train_threads RANKS CONFIG [key.path=value ...]\n");
    return 2;
  }
  try {
    const int ranks = std::atoi(argv[1]);
    const std::vector<std::string> overrides(argv + 3, argv + argc);
    const Config config = load_config(argv[2], overrides);
    resolve_data_parallel(config, ranks);
    log::configure({});
    cpu::set_num_threads(1);
    comm::run_threads(ranks, [&](comm::Communicator& comm) {
      if (const TrainResult result = train(config, comm); result.end == TrainEnd::diverged)
        throw Error("{}", result.reason);
    });
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
  return 0;
}
