// What updates each tensor, and how fast: the optimizer, the factor of the learning rate and the weight decay, from
// train.optimizer and its groups. A pure function of the configuration, the same on every rank.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "model/parameters.h"

namespace lamina::model {

class Optimizer;  // model/optimizers/optimizer.h

struct UpdateRule {
  const Optimizer* optimizer = nullptr;  // null: none, as of the router's selection bias
  double lr_factor = 1;                  // of the step's learning rate
  double weight_decay = 0;               // of each step: learning rate x lr_factor x this
  bool operator==(const UpdateRule&) const = default;
};

// A tensor's name with a star for each number: "model.layers.12.mlp.up_proj.weight" is of "model.layers.*.mlp.up_proj.weight".
std::string family_of(const std::string& name);

// One per tensor of the whole model. First the built-in group of Attention Residuals, then train.optimizer.groups in their order:
// of those that match a tensor, the last one that gives a key decides it; then the width's factor (width_rule.h).
// Throws Error naming the group and the key: a pattern that matches no trained tensor, a key that later groups take from every tensor it
// matches, an optimizer of matrices for a vector.
std::vector<UpdateRule> update_rules(const Config& config, std::span<const ParameterSpec> specs);
std::vector<UpdateRule> update_rules(const Config& config);

// For people: a line per rule that is in use, "adamw, lr 0.01 x 1, weight decay 0.1: 12 tensors (model.norm.weight, ..)".
std::vector<std::string> describe_update_rules(const Config& config);

}  // namespace lamina::model
