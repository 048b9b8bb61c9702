#include "core/io/folder_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <system_error>
#include <utility>

#include "core/base/clock.h"
#include "core/base/here.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "core/io/file.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::milliseconds poll_interval{100};

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string pid_namespace() {
  std::error_code error;
  const fs::path target = fs::read_symlink("/proc/self/ns/pid", error);
  return error ? "" : target.string();
}

// What /proc/<id>/stat says; see proc(5).
struct ProcessStat {
  char state = 0;
  int64_t parent = 0;
  uint64_t flags = 0, start = 0;
};

std::optional<ProcessStat> read_stat(int64_t process) {
  const std::string line = first_line(fmt::format("/proc/{}/stat", process).c_str());
  const size_t name_end = line.rfind(')');  // a name may hold anything
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream in(line.substr(name_end + 1));
  ProcessStat stat;
  std::string skipped;
  in >> stat.state >> stat.parent;
  for (int field = 5; field <= 8; ++field) in >> skipped;
  in >> stat.flags;
  for (int field = 10; field <= 21; ++field) in >> skipped;
  in >> stat.start;
  return in ? std::optional(stat) : std::nullopt;
}

bool was_killed(int64_t process) {  // and has not begun to end
  std::ifstream file(fmt::format("/proc/{}/status", process));
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("SigPnd:") || line.starts_with("ShdPnd:"))
      if ((std::stoull(line.substr(7), nullptr, 16) >> (SIGKILL - 1)) & 1) return true;
  return false;
}

enum class Life { alive, ending, dead, unknown };

Life life_of(const LockHolder& holder) {
  const std::string boot = first_line("/proc/sys/kernel/random/boot_id");
  if (boot.empty() || holder.boot != boot || holder.pid_namespace.empty() || holder.pid_namespace != pid_namespace())
    return Life::unknown;
  const std::optional<ProcessStat> stat = read_stat(holder.process);
  if (!stat) {  // gone, or another user's and hidden from us
    return ::kill(static_cast<pid_t>(holder.process), 0) != 0 && errno == ESRCH ? Life::dead : Life::unknown;
  }
  if (stat->start != holder.process_start || stat->state == 'Z' || stat->state == 'X') return Life::dead;
  constexpr uint64_t exiting = 4;  // PF_EXITING of Linux
  const bool is_orphan = stat->parent != holder.parent;
  return (stat->flags & exiting) != 0 || is_orphan || was_killed(holder.process) ? Life::ending : Life::alive;
}

std::string to_text(const LockHolder& holder) {
  return fmt::format(
      "host: {}\nprocess: {}\ncommand: {}\nsince: {}\nparent: {}\nprocess_start: {}\nboot: {}\npid_namespace: {}\n"
      "token: {}\n",
      holder.host, holder.process, holder.command, holder.since, holder.parent, holder.process_start, holder.boot,
      holder.pid_namespace, holder.token);
}

// Absent: half written, or nothing of ours.
std::optional<LockHolder> parse(const std::string& text) {
  std::map<std::string, std::string> values;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) values[line.substr(0, colon)] = line.substr(colon + 2);
  }
  if (!text.ends_with('\n') || values["token"].empty()) return std::nullopt;
  LockHolder holder;
  holder.host = values["host"];
  holder.command = values["command"];
  holder.since = values["since"];
  holder.boot = values["boot"];
  holder.pid_namespace = values["pid_namespace"];
  holder.token = values["token"];
  std::istringstream numbers(values["process"] + " " + values["parent"] + " " + values["process_start"]);
  numbers >> holder.process >> holder.parent >> holder.process_start;
  return numbers ? std::optional(holder) : std::nullopt;
}

LockHolder describe_self(std::string command) {
  LockHolder self;
  self.host = host_name();
  self.command = std::move(command);
  std::replace(self.command.begin(), self.command.end(), '\n', ' ');
  self.since = utc_now();
  self.process = ::getpid();
  if (const auto stat = read_stat(self.process)) {
    self.process_start = stat->start;
    self.parent = stat->parent;
  }
  self.boot = first_line("/proc/sys/kernel/random/boot_id");
  self.pid_namespace = pid_namespace();
  std::random_device random;
  self.token = fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
  return self;
}

