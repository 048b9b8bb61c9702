#include "core/ops/bf16_products.h"

#include <algorithm>
#include <functional>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/base/clock.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/experts/experts.h"
#include "core/ops/matmul/matmul.h"
#include "core/ops/matmul/onednn.h"
#include "core/ops/matmul/onednn_version.h"

namespace lamina::ops {
namespace {

constexpr std::array<const char*, num_product_classes> names = {"single_row", "dense", "weight_gradient", "tile",
                                                                "expert_gradient"};

#if defined(__x86_64__)
std::string processor_kind() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return "unknown processor";
  std::string vendor;
  for (const unsigned word : {ebx, edx, ecx})
    for (unsigned shift = 0; shift < 32; shift += 8) vendor += static_cast<char>((word >> shift) & 0xff);
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  // Intel's and AMD's manuals: the extended parts count where the base family is 15, the extended model also at 6.
  const unsigned base = (eax >> 8) & 15, family = base == 15 ? base + ((eax >> 20) & 255) : base;
  const unsigned model = ((eax >> 4) & 15) + (base == 15 || base == 6 ? ((eax >> 16) & 15) << 4 : 0);
  return fmt::format("{} family {} model {}", vendor, family, model);
}
#else
std::string processor_kind() {
  return "unknown processor";
}
#endif

const char* isa_name() {
  using dnnl::cpu_isa;
  for (const auto& [isa, name] :
       {std::pair{cpu_isa::avx512_core_amx, "avx512_core_amx"},
        std::pair{cpu_isa::avx512_core_bf16, "avx512_core_bf16"},
        std::pair{cpu_isa::avx512_core_vnni, "avx512_core_vnni"}, std::pair{cpu_isa::avx512_core, "avx512_core"},
        std::pair{cpu_isa::avx2, "avx2"}, std::pair{cpu_isa::avx, "avx"}, std::pair{cpu_isa::sse41, "sse41"}})
    if (cpu::onednn_has(isa)) return name;
  return "no vector instructions";
}

// Operands are neither zeros nor denormals, which some units are quicker or slower with.
TensorView filled(Arena& arena, DType dtype, const Shape& shape) {
  const TensorView x = arena.take(dtype, shape);
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    const float value = 0.25f + 0.5f * static_cast<float>(i % 7);
    if (dtype == DType::bf16)
      x.as<bf16>()[i] = bf16(value);
    else
      x.as<float>()[i] = value;
  }
  return x;
}

// One product per class, of a size whose operands stay in a core's cache.
class Products {
 public:
  Products() {
    const auto bf16_of = [&](const Shape& shape) { return filled(memory_, DType::bf16, shape); };
    const TensorView x = bf16_of({128, 512}), w = bf16_of({512, 512}), y = bf16_of({128, 512});
    const TensorView dw = filled(memory_, DType::f32, {512, 512});
    const TensorView few = x.slice(0, 0, 64), out = y.slice(0, 0, 64).slice(1, 0, 256), part = w.slice(0, 0, 256);
    weights_ = {part};
    gradients_ = {dw.slice(0, 0, 256)};
    const ExpertRows rows{memory_.take(DType::i32, {2})};
    rows.offsets.as<int32_t>()[0] = 0;
    rows.offsets.as<int32_t>()[1] = 64;
    work_ = {[=](OpContext& ctx) { linear(ctx, x.slice(0, 0, 1), w, y.slice(0, 0, 1)); },
             [=](OpContext& ctx) { linear(ctx, x, w, y); },
             [=](OpContext& ctx) { linear_weight_gradient(ctx, y, x, dw); },
             [=, this](OpContext& ctx) {
               grouped_linear(ctx, {few, weights_, rows, out});
             },
             [=, this](OpContext& ctx) {
               grouped_linear_weight_gradient(ctx, {out, few, rows, gradients_});
             }};
  }

  // The least of a few, the two ways in turn; the first of each makes kernels and books memory.
  Bf16Timing time(ProductClass product) {
    constexpr int tries = 6;
    Bf16Timing best{1e9, 1e9};
    for (int i = 0; i < tries; ++i) {
      const double native = run(product, native_), through_fp32 = run(product, widened_);
      if (i > 0) best = {std::min(best.native, native), std::min(best.through_fp32, through_fp32)};
    }
    return best;
  }

 private:
  double run(ProductClass product, OpContext& ctx) {
    const double begin = thread_cpu_seconds();
    work_[static_cast<size_t>(product)](ctx);
    const double seconds = thread_cpu_seconds() - begin;
    scratch_.reset();
    return seconds;
  }

  Stream stream_;
  Arena memory_{Device{}, nullptr, "measurement"}, scratch_{Device{}, nullptr, "measurement"};
  RefusalLog refusals_;
  OpContext native_{stream_, scratch_, refusals_};
  OpContext widened_{stream_, scratch_, refusals_, Backend::fastest, Bf16Products::through_fp32()};
  std::vector<TensorView> weights_, gradients_;
  std::array<std::function<void(OpContext&)>, num_product_classes> work_;
};

Bf16Timings measure() {
  Bf16Timings timings;
  if (!has_native_bf16_products()) return timings;
  const lamina::cpu::OneThread one;
  Products products;
  for (int i = 0; i < num_product_classes; ++i)
    timings[static_cast<size_t>(i)] = products.time(static_cast<ProductClass>(i));
  return timings;
}

}  // namespace

const char* name_of(ProductClass product) {
  return names[static_cast<size_t>(product)];
}

std::string to_text(const Bf16Products& products) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i)
    if (products.native[i]) text += (text.empty() ? "" : ",") + std::string(names[i]);
  return text.empty() ? "none" : text;
}

Bf16Products parse_bf16_products(std::string_view text) {
  Bf16Products products = Bf16Products::through_fp32();
  if (text == "none") return products;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const auto found = std::find(names.begin(), names.end(), text.substr(begin, end - begin));
    if (found == names.end())
      throw Error("found '{}', expected classes of bf16 products ({}) with commas between them, or none", text,
                  to_text(Bf16Products()));
    products.native[static_cast<size_t>(found - names.begin())] = true;
    begin = end + 1;
  }
  return products;
}

bool has_native_bf16_products() {
  static const bool has = cpu::onednn_has(dnnl::cpu_isa::avx512_core_bf16);
  return has;
}

std::string product_processor() {
  return fmt::format("{}, {}", processor_kind(), isa_name());
}

const Bf16Timings& bf16_timings() {
  static const Bf16Timings timings = measure();
  return timings;
}

Bf16Products quicker_products(const Bf16Timings& timings) {
  constexpr double most = 0.9;
  Bf16Products products;
  for (size_t i = 0; i < timings.size(); ++i)
    products.native[i] = timings[i].native > 0 && timings[i].native <= most * timings[i].through_fp32;
  return products;
}

std::string describe(const Bf16Timings& timings) {
  std::string text;
  for (size_t i = 0; i < timings.size(); ++i)
    text += fmt::format("{}{} {:.2f}", i == 0 ? "" : ", ", names[i], timings[i].native / timings[i].through_fp32);
  return text + " of the time through fp32";
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

}  // namespace lamina::ops
