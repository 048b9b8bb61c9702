#include "data/stored_tokens.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <utility>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina {

namespace fs = std::filesystem;

// Of a process's 1,024. Files beyond them are opened for each read.
constexpr size_t max_open_files = 256;

struct StoredTokens::State {
  class Descriptor {
   public:
    explicit Descriptor(const fs::path& path) {
      do number_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
      while (number_ < 0 && errno == EINTR);
      if (number_ < 0) throw Error("{}: can't open: {}", path.string(), io::describe_errno(errno));
    }
    ~Descriptor() { ::close(number_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int number() const { return number_; }

   private:
    int number_;
  };

  struct Stamp {
    dev_t device = 0;
    ino_t inode = 0;
    off_t bytes = 0;
    int64_t seconds = 0, nanoseconds = 0;
    bool operator==(const Stamp&) const = default;
  };
  struct File {
    fs::path path;
    std::unique_ptr<Descriptor> open;  // null: beyond max_open_files
    Stamp seen;
  };
  // Tokens that lie one behind the other in a file.
  struct Run {
    int64_t first_token;
    int64_t offset;
    size_t file;
  };

  int64_t token_bytes;
  int64_t num_tokens = 0;
  std::vector<File> files;
  std::vector<Run> runs;
  std::mutex stamps;  // guards File::seen

  size_t run_of(int64_t token) const {
    const auto after = std::upper_bound(runs.begin(), runs.end(), token,
                                        [](int64_t value, const Run& run) { return value < run.first_token; });
    return static_cast<size_t>(after - runs.begin()) - 1;
  }
  int64_t end_of(size_t run) const { return run + 1 < runs.size() ? runs[run + 1].first_token : num_tokens; }

  static Stamp stamp_of(const Descriptor& file, const fs::path& path) {
    struct stat status {};
    if (::fstat(file.number(), &status) != 0)
      throw Error("{}: can't look at it: {}", path.string(), io::describe_errno(errno));
    return {status.st_dev, status.st_ino, status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
  }

  static void read_fully(const Descriptor& file, const fs::path& path, int64_t offset, size_t left, int64_t token,
                         char* out) {
    while (left > 0) {
      const ssize_t got = ::pread(file.number(), out, left, offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw Error("{}: can't read: {}", path.string(), io::describe_errno(errno));
      if (got == 0)
        throw Error("{}: the file ends inside its tokens at token {}; it was truncated", path.string(), token);
      out += got;
      offset += got;
      left -= static_cast<size_t>(got);
    }
  }

  template <class F>
  static void with_open(const File& file, F&& use) {
    if (file.open) return use(*file.open);
    use(Descriptor(file.path));
  }
};

StoredTokens::StoredTokens(int64_t token_bytes) : state_(std::make_unique<State>()) {
  state_->token_bytes = token_bytes;
}
StoredTokens::~StoredTokens() = default;
StoredTokens::StoredTokens(StoredTokens&&) noexcept = default;
StoredTokens& StoredTokens::operator=(StoredTokens&&) noexcept = default;

void StoredTokens::add(const fs::path& file, const std::vector<int64_t>& offsets, int64_t piece_tokens,
                       int64_t num_tokens) {
  State& state = *state_;
  auto descriptor = std::make_unique<State::Descriptor>(file);
  const State::Stamp seen = State::stamp_of(*descriptor, file);
  if (state.files.size() >= max_open_files) descriptor.reset();
  state.files.push_back({file, std::move(descriptor), seen});
  int64_t next_offset = -1;
  for (size_t i = 0; i < offsets.size(); ++i) {
    if (offsets[i] != next_offset)
      state.runs.push_back(
          {state.num_tokens + static_cast<int64_t>(i) * piece_tokens, offsets[i], state.files.size() - 1});
    next_offset = offsets[i] + piece_tokens * state.token_bytes;
  }
  state.num_tokens += num_tokens;
}

int64_t StoredTokens::num_tokens() const {
  return state_->num_tokens;
}
int64_t StoredTokens::token_bytes() const {
  return state_->token_bytes;
}
const fs::path& StoredTokens::file_of(int64_t token) const {
  return state_->files[state_->runs[state_->run_of(token)].file].path;
}

void StoredTokens::read(int64_t begin, int64_t count, char* out) const {
  const State& state = *state_;
  for (size_t run = state.run_of(begin); count > 0; ++run) {
    const State::Run& at = state.runs[run];
    const State::File& file = state.files[at.file];
    const int64_t here = std::min(count, state.end_of(run) - begin);
    const int64_t offset = at.offset + (begin - at.first_token) * state.token_bytes;
    const auto bytes = static_cast<size_t>(here * state.token_bytes);
    State::with_open(
        file, [&](const State::Descriptor& open) { State::read_fully(open, file.path, offset, bytes, begin, out); });
    out += bytes;
    begin += here;
    count -= here;
  }
}

bool StoredTokens::have_changed(int64_t begin, int64_t count) const {
  State& state = *state_;
  const size_t last = state.runs[state.run_of(begin + count - 1)].file;
  bool changed = false;
  for (size_t i = state.runs[state.run_of(begin)].file; i <= last; ++i) {
    State::File& file = state.files[i];
    State::with_open(file, [&](const State::Descriptor& open) {
      const State::Stamp now = State::stamp_of(open, file.path);
      const std::scoped_lock lock(state.stamps);
      changed = changed || now != file.seen;
      file.seen = now;
    });
  }
  return changed;
}

}  // namespace lamina