// False where the file exists. On failure nothing stays.
bool write_new(const fs::path& path, const std::string& text) {
  int fd = -1;
  do fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  while (fd < 0 && errno == EINTR);
  if (fd < 0 && errno == EEXIST) return false;
  if (fd < 0) throw Error("{}: can't create: {}", path.string(), describe_errno(errno));
  int reason = 0;
  const ssize_t written = ::write(fd, text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size())) {
    reason = written < 0 ? errno : ENOSPC;
  } else if (::fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) {
    reason = errno;
  }
  ::close(fd);
  if (reason == 0) return true;
  ::unlink(path.c_str());
  throw Error("{}: can't write: {}", path.string(), describe_errno(reason));
}

double seconds(std::chrono::milliseconds time) {
  return static_cast<double>(time.count()) / 1000;
}

std::string refusal(const fs::path& path, const std::string& who) {
  return fmt::format("{}: {} works on this folder, expected one at a time", path.string(), who);
}

}  // namespace

std::string LockHolder::to_string() const {
  return fmt::format("process {} on {} ({}, since {})", process, host, command, since);
}

FolderLock::FolderLock(const fs::path& folder, std::string command, LockTimes times)
    : folder_(folder),
      path_(folder / "lock"),
      times_(times),
      self_(describe_self(std::move(command))),
      text_(to_text(self_)) {}

FolderLock::~FolderLock() {
  release();
}

