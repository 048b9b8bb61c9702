// One process at a time works in a folder. The lock is the file `lock` in it, which people can read:
//
//   host: node-a
//   process: 4711
//   command: lamina train
//   since: 2026-11-29T22:55:15Z
//   parent, process_start, boot, pid_namespace, token: which process that is, exactly
//
// All it asks of a file system is exclusive creation and renaming, so it also holds on network file systems, where flock() and fcntl()
// may be missing or local to a host. A holder that was killed leaves the file behind. Whether it still lives:
//
//   - On this machine (the same boot, the same processes) by looking for the process. A dead one's lock is taken over at once; one
//     that is on its way out, or whose launcher is gone, is given `ending` to go.
//   - On another machine by signs of life: the holder touches the file every `refresh`. A file that does not change for `stale` while
//     it is watched from here was left by a machine that died. No clocks are compared.
//
// A holder that was cut off for longer, and whose lock was taken over, learns it at its next check() or refresh().
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/base/error.h"

namespace lamina::io {

struct LockHolder {
  std::string host, command, since;
  int64_t process = 0, parent = 0;
  uint64_t process_start = 0;  // clock ticks after the boot: a process id may be used again
  std::string boot, pid_namespace, token;
  std::string to_string() const;  // "process 4711 on node-a (lamina train, since ...)"
};

class FolderLocked : public Error {
 public:
  using Error::Error;
};

struct LockTimes {
  std::chrono::milliseconds refresh{10'000};
  std::chrono::milliseconds stale{60'000};
  std::chrono::milliseconds ending{30'000};
};

class FolderLock {
 public:
  // `command` says what works there ("lamina train").
  FolderLock(const std::filesystem::path& folder, std::string command, LockTimes times = {});
  ~FolderLock();  // release(): gives the lock back, and removes the folders that taking it made where they are empty
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  // True: it is ours. False: not known yet, call again a little later. Makes the folder where it is not there. Throws FolderLocked
  // that names the holder, and Error when the file can't be written.
  bool try_take();
  void take();  // the same until it is known; Stopped when asked to stop meanwhile (core/base/stop.h)
  // After a try_take() that said false: whose lock it is, and what is being waited for.
  const std::string& waits_for() const { return waits_for_; }

  void release() noexcept;

  bool is_lost() const { return lost_; }
  void check() const;  // throws FolderLocked when the last sign of life found that the lock is no longer ours
  void refresh();      // a sign of life now, then check()

  // Who works in a folder: nobody where there is no lock, or that of a dead process of this machine. Of another machine's, a holder
  // whose file is older than `stale` by this machine's clock is taken for dead: good enough to show, not to decide.
  static std::optional<LockHolder> holder(const std::filesystem::path& folder, LockTimes times = {});

 private:
  struct Seen {
    std::string text;
    int64_t changed = 0;  // nanoseconds
    bool operator==(const Seen&) const = default;
  };
  static std::optional<Seen> look(const std::filesystem::path& path);
  void make_folder();
  void remove_made_folders() noexcept;
  bool is_dead(const Seen& seen);
  bool take_over(const Seen& dead);
  void start_signs_of_life();
  void give_sign_of_life() noexcept;

  std::filesystem::path folder_, path_;
  LockTimes times_;
  LockHolder self_;
  std::string text_;
  std::vector<std::filesystem::path> made_;  // outermost first
  bool held_ = false;

  std::optional<Seen> watched_;
  std::chrono::steady_clock::time_point watched_since_, ending_since_;
  std::string ending_;  // token of the holder that is given time to go
  std::string waits_for_;

  std::thread signs_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  std::atomic<bool> lost_{false};
};

}  // namespace lamina::io
