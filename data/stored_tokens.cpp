#include "data/stored_tokens.h"

#include <algorithm>
#include <atomic>
#include <mutex>

#include "core/base/error.h"
#include "core/io/mapped_file.h"

namespace lamina {

namespace fs = std::filesystem;

struct StoredTokens::State {
  struct File {
    explicit File(const fs::path& path) : bytes(path), seen(bytes.stamp_at_open()) {}
    io::MappedFile bytes;
    io::FileStamp seen;
  };
  // Tokens that lie one behind the other in a file.
  struct Run {
    int64_t first_token;
    int64_t offset;
    size_t file;
  };

  int64_t token_bytes;
  int64_t num_tokens = 0;
  std::vector<std::unique_ptr<File>> files;
  std::vector<Run> runs;
  std::mutex stamps;  // guards File::seen
  std::atomic<uint64_t> num_changes{0};

  size_t run_of(int64_t token) const {
    const auto after = std::upper_bound(runs.begin(), runs.end(), token,
                                        [](int64_t value, const Run& run) { return value < run.first_token; });
    return static_cast<size_t>(after - runs.begin()) - 1;
  }
  int64_t end_of(size_t run) const { return run + 1 < runs.size() ? runs[run + 1].first_token : num_tokens; }

  void notice(File& file, const io::FileStamp& now) {
    const std::scoped_lock lock(stamps);
    if (now == file.seen) return;
    file.seen = now;
    ++num_changes;
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
  state.files.push_back(std::make_unique<State::File>(file));
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
uint64_t StoredTokens::num_changes() const {
  return state_->num_changes;
}
const fs::path& StoredTokens::file_of(int64_t token) const {
  return state_->files[state_->runs[state_->run_of(token)].file]->bytes.path();
}

void StoredTokens::read(int64_t begin, int64_t count, char* out) const {
  State& state = *state_;
  for (size_t run = state.run_of(begin); count > 0; ++run) {
    const State::Run& at = state.runs[run];
    State::File& file = *state.files[at.file];
    const int64_t here = std::min(count, state.end_of(run) - begin);
    const int64_t offset = at.offset + (begin - at.first_token) * state.token_bytes;
    const auto bytes = static_cast<size_t>(here * state.token_bytes);
    const io::FileRead found = file.bytes.read(offset, bytes, out);
    state.notice(file, found.stamp);
    if (found.bytes < bytes)
      throw Error("{}: the file ends inside its tokens at token {}; it was truncated", file.bytes.path().string(),
                  begin + static_cast<int64_t>(found.bytes) / state.token_bytes);
    out += bytes;
    begin += here;
    count -= here;
  }
}

}  // namespace lamina