void FolderLock::release() noexcept {
  if (signs_.joinable()) {
    {
      const std::lock_guard guard(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    signs_.join();
  }
  if (held_) {
    give_sign_of_life();
    if (!lost_) ::unlink(path_.c_str());
    held_ = false;
  }
  remove_made_folders();
}

void FolderLock::make_folder() {
  std::vector<fs::path> missing;
  std::error_code error;
  for (fs::path at = folder_; !at.empty() && !fs::exists(at, error); at = at.parent_path()) {
    missing.push_back(at);
    if (at == at.parent_path()) break;
  }
  for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
    const bool is_new = fs::create_directory(*at, error);
    if (error) throw Error("{}: can't create: {}", folder_.string(), error.message());
    if (is_new) made_.push_back(*at);
  }
}

void FolderLock::remove_made_folders() noexcept {
  for (auto at = made_.rbegin(); at != made_.rend(); ++at)
    if (::rmdir(at->c_str()) != 0) break;  // in use by now
  made_.clear();
}

// By an open file: that is when a network file system asks its server.
std::optional<FolderLock::Seen> FolderLock::look(const fs::path& path) {
  int fd = -1;
  do fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  while (fd < 0 && errno == EINTR);
  if (fd < 0 && errno == ENOENT) return std::nullopt;
  if (fd < 0) throw Error("{}: can't open: {}", path.string(), describe_errno(errno));
  struct stat status {};
  std::array<char, 4096> buffer{};
  const bool has_status = ::fstat(fd, &status) == 0;
  const ssize_t count = has_status ? ::read(fd, buffer.data(), buffer.size()) : -1;
  const int reason = errno;
  ::close(fd);
  if (count < 0 && reason == ESTALE) return std::nullopt;  // replaced meanwhile
  if (count < 0) throw Error("{}: can't read: {}", path.string(), describe_errno(reason));
  return Seen{std::string(buffer.data(), static_cast<size_t>(count)),
              static_cast<int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec};
}

bool FolderLock::try_take() {
  if (held_) return true;
  make_folder();
  if (!write_new(path_, text_)) {
    const std::optional<Seen> seen = look(path_);
    if (!seen || !is_dead(*seen) || !take_over(*seen)) return false;
  }
  held_ = true;
  start_signs_of_life();
  return true;
}

// Whether the holder is gone for good; false while that is not known. Throws when it lives.
bool FolderLock::is_dead(const Seen& seen) {
  const std::optional<LockHolder> holder = parse(seen.text);
  const std::string who = holder ? holder->to_string() : "a process of another machine";
  const auto now = Clock::now();
  switch (holder ? life_of(*holder) : Life::unknown) {
    case Life::dead:
      return true;
    case Life::alive:
      throw FolderLocked(refusal(path_, who));
    case Life::ending:
      if (ending_ != holder->token) {
        ending_ = holder->token;
        ending_since_ = now;
      }
      if (now - ending_since_ >= times_.ending) throw FolderLocked(refusal(path_, who));
      waits_for_ =
          fmt::format("{}: {} is ending; waiting for that at most {} s", path_.string(), who, seconds(times_.ending));
      return false;
    case Life::unknown:
      break;
  }
  if (watched_ && watched_->text == seen.text && watched_->changed != seen.changed)  // a sign of life
    throw FolderLocked(refusal(path_, who));
  if (watched_ != seen) {
    watched_ = seen;
    watched_since_ = now;
  }
  waits_for_ = fmt::format("{}: of {}; taking it over unless it shows a sign of life within {} s", path_.string(), who,
                           seconds(times_.stale));
  return now - watched_since_ >= times_.stale;
}

// Of two that do so at the same moment one wins: the last to rename. The other sees that when it looks again. Should one stop for longer
// than that between its last look and its renaming, the holder learns it from its next sign of life.
bool FolderLock::take_over(const Seen& dead) {
  const fs::path temporary = folder_ / ("lock." + self_.token);
  write_new(temporary, text_);
  if (look(path_) != dead || ::rename(temporary.c_str(), path_.c_str()) != 0) {
    ::unlink(temporary.c_str());
    return false;
  }
  std::this_thread::sleep_for(poll_interval);
  const std::optional<Seen> now = look(path_);
  return now && now->text == text_;
}

void FolderLock::take() {
  std::string told;
  while (!try_take()) {
    if (waits_for_ != told) log::info("{}", told = waits_for_);
    stop::check();
    std::this_thread::sleep_for(poll_interval);
  }
}

void FolderLock::start_signs_of_life() {
  // Signals are for the threads that wait for them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  signs_ = std::thread([this] {
    std::unique_lock guard(mutex_);
    while (!wake_.wait_for(guard, times_.refresh, [this] { return done_; })) give_sign_of_life();
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// What can't be told now (a server that does not answer) is left to the next one.
void FolderLock::give_sign_of_life() noexcept {
  try {
    const std::optional<Seen> seen = look(path_);
    if (!seen || seen->text != text_)
      lost_ = true;
    else
      ::utimensat(AT_FDCWD, path_.c_str(), nullptr, 0);
  } catch (const std::exception&) {
  }
}

void FolderLock::check() const {
  if (!lost_) return;
  std::string who = "nobody any more: it was removed";
  if (const std::optional<Seen> seen = look(path_)) {
    const std::optional<LockHolder> other = parse(seen->text);
    who = other ? other->to_string() : "another process";
  }
  throw FolderLocked("{}: found {}, expected this {}", path_.string(), who, self_.to_string());
}

void FolderLock::refresh() {
  LAMINA_CHECK(held_, "{} is not held", path_.string());
  give_sign_of_life();
  check();
}

std::optional<LockHolder> FolderLock::holder(const fs::path& folder, LockTimes times) {
  const std::optional<Seen> seen = look(folder / "lock");
  const std::optional<LockHolder> holder = seen ? parse(seen->text) : std::nullopt;
  if (!holder) return std::nullopt;
  const Life life = life_of(*holder);
  if (life == Life::dead) return std::nullopt;
  if (life == Life::unknown) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const auto age = now - std::chrono::nanoseconds(seen->changed);
    if (age > times.stale) return std::nullopt;
  }
  return holder;
}

}  // namespace lamina::io
