// Runs an implementation for GPUs on operands of the host: every operand is copied to the device, between guards, and back
// after the call. So the tests that the CPU's implementations pass are passed by those for GPUs, word for word.
#pragma once

#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "core/device/cuda_device.h"
#include "core/ops/op.h"
#include "tests/support/fields.h"

namespace lamina::test {

constexpr Device offload_device{DeviceKind::cuda, 0};

// Host memory that operands lie in, and its copy on the device. Operands that overlap share one copy, and a copy keeps its
// operands' alignment.
class DeviceCopies {
 public:
  DeviceCopies(Stream& stream, Arena& memory) : stream_(stream), memory_(memory) {}
  void add(const TensorView& view);  // all of them before the first device_view()
  void upload();
  TensorView device_view(const TensorView& view) const;
  void download();  // and check the guards

 private:
  struct Piece {
    char *begin, *end;
    char* copy = nullptr;
  };
  static constexpr int64_t alignment = 256, guard = 256;
  const Piece& piece_of(const void* data) const;

  Stream& stream_;
  Arena& memory_;
  std::vector<Piece> pieces_;
};

// The arguments' views, those in spans and in structs within included.
class ViewMapper {
 public:
  ViewMapper(Stream& stream, Arena& memory) : copies_(stream, memory) {}

  template <class Args>
  Args to_device(const Args& args) {
    visit(args, [&](const TensorView& view) { copies_.add(view); });
    copies_.upload();
    Args mapped = args;
    map(mapped);
    return mapped;
  }
  void back() { copies_.download(); }

 private:
  template <class T>
  struct IsSpan : std::false_type {};
  template <class T>
  struct IsSpan<std::span<T>> : std::true_type {};
  template <class T>
  static constexpr bool has_views = std::is_aggregate_v<T>&& std::is_class_v<T>;

  template <class T, class F>
  static void visit(const T& x, const F& f) {
    if constexpr (std::is_same_v<T, TensorView>) {
      f(x);
    } else if constexpr (IsSpan<T>::value) {
      for (const auto& each : x) visit(each, f);
    } else if constexpr (has_views<T>) {
      for_each_field(x, [&](const auto& field) { visit(field, f); });
    }
  }
  template <class T>
  void map(T& x) {
    if constexpr (std::is_same_v<T, TensorView>) {
      x = copies_.device_view(x);
    } else if constexpr (IsSpan<T>::value) {
      using Element = std::remove_const_t<typename T::element_type>;
      if constexpr (std::is_same_v<Element, TensorView> || has_views<Element>) {
        auto copy = std::make_shared<std::vector<Element>>(x.begin(), x.end());
        for (Element& each : *copy) map(each);
        x = T(copy->data(), copy->size());
        spans_.push_back(std::move(copy));
      }
    } else if constexpr (has_views<T>) {
      for_each_field(x, [&](auto& field) { map(field); });
    }
  }

  DeviceCopies copies_;
  std::vector<std::shared_ptr<void>> spans_;
};

// What a thread of a test runs GPU work with.
struct OffloadContext {
  Stream stream{offload_device};
  Arena scratch{offload_device, nullptr, "test"}, operands{offload_device, nullptr, "test"};
};
OffloadContext& offload_context();

template <class T>
struct ArgsOf;
template <class Args>
struct ArgsOf<void (*)(ops::OpContext&, const Args&)> {
  using type = Args;
};

template <auto run>
void run_offloaded(ops::OpContext& host, const typename ArgsOf<decltype(run)>::type& args) {
  OffloadContext& device = offload_context();
  ops::OpContext ctx{device.stream, device.scratch, host.refusals, host.backend};
  const ArenaScope operands(device.operands);
  ViewMapper mapper(device.stream, device.operands);
  const auto mapped = mapper.to_device(args);
  {
    const ArenaScope scope(device.scratch);
    run(ctx, mapped);
  }
  mapper.back();
}

}  // namespace lamina::test

namespace lamina::ops {
namespace test = lamina::test;
}
