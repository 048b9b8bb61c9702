#include "launch/rank_map.h"

#include <fmt/ranges.h>

#include <cstdlib>

#include "core/base/here.h"
#include "core/base/log.h"
#include "launch/doctor.h"

namespace lamina {
namespace {

struct Place {
  std::string host, cores, rest;
};

Place parse(const std::string& text) {
  const size_t first = text.find('\n'), second = text.find('\n', first + 1);
  return {text.substr(0, first), text.substr(first + 1, second - first - 1), text.substr(second + 1)};
}

std::string place_of(const World& world) {
  std::string rest = fmt::format(", {} thread{}", world.num_threads, world.num_threads == 1 ? "" : "s");
  if (world.device.kind == DeviceKind::cuda) rest += fmt::format(", GPU {}", world.device.index);
  return fmt::format("{}\n{}\n{}", host_name(), doctor::cores_text(), rest);
}

void log_restarts() {
  const char* job = std::getenv("SLURM_JOB_ID");
  const char* slurm = std::getenv("SLURM_RESTART_COUNT");
  const char* own = std::getenv("LAMINA_RESTARTS");  // mpirun.sh counts
  if (job) log::info("Slurm job {}, restart {}", job, slurm ? slurm : "0");
  if (own) log::info("restart {} by mpirun.sh", own);
}

}  // namespace

std::vector<std::string> rank_map_lines(const std::vector<std::string>& places, int max_lines) {
  std::vector<std::string> lines;
  const bool one_by_one = places.size() <= static_cast<size_t>(max_lines);
  for (size_t begin = 0; begin < places.size();) {
    const Place place = parse(places[begin]);
    size_t end = begin + 1;
    std::vector<std::string> cores{place.cores};
    for (; !one_by_one && end < places.size() && parse(places[end]).host == place.host; ++end)
      if (const std::string more = parse(places[end]).cores; more != cores.back()) cores.push_back(more);
    if (one_by_one) {
      lines.push_back(fmt::format("rank {}: {}, cores {}{}", begin, place.host, place.cores, place.rest));
    } else {
      lines.push_back(fmt::format("ranks {}-{}: {}, cores {}", begin, end - 1, place.host, fmt::join(cores, " ")));
    }
    begin = end;
  }
  return lines;
}

void log_rank_map(World& world) {
  if (world.rank == 0) log_restarts();
  if (world.size == 1) return;
  const std::vector<std::string> places = doctor::gather_texts(world.comm, place_of(world));
  if (world.rank != 0) return;
  for (const std::string& line : rank_map_lines(places)) log::info("{}", line);
}

}  // namespace lamina
