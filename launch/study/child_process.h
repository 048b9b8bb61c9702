// Processes that a sweep starts.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lamina::study {

// A process in a group of its own, so that an interrupt on the terminal reaches the parent only. It gets SIGUSR1 when the parent
// dies. Move-only; the destructor kills what still runs.
class ChildProcess {
 public:
  ChildProcess() = default;
  // Output goes to the end of `log`. The process and its children run on `cores`; empty: on all. Error when the command can't be started.
  ChildProcess(const std::vector<std::string>& command, const std::filesystem::path& log,
               const std::vector<int>& cores = {});
  ~ChildProcess();
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;

  std::optional<int> poll();  // its wait status, once it has ended
  void signal(int number) const;

 private:
  pid_t pid_ = -1;
};

struct CommandOutput {
  int exit_status = 0;  // 127: there is no such command
  std::string text;     // stdout and stderr together, without the last line's end
};

// Runs a command to its end.
CommandOutput run_command(const std::vector<std::string>& command);

}  // namespace lamina::study
