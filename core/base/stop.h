// A request to stop early and be started again: SIGTERM or SIGUSR1 (what schedulers send before they take a machine back), SIGINT
// (Ctrl-C), or a limit on the time. Long loops poll it. Several ranks have to agree on what to do about it.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace lamina {

// EX_TEMPFAIL of sysexits.h: nothing is wrong, and the same command goes on where this one stopped.
constexpr int exit_resume = 75;

// A run whose numbers are no longer finite. It has ended: the same command would go the same way.
constexpr int exit_diverged = 76;

class Diverged : public std::exception {
 public:
  explicit Diverged(std::string reason) : reason_(std::move(reason)) {}
  const char* what() const noexcept override { return reason_.c_str(); }

 private:
  std::string reason_;
};

// Thrown where a loop gives up on a request; a command ends with exit_resume.
class Stopped : public std::exception {
 public:
  explicit Stopped(std::string reason) : reason_(std::move(reason)) {}
  const char* what() const noexcept override { return reason_.c_str(); }

 private:
  std::string reason_;
};

namespace stop {

// From now on SIGTERM and SIGUSR1 set the request instead of ending the process, however often they come. `interrupt_too`: so does
// the first SIGINT, which says on stderr what it does (`doing`, which must stay valid), while the second one ends the process at once; a
// process that was started with SIGINT ignored goes on ignoring it. No computing thread runs a handler (core/base/signals.h).
void catch_signals(bool interrupt_too = false, const char* doing = "saving and stopping, which may take a step");

bool requested() noexcept;

// What asked first: "SIGTERM", "SIGUSR1", "SIGINT", or what request() was given; empty without a request.
std::string reason();

void request(const char* why) noexcept;  // `why` must stay valid (a literal)
void reset() noexcept;                   // for tests

// Throws Stopped when requested: for loops that a single process runs and can leave at any point.
void check();

}  // namespace stop
}  // namespace lamina
