// Configuration files as people keep them: one may include others, and paths may name the home folder and environment variables.
#pragma once

#include <string>

#include "configs/schema/value.h"

namespace lamina::schema {

// The file with what it includes: `include: base.yaml`, or a list of files, at its top, relative to its own folder. Sections are joined
// key by key; what a later file says replaces what an earlier one did, and what the including file says replaces both; a key with nothing
// after it takes an included one away. Lists are whole values. Throws Error for a file that can't be read or that includes itself.
Value load_tree(const std::string& path);

// "~/x", "$SCRATCH/x" and "${SCRATCH}/x" written out; "$$" is a dollar. Throws Error that begins with `place` for a variable that is not
// set, and for another user's home folder.
std::string expand_path(const std::string& text, const std::string& place);

}  // namespace lamina::schema
