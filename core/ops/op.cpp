#include "core/ops/op.h"

#include "core/base/log.h"

namespace lamina::ops {

void RefusalLog::note(std::string_view op, std::string_view implementation, std::string_view reason) {
  const std::string line = fmt::format("{}: {} can't serve this call: {}", op, implementation, reason);
  const std::lock_guard lock(mutex_);
  if (seen_.insert(line).second) log::debug("{}", line);
}

void throw_unserved(std::string_view op, std::string_view reason) {
  throw InternalError(fmt::format("{} on a GPU: {}", op, reason));
}

}  // namespace lamina::ops
