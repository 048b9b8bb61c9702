#include "core/base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <cstdlib>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace lamina::log {
namespace {

struct EarlyLine {
  spdlog::log_clock::time_point time;
  spdlog::level::level_enum level;
  std::string text;
};

struct Sink {
  std::mutex mutex;  // ranks that are threads share the log, and a logger's list of sinks has no lock of its own
  std::shared_ptr<spdlog::logger> logger;
  std::string prefix;
  bool is_first_rank = true;
  // What was logged before there was a file: the run folder's log.txt is to begin where the console does.
  std::vector<EarlyLine> early;
  bool keeps_early = true;

  Sink() {
    auto console = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    console->set_pattern("%H:%M:%S %^%L%$ %v");
    const char* no_color = std::getenv("NO_COLOR");  // https://no-color.org
    if (no_color && *no_color) console->set_color_mode(spdlog::color_mode::never);
    logger = std::make_shared<spdlog::logger>("lamina", console);
    logger->set_level(spdlog::level::debug);
    logger->flush_on(spdlog::level::info);
    console->set_level(spdlog::level::info);
  }
};

Sink& sink() {
  static Sink instance;
  return instance;
}

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::debug:
      return spdlog::level::debug;
    case Level::info:
      return spdlog::level::info;
    case Level::warning:
      return spdlog::level::warn;
    case Level::error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

}  // namespace

void configure(const Options& options) {
  Sink& s = sink();
  const std::lock_guard lock(s.mutex);
  s.prefix = options.world_size > 1 ? fmt::format("[rank {}] ", options.rank) : "";
  s.is_first_rank = options.rank == 0;
  const Level console = options.rank == 0 ? options.level : std::max(options.level, Level::warning);
  s.logger->sinks().front()->set_level(to_spdlog(console));
}

void add_file(const std::filesystem::path& path) {
  try {
    auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path.string(), /*truncate=*/false);
    file->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
    Sink& s = sink();
    const std::lock_guard lock(s.mutex);
    file->set_level(s.is_first_rank ? spdlog::level::debug : spdlog::level::warn);
    for (const auto& [time, level, text] : std::exchange(s.early, {}))
      if (file->should_log(level))
        file->log(spdlog::details::log_msg(time, spdlog::source_loc{}, "lamina", level, text));
    s.keeps_early = false;
    s.logger->sinks().push_back(std::move(file));
  } catch (const spdlog::spdlog_ex& failure) {
    throw Error("{}: can't open the log: {}", path.string(), failure.what());
  }
}

void write(Level level, const std::string& message) {
  Sink& s = sink();
  const std::lock_guard lock(s.mutex);
  constexpr size_t max_early = 1000;
  if (s.keeps_early && s.early.size() < max_early)
    s.early.push_back({spdlog::log_clock::now(), to_spdlog(level), s.prefix + message});
  s.logger->log(to_spdlog(level), "{}{}", s.prefix, message);
}

void flush() {
  Sink& s = sink();
  const std::lock_guard lock(s.mutex);
  s.logger->flush();
}

}  // namespace lamina::log
