// Which thread handles signals. Code that computes may point its stack pointer where it likes: oneDNN's sgemm has it inside a
// buffer on the heap for most of a call, and a handler that runs there writes over what lies next to the buffer. So one
// thread that does nothing else handles what comes from outside, and all others block it. That holds for every handler, also
// for those that libraries install (UCX's for SIGHUP, timers of profilers).
// Signals that a thread causes itself stay on that thread: faults and abort(), whose handlers (backtraces of Open MPI
// and UCX) run in a process that is lost anyway, except that of a copy from a mapped file (core/io/guarded_copy.h), and those
// that end or stop the caller of read() or write().
#pragma once

namespace lamina::signals {

// Call it before there is a second thread: this thread and all that come from it block signals from then on. They go to a new
// thread, with whatever handler or default action they have at that time. Further calls do nothing. Error when there can be
// no further thread.
void move_to_own_thread();

// For a child between fork() and exec(): what it starts has the mask with which this process was started.
void restore_mask() noexcept;

// Whoever started this process may have had it ignore a signal: shells do that with SIGINT for jobs in the background, nohup with
// SIGHUP. A program that then catches it all the same does what nobody wants.
bool is_ignored(int signal) noexcept;

}  // namespace lamina::signals
