// What `lamina verify` is asked for: the text of layouts, and the configuration that each stands for.
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "configs/schema/decode.h"
#include "configs/schema/nearest.h"
#include "trainer/verify/verify.h"

namespace lamina {
namespace {

constexpr int max_virtual_stages = 4;  // of `all`
constexpr ScheduleName all_schedules[] = {ScheduleName::gpipe, ScheduleName::one_f_one_b,
                                          ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble};
constexpr Recompute all_recompute[] = {Recompute::none, Recompute::selective, Recompute::full};

std::vector<std::string> split_text(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<int> to_number(const std::string& text, int least) {
  int number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc{} || end != text.data() + text.size() || number < least || number > 9999)
    return std::nullopt;
  return number;
}

template <class Names>
std::vector<std::string> names_of(const Names& values) {
  std::vector<std::string> names;
  for (const auto value : values) names.push_back(name_of(value));
  return names;
}

// "key=value" of the configuration that one option of a layout stands for.
std::string to_override(const std::string& option, const std::string& item) {
  std::vector<std::string> words = names_of(all_schedules);
  if (std::count(words.begin(), words.end(), option) > 0) return "parallel.schedule=" + option;
  if (option == "cached" || option == "full") return "parallel.block_transport=" + option;
  const size_t equals = option.find('=');
  const std::string key = option.substr(0, equals),
                    value = equals == std::string::npos ? "" : option.substr(equals + 1);
  if (key == "recompute") {
    const std::vector<std::string> modes = names_of(all_recompute);
    if (std::count(modes.begin(), modes.end(), value) > 0) return "train.recompute=" + value;
    throw Error("--layouts: found '{}' in '{}', expected recompute={}", option, item, fmt::join(modes, "|"));
  }
  if (key == "expert") {
    const std::optional<int> number = to_number(value, 1);
    if (!number)
      throw Error("--layouts: found '{}' in '{}', expected the ranks that share out the experts, such as expert=2",
                  option, item);
    return fmt::format("parallel.expert={}", *number);
  }
  if (key == "split") {
    std::vector<int> layers;
    for (const std::string& part : split_text(value, '/')) {
      const std::optional<int> number = to_number(part, 0);
      if (!number)
        throw Error("--layouts: found '{}' in '{}', expected the layers of each chunk, such as split=3/3/1/1", option,
                    item);
      layers.push_back(*number);
    }
    return fmt::format("parallel.split=[{}]", fmt::join(layers, ","));
  }
  const std::string schedules = fmt::format("{}", fmt::join(words, "|"));
  for (const char* word : {"cached", "full", "recompute", "expert", "split"}) words.emplace_back(word);
  const auto near = nearest_name(key, words);
  throw Error(
      "--layouts: found '{}' in '{}', expected {}, cached|full, recompute=none|selective|full, expert=2 or "
      "split=3/3/1/1{}",
      option, item, schedules, near ? "; did you mean " + *near + "?" : "");
}

std::vector<std::string> to_overrides(const std::vector<std::string>& options, const std::string& item) {
  std::vector<std::string> overrides;
  for (const std::string& option : options) {
    const std::string next = to_override(option, item);
    const std::string key = next.substr(0, next.find('=') + 1);
    for (const std::string& other : overrides)
      if (other.starts_with(key))
        throw Error("--layouts: found two values of {} in '{}', expected one", key.substr(0, key.size() - 1), item);
    overrides.push_back(next);
  }
  return overrides;
}

bool is_possible(const Config& config, const Layout& layout) {
  try {
    with_layout(config, layout);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// One pipeline x virtual stages x data (x expert) of `all`, with every schedule that is possible.
std::vector<Layout> with_schedules(const Config& config, const Layout& base, const std::string& suffix) {
  std::vector<Layout> layouts;
  for (const ScheduleName schedule : all_schedules) {
    if (schedule == ScheduleName::one_f_one_b && base.virtual_stages > 1) continue;
    if (schedule == ScheduleName::interleaved_1f1b && base.virtual_stages == 1) continue;
    Layout layout = base;
    layout.name = fmt::format("{}:{}{}", base.name, name_of(schedule), suffix);
    layout.overrides.push_back("parallel.schedule=" + name_of(schedule));
    if (is_possible(config, layout)) layouts.push_back(layout);
  }
  return layouts;
}

// One pipeline x virtual stages x data of `all`, with every share of the experts and every schedule.
void add_variants(const Config& config, const Layout& base, const std::string& suffix, std::vector<Layout>& layouts) {
  const size_t before = layouts.size();
  const auto add = [&](const Layout& variant, const std::string& end) {
    const std::vector<Layout> some = with_schedules(config, variant, end);
    layouts.insert(layouts.end(), some.begin(), some.end());
  };
  if (config.model.num_experts == 0 || base.data == 1) {
    add(base, suffix);
  } else {
    for (int expert = 1; expert <= base.data; ++expert) {
      if (base.data % expert != 0 || config.model.num_experts % expert != 0) continue;
      Layout variant = base;
      variant.overrides.push_back(fmt::format("parallel.expert={}", expert));
      add(variant, fmt::format(":expert={}{}", expert, suffix));
    }
  }
  if (layouts.size() > before) return;
  // The reason is the same with each schedule and share; gpipe has no rule of its own.
  Layout layout = base;
  layout.name += suffix;
  layout.overrides.emplace_back("parallel.schedule=gpipe");
  layouts.push_back(layout);
}

void expand_all(const Config& config, const std::vector<std::string>& options, const std::string& item, int max_ranks,
                std::vector<Layout>& layouts) {
  const std::vector<std::string> overrides = to_overrides(options, item);
  for (const std::string& text : overrides)
    if (!text.starts_with("parallel.block_transport") && !text.starts_with("train.recompute"))
      throw Error("--layouts: found {} in '{}', expected only cached|full and recompute=.. with all", text, item);
  std::string suffix;
  for (const std::string& option : options) suffix += ":" + option;
  for (int ranks = 1; ranks <= max_ranks; ++ranks)
    for (int pipeline = 1; pipeline <= ranks; ++pipeline) {
      if (ranks % pipeline != 0) continue;
      for (int virtual_stages = 1; virtual_stages <= max_virtual_stages; ++virtual_stages) {
        const int data = ranks / pipeline;
        add_variants(
            config,
            {fmt::format("{}x{}x{}", pipeline, virtual_stages, data), pipeline, virtual_stages, data, overrides, true},
            suffix, layouts);
      }
    }
}

Layout parse_layout(const std::string& item, const std::string& shape, const std::vector<std::string>& options) {
  const std::vector<std::string> factors = split_text(shape, 'x');
  Layout layout;
  layout.name = item;
  int* const fields[] = {&layout.pipeline, &layout.virtual_stages, &layout.data};
  for (size_t i = 0; i < 3; ++i) {
    const std::optional<int> number = factors.size() == 3 ? to_number(factors[i], 1) : std::nullopt;
    if (!number)
      throw Error("--layouts: found '{}', expected all or PIPELINExVIRTUAL_STAGESxDATA, each at least 1, such as 2x2x1",
                  shape);
    *fields[i] = *number;
  }
  layout.overrides = to_overrides(options, item);
  return layout;
}

}  // namespace

std::vector<Layout> parse_layouts(const std::string& text, const Config& config, int max_ranks) {
  std::vector<Layout> layouts;
  for (const std::string& item : split_text(text, ',')) {
    std::vector<std::string> options = split_text(item, ':');
    const std::string shape = options.front();
    options.erase(options.begin());
    if (shape == "all")
      expand_all(config, options, item, max_ranks, layouts);
    else
      layouts.push_back(parse_layout(item, shape, options));
  }
  return layouts;
}

Config with_layout(const Config& config, const Layout& layout) {
  Config base = config;
  const auto num_chunks = static_cast<size_t>(layout.pipeline) * static_cast<size_t>(layout.virtual_stages);
  if (base.parallel.split.size() != num_chunks) base.parallel.split.clear();
  if (layout.data % base.parallel.expert != 0) base.parallel.expert = 1;
  std::vector<std::string> overrides = {fmt::format("parallel.pipeline={}", layout.pipeline),
                                        fmt::format("parallel.virtual_stages={}", layout.virtual_stages),
                                        fmt::format("parallel.data={}", layout.data)};
  overrides.insert(overrides.end(), layout.overrides.begin(), layout.overrides.end());
  try {
    const Config result = parse_config(to_yaml(base), "the configuration", overrides);
    resolve_data_parallel(result, layout.num_ranks());
    return result;
  } catch (const Error& failure) {
    // The user wrote a layout, not the keys that it stands for.
    std::string reason = failure.what();
    for (const std::string& text : overrides)
      if (const std::string prefix = "command line: " + text + ": "; reason.starts_with(prefix))
        reason.erase(0, prefix.size());
    throw Error(reason);
  }
}

}  // namespace lamina
