// What every operation shares: the context, the gradient mode, and the ordered list of implementations.
//
// An operation has a folder of core/ops, whose header holds an argument struct and one function per direction. Behind it stands a list
// of implementations, fastest first, that ends in `ref`: plain loops, accumulating in accumulation_dtype(), always built
// and the oracle of the others. An implementation that can't serve the arguments refuses with a reason, which is logged
// once, and the next one is asked. `ref` refuses nothing. A context whose stream is a GPU's asks the implementations for GPUs
// only: the operands are there, and those of the host can't read them.
#pragma once

#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "core/device/stream.h"
#include "core/ops/bf16_products.h"
#include "core/tensor/arena.h"
#include "core/tensor/view.h"

namespace lamina::ops {

// What happens to a gradient's destination. Parameter gradients accumulate, activation gradients overwrite.
enum class GradMode : bool { overwrite, accumulate };

enum class Backend { fastest, reference };  // reference: only `ref`, for tests and for float64

// Refusals already logged. Owned by whoever makes the context; thread-safe.
class RefusalLog {
 public:
  void note(std::string_view op, std::string_view implementation, std::string_view reason);

 private:
  std::mutex mutex_;
  std::set<std::string> seen_;
};

struct OpContext {
  Stream& stream;
  Arena& scratch;  // freed by the op before it returns
  RefusalLog& refusals;
  Backend backend = Backend::fastest;
  Bf16Products bf16_products = {};  // on a CPU
};

template <class Args>
struct Implementation {
  std::string_view name;
  const char* (*refuses)(const Args&);  // nullptr: can serve; otherwise the reason
  void (*run)(OpContext&, const Args&);
  DeviceKind device = DeviceKind::cpu;
};

[[noreturn]] void throw_unserved(std::string_view op, std::string_view reason);

// Tries the list in order. The last entry is the reference.
template <class Args>
void dispatch(OpContext& ctx, std::string_view op, std::span<const Implementation<Args>> list, const Args& args) {
  LAMINA_CHECK(!list.empty(), "{}", op);
  const DeviceKind device = ctx.stream.device().kind;
  const bool reference_only = device == DeviceKind::cpu && ctx.backend == Backend::reference;
  const char* reason = "it is not written for this device";
  for (const auto& implementation : list.first(list.size() - 1)) {
    if (implementation.device != device || reference_only) continue;
    reason = implementation.refuses(args);
    if (reason == nullptr) {
      const ArenaScope scope(ctx.scratch);
      implementation.run(ctx, args);
      return;
    }
    ctx.refusals.note(op, implementation.name, reason);
  }
  if (device != DeviceKind::cpu) throw_unserved(op, reason);
  const ArenaScope scope(ctx.scratch);
  list.back().run(ctx, args);
}

}  // namespace lamina::ops
