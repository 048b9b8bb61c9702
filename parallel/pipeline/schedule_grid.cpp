#include <algorithm>
#include <functional>

#include "parallel/pipeline/dependencies.h"
#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

namespace {

// For schedules in which anything may be wrong: no assumption on the values.
class SortedPositions {
 public:
  explicit SortedPositions(const Schedule& schedule) {
    for (size_t rank = 0; rank < schedule.size(); ++rank)
      for (size_t i = 0; i < schedule[rank].size(); ++i)
        entries_.push_back({schedule[rank][i], {static_cast<int>(rank), static_cast<int>(i)}});
    std::stable_sort(entries_.begin(), entries_.end(),
                     [](const Entry& a, const Entry& b) { return a.action < b.action; });
  }
  Position find(const Action& action) const {
    const auto found = std::lower_bound(entries_.begin(), entries_.end(), action,
                                        [](const Entry& entry, const Action& key) { return entry.action < key; });
    return found != entries_.end() && found->action == action ? found->position : Position{};
  }

 private:
  struct Entry {
    Action action;
    Position position;
  };
  std::vector<Entry> entries_;
};

// The column of each action: the first one after what it waits for. What waits for ever stands behind all that doesn't.
std::vector<std::vector<int>> columns_of(const Schedule& schedule) {
  std::vector<std::vector<int>> columns(schedule.size());
  for (size_t rank = 0; rank < schedule.size(); ++rank) columns[rank].resize(schedule[rank].size());
  const SortedPositions positions(schedule);
  int num_columns = 0;
  const std::vector<int> reached = walk_schedule(schedule, positions, [&](int rank_index, int at) {
    const size_t rank = static_cast<size_t>(rank_index), index = static_cast<size_t>(at);
    int column = index == 0 ? 0 : columns[rank][index - 1] + 1;
    for_each_dependency(schedule[rank][index], positions, [&](const Action&, const Position& needed) {
      column = std::max(column, columns[static_cast<size_t>(needed.rank)][static_cast<size_t>(needed.index)] + 1);
    });
    columns[rank][index] = column;
    num_columns = std::max(num_columns, column + 1);
  });
  for (size_t rank = 0; rank < schedule.size(); ++rank)
    for (size_t i = static_cast<size_t>(reached[rank]), column = static_cast<size_t>(num_columns);
         i < schedule[rank].size(); ++i, ++column)
      columns[rank][i] = static_cast<int>(column);
  return columns;
}

struct Window {
  int first_rank, last_rank, first_column, last_column;  // inclusive
};

std::string draw(const Schedule& schedule, const std::vector<std::vector<int>>& columns, const Window& window,
                 const std::function<bool(Position)>& is_marked) {
  size_t width = 1;
  for (const auto& actions : schedule)
    for (const Action& action : actions) width = std::max(width, to_string(action).size());
  const size_t digits = std::to_string(schedule.size() - 1).size();
  std::string text;
  for (int rank = window.first_rank; rank <= window.last_rank; ++rank) {
    std::string line = fmt::format("rank {:>{}} ", rank, digits);
    int next_column = window.first_column;
    const auto& actions = schedule[static_cast<size_t>(rank)];
    for (size_t i = 0; i < actions.size(); ++i) {
      const int column = columns[static_cast<size_t>(rank)][i];
      if (column < window.first_column || column > window.last_column) continue;
      line.append(static_cast<size_t>(column - next_column) * (width + 2), ' ');
      next_column = column + 1;
      const bool marked = is_marked({rank, static_cast<int>(i)});
      std::string cell = (marked ? "[" : " ") + to_string(actions[i]) + (marked ? "]" : " ");
      cell.resize(width + 2, ' ');
      line += cell;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

Window everything(const Schedule& schedule, const std::vector<std::vector<int>>& columns) {
  int last_column = 0;
  for (const auto& of_rank : columns)
    if (!of_rank.empty()) last_column = std::max(last_column, of_rank.back());
  return {0, static_cast<int>(schedule.size()) - 1, 0, last_column};
}

}  // namespace

std::string to_grid(const Schedule& schedule, const Action* marked) {
  const auto columns = columns_of(schedule);
  // An action may be there twice, which is a fault to be shown: the address tells which one is meant.
  bool by_address = false;
  for (const auto& actions : schedule)
    for (const Action& action : actions) by_address |= &action == marked;
  return draw(schedule, columns, everything(schedule, columns), [&](Position position) {
    if (!marked) return false;
    const Action& action = schedule[static_cast<size_t>(position.rank)][static_cast<size_t>(position.index)];
    return by_address ? &action == marked : action == *marked;
  });
}

std::string grid_around(const Schedule& schedule, Position marked) {
  constexpr int most_ranks = 16, most_columns = 40, ranks_aside = 4, columns_aside = 8;
  const auto columns = columns_of(schedule);
  Window window = everything(schedule, columns);
  std::string hint;
  if (window.last_rank >= most_ranks || window.last_column >= most_columns) {
    const int column = columns[static_cast<size_t>(marked.rank)][static_cast<size_t>(marked.index)];
    window = {std::max(0, marked.rank - ranks_aside), std::min(window.last_rank, marked.rank + ranks_aside),
              std::max(0, column - columns_aside), std::min(window.last_column, column + columns_aside)};
    hint = fmt::format("ranks {} to {}, slots {} to {}:\n", window.first_rank, window.last_rank, window.first_column,
                       window.last_column);
  }
  return hint + draw(schedule, columns, window, [&](Position position) { return position == marked; });
}

}  // namespace lamina::pipeline
