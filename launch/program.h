// The program's own name.
#pragma once

#include <string>

namespace lamina {

std::string program_commit();  // of its sources; empty where they are in no repository
std::string program_date();    // of that commit, "2026-11-30"; empty where it is unknown
std::string program_name();    // "lamina 0.1.0 (4c2e5e3f2a)"

}  // namespace lamina
