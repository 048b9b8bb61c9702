#include "evaluation/probes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "core/base/error.h"
#include "core/base/rng.h"

namespace lamina::evaluation {
namespace {

constexpr std::array depths = {0.0, 0.25, 0.5, 0.75, 1.0};
constexpr size_t num_choices = 4;

constexpr std::array<std::string_view, 16> filler = {
    "The rain had stopped before the morning came. ",  "A dog slept in front of the old house. ",
    "They walked along the river until it was dark. ", "Nobody remembered who had built the bridge. ",
    "The market opens early and closes late. ",        "She put the letter back into the drawer. ",
    "In winter the road to the village is closed. ",   "He had never seen the sea before. ",
    "The train was late again, as it often was. ",     "There were apples on the table and nothing else. ",
    "The children ran down the hill to the water. ",   "A light was burning in the upper window. ",
    "It took them three days to cross the forest. ",   "The old man spoke slowly and with care. ",
    "We heard the bells from the other side. ",        "The wind carried the smell of cut grass. "};

constexpr std::array<std::string_view, 32> words = {
    "apple",  "bridge", "candle", "desert", "engine", "forest", "garden", "harbor", "island", "jacket", "kettle",
    "ladder", "mirror", "needle", "orange", "pencil", "rabbit", "silver", "ticket", "valley", "window", "yellow",
    "basket", "carpet", "dragon", "family", "hammer", "letter", "market", "number", "pillow", "stream"};

// Draws one after the other.
class Draws {
 public:
  Draws(uint64_t seed, const std::string& stream) : random_(seed, stream.c_str()) {}
  size_t below(size_t count) { return static_cast<size_t>(random_.below(next_++, count)); }
  template <class List>
  std::string of(const List& list) {
    return std::string(list[below(list.size())]);
  }

 private:
  CounterRng random_;
  uint64_t next_ = 0;
};

int64_t num_tokens(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> tokens;
  tokenizer.encode(text, tokens);
  return static_cast<int64_t>(tokens.size());
}

// What is asked for stands among `others`, `depth` of the way; before and after both come the head and the question.
std::string assemble(const std::vector<std::string>& others, const std::string& wanted, double depth,
                     const std::string& question) {
  const auto place = static_cast<size_t>(std::lround(depth * static_cast<double>(others.size())));
  std::string text;
  for (size_t i = 0; i <= others.size(); ++i) {
    if (i == place) text += wanted;
    if (i < others.size()) text += others[i];
  }
  return text + question;
}

// Puts the right choice, the first one, somewhere.
void shuffle_choices(TaskItem& item, Draws& draws) {
  item.answer = static_cast<int64_t>(draws.below(item.choices.size()));
  std::swap(item.choices[0], item.choices[static_cast<size_t>(item.answer)]);
}

int64_t num_tokens(const Tokenizer& tokenizer, const TaskItem& item) {
  int64_t most = 0;
  for (const std::string& choice : item.choices) most = std::max(most, num_tokens(tokenizer, item.context + choice));
  return most;
}

// More of `next()` as long as the whole has room. The first `least` ones must be there.
template <class Next>
TaskItem fill(TaskItem item, const std::string& wanted, const std::string& question, double depth, int64_t length,
              size_t least, const Tokenizer& tokenizer, Next&& next) {
  std::vector<std::string> others;
  while (others.size() < least) others.push_back(next());
  item.context = assemble(others, wanted, depth, question);
  int64_t used = num_tokens(tokenizer, item);
  if (used > length)
    throw Error("--probe-lengths: found {}, expected at least {}: a question alone has as many tokens", length, used);
  while (used <= length) {
    others.push_back(next());
    used += num_tokens(tokenizer, others.back());
  }
  // Parts may have more tokens alone than together, or fewer.
  for (;; others.pop_back()) {
    item.context = assemble(others, wanted, depth, question);
    if (others.size() <= least || num_tokens(tokenizer, item) <= length) return item;
  }
}

TaskItem make_needle(double depth, int64_t length, const Tokenizer& tokenizer, Draws& draws) {
  TaskItem item;
  while (item.choices.size() < num_choices) {
    const std::string number = fmt::format("{}", 1000 + draws.below(9000));
    if (std::find(item.choices.begin(), item.choices.end(), number) == item.choices.end())
      item.choices.push_back(number);
  }
  const std::string name = draws.of(words);
  const std::string wanted = fmt::format("The number of the {} is {}. ", name, item.choices[0]);
  const std::string question = fmt::format("The number of the {} is ", name);
  item = fill(std::move(item), wanted, question, depth, length, 0, tokenizer, [&] { return draws.of(filler); });
  shuffle_choices(item, draws);
  return item;
}

TaskItem make_recall(double depth, int64_t length, const Tokenizer& tokenizer, Draws& draws) {
  std::vector<std::string> names, values;
  // A name once; of three words and a number, so that there are enough of them.
  const auto next_pair = [&] {
    std::string name;
    do {
      name = fmt::format("{} {} {}", draws.of(words), draws.of(words), draws.below(100));
    } while (std::find(names.begin(), names.end(), name) != names.end());
    names.push_back(name);
    values.push_back(draws.of(words));
    return fmt::format("{}: {}\n", name, values.back());
  };
  const std::string wanted = next_pair(), question = names[0] + ": ";
  TaskItem item;
  item.choices = {values[0]};
  std::vector<std::string> distractors;  // pairs with other words, which are always there
  while (item.choices.size() < num_choices) {
    std::string pair = next_pair();
    if (std::find(item.choices.begin(), item.choices.end(), values.back()) != item.choices.end()) continue;
    item.choices.push_back(values.back());
    distractors.push_back(std::move(pair));
  }
  size_t given = 0;
  item = fill(std::move(item), wanted, question, depth, length, distractors.size(), tokenizer,
              [&] { return given < distractors.size() ? distractors[given++] : next_pair(); });
  shuffle_choices(item, draws);
  return item;
}

}  // namespace

std::vector<Probe> make_probes(const ProbeOptions& options, const Tokenizer& tokenizer) {
  std::vector<Probe> probes;
  for (const bool is_needle : {true, false})
    for (const int64_t length : options.lengths)
      for (const double depth : depths) {
        Probe probe{is_needle ? "needle" : "recall", length, depth, {}};
        probe.task.path = fmt::format("{} of {} tokens at {}", probe.name, length, depth);
        Draws draws(options.seed, probe.task.path);
        for (int64_t i = 0; i < options.num_items; ++i) {
          const TaskItem item =
              is_needle ? make_needle(depth, length, tokenizer, draws) : make_recall(depth, length, tokenizer, draws);
          probe.task.items.push_back(item);
          for (const std::string& choice : item.choices)
            probe.task.requests.push_back(continuation_request(tokenizer, item.context, choice));
        }
        probes.push_back(std::move(probe));
      }
  return probes;
}

}  // namespace lamina::evaluation
