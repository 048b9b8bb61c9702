// Which way the CPU multiplies matrices of bf16: by its own instructions for it, or through fp32 (the operands widened, which is exact,
// and an fp32 product). Native products read half the bytes; their arithmetic rate differs by processor. vdpbf16ps does two multiply-adds
// where an FMA does one; it issues as often as an FMA on Zen 4 and 5, but a quarter as often on Intel's processors, some of which have AMX,
// which does many more. So a short measurement decides, for each class of shapes.
#pragma once

#include <array>
#include <string>
#include <string_view>

namespace lamina::ops {

enum class ProductClass {
  single_row,       // a vector times a matrix: bound by reading the matrix
  dense,            // forward and input gradients of linear layers
  weight_gradient,  // the left operand is transposed in memory
  tile,             // of experts' rows and of Muon's matrices: one thread's share
  expert_gradient,  // weight gradients of experts
};
inline constexpr int num_product_classes = 5;
const char* name_of(ProductClass product);

struct Bf16Products {
  std::array<bool, num_product_classes> native = {true, true, true, true,
                                                  true};  // [ProductClass], where the processor can

  bool is_native(ProductClass product) const { return native[static_cast<size_t>(product)]; }
  bool operator==(const Bf16Products&) const = default;
  static Bf16Products through_fp32() { return {{}}; }
};
// Names of the native classes, "dense,tile", or "none"; and back. Error for anything else.
std::string to_text(const Bf16Products& products);
Bf16Products parse_bf16_products(std::string_view text);

// Whether this processor has native products, and oneDNN may use them: DNNL_MAX_CPU_ISA limits it. Without AVX512_BF16 oneDNN emulates
// them, at a fifth of fp32's rate.
bool has_native_bf16_products();
// What a choice belongs to: "AuthenticAMD family 25 model 17, avx512_core_bf16".
std::string product_processor();

// CPU seconds of one product of each class.
struct Bf16Timing {
  double native = 0, through_fp32 = 0;
};
using Bf16Timings = std::array<Bf16Timing, num_product_classes>;  // [ProductClass]
// Measured at the first call, some tens of ms; zeros where there are no native products. By one thread, whatever their number: a class's
// choice then is the same at any number of threads and ranks, and the thread's own CPU time tells nothing of who else uses the cores.
const Bf16Timings& bf16_timings();
// Native where that takes at most nine tenths of the time: on the processors above the ratio is far from that, so that two starts on
// the same machine choose the same.
Bf16Products quicker_products(const Bf16Timings& timings);
// "dense 0.47, tile 0.39 of the time through fp32"
std::string describe(const Bf16Timings& timings);

}  // namespace lamina::ops
