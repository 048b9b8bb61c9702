// YAML to Config and back.
#pragma once

#include <span>
#include <string>

#include "configs/schema/config.h"
#include "configs/schema/value.h"

namespace lamina {

// Reads a file with what it includes (files.h), applies "key.path=value" overrides in order (values are YAML), decodes and validates everything that can
// be judged without other files. Throws Error: "<file>:<line>: <key.path>: <what was found>, expected <what>".
Config load_config(const std::string& path, std::span<const std::string> overrides = {});

std::string read_config_text(const std::string& path);  // of the file; Error naming it and the reason

// The same from text, which includes nothing and whose paths stand as they are: a stored configuration; `name` stands for the file in
// messages.
Config parse_config(const std::string& yaml, const std::string& name, std::span<const std::string> overrides = {});

// As load_config() from a document whose keys may come from several places; `name` stands for what has no place of its own.
Config decode_config(schema::Value root, const std::string& name);

// The resolved configuration, every key written out; parse_config(to_yaml(c), ..) gives c back exactly.
std::string to_yaml(const Config& config);

// Checks that need the number of ranks: ranks = pipeline x data, and the batch sizes. Returns the resolved data-parallel size.
// Throws Error with the product rule and every factor in its message.
int resolve_data_parallel(const Config& config, int world_size);

// A step of AdamW moves an element by about the learning rate, and the normalised keys of a depth read have elements of about one:
// a logit moves by up to rate x hidden_size. The factor of depth queries' rate that makes this 0.15; at most one.
double default_attn_res_lr_factor(const Config& config);

std::string name_of(OptimizerName optimizer);
std::string name_of(ScheduleName schedule);  // as in the file
std::string name_of(BlockTransport transport);
std::string name_of(Recompute recompute);
std::string name_of(Residual residual);
std::string name_of(OnSpike action);

}  // namespace lamina
