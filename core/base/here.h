// The host's name and the time as text, for people and files.
#pragma once

#include <string>

namespace lamina {

std::string utc_now();    // ISO 8601, to the second: "2026-01-31T23:59:59Z"
std::string host_name();  // "unknown" where the system doesn't say

}  // namespace lamina
