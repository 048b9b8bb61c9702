#include "launch/program.h"

#include <git_commit.h>

#include "core/base/error.h"
#include "trainer/checkpoint/version.h"

namespace lamina {

std::string program_commit() {
  return LAMINA_GIT_COMMIT;
}

std::string program_date() {
  return LAMINA_GIT_DATE;
}

std::string program_name() {
  const std::string commit = program_commit();
  return fmt::format("lamina {}{}", program_version, commit.empty() ? "" : " (" + commit + ")");
}

}  // namespace lamina
