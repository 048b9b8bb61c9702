#include "trainer/record/spike_log.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "configs/schema/decode.h"
#include "configs/schema/keys.h"
#include "core/base/error.h"
#include "core/io/append_file.h"
#include "core/io/file.h"
#include "parallel/comm/agreement.h"
#include "trainer/record/metrics.h"

namespace lamina {
namespace {

using nlohmann::json;

std::optional<OnSpike> action_named(const std::string& text) {
  for (const auto& [name, value] : schema::enum_names<OnSpike>::value)
    if (text == name) return value;
  return std::nullopt;
}

std::string to_line(const Spike& spike) {
  return JsonRow()
             .add("step", spike.step)
             .add("batch", spike.batch)
             .add("action", name_of(spike.action))
             .add("passed", to_text(spike.passed))
             .add("reason", spike.reason)
             .to_string() +
         "\n";
}

std::optional<Spike> parse_line(const std::string& line) {
  const json row = json::parse(line, nullptr, /*allow_exceptions=*/false);
  try {
    const std::optional<OnSpike> action = action_named(row.at("action").get<std::string>());
    if (!action) return std::nullopt;
    return Spike{row.at("step").get<int64_t>(), row.at("batch").get<int64_t>(), *action,
                 parse_step_ranges(row.at("passed").get<std::string>()), row.at("reason").get<std::string>()};
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

std::vector<Spike> parse(const std::string& text, const std::string& name) {
  std::vector<Spike> spikes;
  size_t begin = 0;
  for (int number = 1;; ++number) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) return spikes;
    const std::string line = text.substr(begin, end - begin);
    std::optional<Spike> spike = parse_line(line);
    if (!spike)
      throw Error(
          "{}:{}: found `{}`, expected a spike as `lamina train` writes it: step, batch, action, passed, reason", name,
          number, line.substr(0, 100));
    spikes.push_back(std::move(*spike));
    begin = end + 1;
  }
}

}  // namespace

std::vector<Spike> read_spikes(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return {};
  return parse(io::read_file(path), path.string());
}

SpikeLog::SpikeLog(std::filesystem::path path, comm::Communicator& comm) : path_(std::move(path)) {
  std::string text;
  run_and_agree(comm, [&] {
    if (comm.rank() == 0 && std::filesystem::exists(path_)) text = io::read_file(path_);
  });
  text = broadcast_text(comm, text);
  run_and_agree(comm, [&] { spikes_ = parse(text, path_.string()); });
}

void SpikeLog::begin_writing(int64_t step) {
  std::erase_if(spikes_, [&](const Spike& spike) { return spike.action == OnSpike::warn && spike.step > step; });
  std::string text;
  for (const Spike& spike : spikes_) text += to_line(spike);
  if (std::filesystem::exists(path_) && io::read_file(path_) != text) io::write_file_atomically(path_, text);
}

void SpikeLog::add(const Spike& spike, bool writes) {
  spikes_.push_back(spike);
  if (writes) io::AppendFile(path_).append(to_line(spike));
}

PassedBatches SpikeLog::passed() const {
  PassedBatches passed;
  for (const Spike& spike : spikes_)
    for (const StepRange& range : spike.passed) passed.add(range);
  return passed;
}

int64_t SpikeLog::num_recent(int64_t batch, int64_t window) const {
  return std::count_if(spikes_.begin(), spikes_.end(), [&](const Spike& spike) {
    return spike.action != OnSpike::warn && spike.batch < batch && spike.batch >= batch - window;
  });
}

}  // namespace lamina
