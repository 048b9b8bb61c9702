#include "launch/study/child_process.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include "core/base/error.h"
#include "core/base/signals.h"
#include "core/io/file.h"

namespace lamina::study {
namespace {

// In the child, after fork(): the command with its output on `output`. Tells the parent through `failure` when it can't.
[[noreturn]] void execute(std::vector<char*>& words, int output, int failure) {
  ::dup2(output, STDOUT_FILENO);
  ::dup2(output, STDERR_FILENO);
  const int input = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (input >= 0) ::dup2(input, STDIN_FILENO);
  std::signal(SIGPIPE, SIG_DFL);
  signals::restore_mask();
  ::execvp(words[0], words.data());
  const int reason = errno;
  [[maybe_unused]] const ssize_t written = ::write(failure, &reason, sizeof reason);
  ::_exit(127);
}

std::vector<char*> words_of(std::vector<std::string>& command) {
  std::vector<char*> words;
  for (std::string& word : command) words.push_back(word.data());
  words.push_back(nullptr);
  return words;
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command, const std::filesystem::path& log,
                           const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(core, &set);
  std::vector<std::string> copy = command;
  std::vector<char*> words = words_of(copy);
  const int output = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (output < 0) throw Error("{}: can't open: {}", log.string(), io::describe_errno(errno));
  std::array<int, 2> failure{};
  LAMINA_CHECK(::pipe2(failure.data(), O_CLOEXEC) == 0, "pipe");
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (::getppid() != parent) ::_exit(127);  // it died meanwhile
    if (!cores.empty() && ::sched_setaffinity(0, sizeof set, &set) != 0) {
      const int reason = errno;
      [[maybe_unused]] const ssize_t written = ::write(failure[1], &reason, sizeof reason);
      ::_exit(127);
    }
    execute(words, output, failure[1]);
  }
  ::close(output);
  ::close(failure[1]);
  int reason = 0;
  const bool failed = pid_ < 0 || ::read(failure[0], &reason, sizeof reason) == sizeof reason;
  ::close(failure[0]);
  if (!failed) return;
  if (pid_ > 0) ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  throw Error("{}: can't start: {}", command.front(), io::describe_errno(reason));
}

ChildProcess::~ChildProcess() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  return *this;
}

std::optional<int> ChildProcess::poll() {
  if (pid_ < 0) return std::nullopt;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  pid_ = -1;
  return status;
}

void ChildProcess::signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

CommandOutput run_command(const std::vector<std::string>& command) {
  std::vector<std::string> copy = command;
  std::vector<char*> words = words_of(copy);
  std::array<int, 2> output{};
  LAMINA_CHECK(::pipe2(output.data(), O_CLOEXEC) == 0, "pipe");
  const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  const pid_t pid = ::fork();
  if (pid == 0) execute(words, output[1], nowhere);
  ::close(output[1]);
  if (nowhere >= 0) ::close(nowhere);
  LAMINA_CHECK(pid > 0, "fork");
  CommandOutput result;
  std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t count = ::read(output[0], buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    result.text.append(buffer.data(), static_cast<size_t>(count));
  }
  ::close(output[0]);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  result.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  while (result.text.ends_with('\n')) result.text.pop_back();
  return result;
}

}  // namespace lamina::study
