// Where a result comes from: what the process that makes it says of itself.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace lamina {

// commit (where it is known), command (quoted for a shell), hosts of all ranks ("node-a x 2, node-b x 2") and libraries ("Open MPI v4.1.4;
// HDF5 1.10.8; ..").
using Origin = std::map<std::string, std::string>;
Origin program_origin(const std::vector<std::string>& hosts);
Origin program_origin();  // of one process

// As a file beside a result: the program's name and the time, too.
std::string origin_file(const Origin& origin);
inline constexpr const char* origin_name = "origin.json";

// What `lamina inspect` shows of a folder's origin.json; empty where there is none. Error when it is damaged.
std::string describe_origin(const std::string& folder);

std::string hosts_text(const std::vector<std::string>& hosts);
std::string quote_for_shell(const std::vector<std::string>& words);

}  // namespace lamina
