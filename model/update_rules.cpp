#include "model/update_rules.h"

#include <fnmatch.h>

#include <algorithm>

#include "configs/schema/decode.h"
#include "configs/schema/nearest.h"
#include "core/base/error.h"
#include "model/optimizers/optimizer.h"
#include "model/width_rule.h"

namespace lamina::model {
namespace {

bool matches(const OptimizerGroupConfig& group, const ParameterSpec& spec) {
  return spec.is_trained && ::fnmatch(group.pattern.c_str(), spec.name.c_str(), 0) == 0;
}

// Before any group.
UpdateRule standard_rule(const OptimizerConfig& config, const ParameterSpec& spec) {
  if (!spec.is_trained) return {};
  const Optimizer& optimizer = spec.is_linear ? optimizer_of(config.name) : optimizer_of_the_rest(config.name);
  return {&optimizer, 1.0, spec.decays ? config.weight_decay : 0.0};
}

std::vector<OptimizerGroupConfig> built_in_groups(const Config& config) {
  if (!config.model.has_depth_reads()) return {};
  const double factor = config.train.optimizer.attn_res_lr_factor.value_or(default_attn_res_lr_factor(config));
  return {{"*_res_proj.weight", factor, {}, {}}, {"*_res_norm.weight", factor, {}, {}}};
}

std::vector<std::string> families_of(std::span<const ParameterSpec> specs) {
  std::vector<std::string> families;
  for (const ParameterSpec& spec : specs) {
    if (!spec.is_trained) continue;
    const std::string family = family_of(spec.name);
    if (std::find(families.begin(), families.end(), family) == families.end()) families.push_back(family);
  }
  return families;
}

// The keys that a group gives, to find those that nothing takes from it.
struct Uses {
  bool matched = false, lr_factor = false, weight_decay = false, rule = false;
};

void check_uses(const OptimizerGroupConfig& group, size_t index, const Uses& uses,
                std::span<const ParameterSpec> specs) {
  const std::string place = fmt::format("train.optimizer.groups[{}]", index);
  if (!uses.matched) {
    const auto near = nearest_name(group.pattern, families_of(specs));
    throw Error(
        "{}.pattern: '{}' matches no tensor that is trained, expected a pattern over the whole name of one or more{}",
        place, group.pattern, near ? ", such as " + *near : "");
  }
  const char* idle = group.lr_factor && !uses.lr_factor         ? "lr_factor"
                     : group.weight_decay && !uses.weight_decay ? "weight_decay"
                     : group.rule && !uses.rule                 ? "rule"
                                                                : nullptr;
  if (idle)
    throw Error("{}.{}: has no effect: later groups give one to every tensor that '{}' matches; remove it", place, idle,
                group.pattern);
}

}  // namespace

std::string family_of(const std::string& name) {
  std::string family;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('.', at), name.size());
    const bool is_number = end > at && name.find_first_not_of("0123456789", at) >= end;
    family += (at > 0 ? "." : "") + (is_number ? "*" : name.substr(at, end - at));
    at = end + 1;
  }
  return family;
}

std::vector<UpdateRule> update_rules(const Config& config, std::span<const ParameterSpec> specs) {
  const OptimizerConfig& optimizer = config.train.optimizer;
  std::vector<OptimizerGroupConfig> groups = built_in_groups(config);
  const size_t num_built_in = groups.size();
  groups.insert(groups.end(), optimizer.groups.begin(), optimizer.groups.end());
  std::vector<Uses> uses(groups.size());
  std::vector<UpdateRule> rules;
  for (const ParameterSpec& spec : specs) {
    UpdateRule rule = standard_rule(optimizer, spec);
    Uses decided;
    for (size_t g = groups.size(); g-- > 0;) {  // the last one first: what is decided stays
      const OptimizerGroupConfig& group = groups[g];
      if (!matches(group, spec)) continue;
      const auto decide = [&](const auto& given, bool& is_decided, bool& is_used, auto& value, auto&& convert) {
        if (!given || is_decided) return;
        value = convert(*given);
        is_decided = is_used = true;
      };
      const auto number = [](double x) { return x; };
      uses[g].matched = true;
      decide(group.lr_factor, decided.lr_factor, uses[g].lr_factor, rule.lr_factor, number);
      decide(group.weight_decay, decided.weight_decay, uses[g].weight_decay, rule.weight_decay, number);
      decide(group.rule, decided.rule, uses[g].rule, rule.optimizer,
             [](OptimizerName name) { return &optimizer_of(name); });
      if (group.rule && rule.optimizer == &optimizer_of(*group.rule) && rule.optimizer->facts().matrices_only &&
          spec.group == Group::vectors)
        throw Error("train.optimizer.groups[{}].rule: found {} for {} {}, expected matrices only", g - num_built_in,
                    name_of(*group.rule), spec.name, spec.shape.to_string());
    }
    const double factor = rule.optimizer ? rule.optimizer->width_factor(width_factors(config.model, spec)) : 1;
    rule.lr_factor *= factor;
    rule.weight_decay /= factor;  // a step takes away rate x factor x decay: as much at every width
    rules.push_back(rule);
  }
  for (size_t g = num_built_in; g < groups.size(); ++g) check_uses(groups[g], g - num_built_in, uses[g], specs);
  return rules;
}

std::vector<UpdateRule> update_rules(const Config& config) {
  return update_rules(config, parameter_specs(config.model));
}

std::vector<std::string> describe_update_rules(const Config& config) {
  struct Line {
    UpdateRule rule;
    std::vector<ParameterSpec> specs;
  };
  const std::vector<ParameterSpec> specs = parameter_specs(config.model);
  const std::vector<UpdateRule> rules = update_rules(config, specs);
  std::vector<Line> lines;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!rules[i].optimizer) continue;
    auto line = std::find_if(lines.begin(), lines.end(), [&](const Line& l) { return l.rule == rules[i]; });
    if (line == lines.end()) line = lines.insert(lines.end(), {rules[i], {}});
    line->specs.push_back(specs[i]);
  }
  std::vector<std::string> text;
  for (const Line& line : lines) {
    constexpr size_t most = 4;
    const std::vector<std::string> families = families_of(line.specs);
    std::string names;
    for (size_t i = 0; i < std::min(most, families.size()); ++i) names += (i > 0 ? ", " : "") + families[i];
    if (families.size() > most) names += fmt::format(", {} more", families.size() - most);
    text.push_back(fmt::format("{}, lr {:.4g} x {:.4g}, weight decay {:.4g}: {} tensor{} ({})",
                               name_of(line.rule.optimizer->facts().name), config.train.optimizer.lr,
                               line.rule.lr_factor, line.rule.weight_decay, line.specs.size(),
                               line.specs.size() == 1 ? "" : "s", names));
  }
  return text;
}

}  // namespace lamina::model
