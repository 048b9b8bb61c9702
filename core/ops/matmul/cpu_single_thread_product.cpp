#include "core/ops/matmul/single_thread_product.h"

#include <array>
#include <map>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/matmul/onednn.h"

namespace lamina::ops::cpu {
namespace {

using Key = std::array<int64_t, 11>;

Key key_of(const ProductShape& shape) {
  return {shape.m,
          shape.n,
          shape.k,
          static_cast<int64_t>(shape.in),
          static_cast<int64_t>(shape.out),
          shape.a_transposed,
          shape.b_transposed,
          shape.a_leading,
          shape.b_leading,
          shape.c_leading,
          shape.widened};
}

std::map<Key, SingleThreadProduct>& known() {
  thread_local std::map<Key, SingleThreadProduct> products;
  return products;
}

dnnl::memory::desc describe(int64_t rows, int64_t cols, DType dtype, bool transposed, int64_t leading) {
  const auto type = dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  const auto strides = transposed ? dnnl::memory::dims{1, leading} : dnnl::memory::dims{leading, 1};
  return {dnnl::memory::dims{rows, cols}, type, strides};
}

int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

void sgemm(const ProductShape& shape, const float* a, int64_t a_leading, const float* b, int64_t b_leading, float* c,
           int64_t c_leading, bool accumulate) {
  const lamina::cpu::OneThread one;  // oneDNN fixes the partition over threads here, and a primitive's when it is made
  const auto status = dnnl_sgemm(shape.a_transposed ? 'T' : 'N', shape.b_transposed ? 'T' : 'N', shape.m, shape.n,
                                 shape.k, 1.0f, a, a_leading, b, b_leading, accumulate ? 1.0f : 0.0f, c, c_leading);
  LAMINA_CHECK(status == dnnl_success, "sgemm [{}, {}, {}]: status {}", shape.m, shape.n, shape.k,
               static_cast<int>(status));
}

}  // namespace

void widen_lines(const bf16* from, int64_t lines, int64_t length, int64_t leading, float* to) {
  for (int64_t line = 0; line < lines; ++line) {
    for (int64_t i = 0; i < length; ++i) to[line * length + i] = static_cast<float>(from[line * leading + i]);
  }
}

struct SingleThreadProduct::Primitive {
  dnnl::memory::desc a, b, c, scratchpad;
  dnnl::matmul matmul;
};

SingleThreadProduct::SingleThreadProduct(const ProductShape& shape) : shape_(shape) {
  if (shape.in == DType::f32) return;
  if (shape.n == 1 || (shape.m == 1 && shape.a_transposed)) shape_.widened = true;  // see is_spread_vector in cpu.cpp
  if (shape_.widened || !has_native_bf16_products()) {
    scratch_bytes_ = aligned(4 * shape.m * shape.k) + aligned(4 * shape.k * shape.n) + aligned(4 * shape.m * shape.n);
    return;
  }
  const lamina::cpu::OneThread one;
  const auto a = describe(shape.m, shape.k, shape.in, shape.a_transposed, shape.a_leading);
  const auto b = describe(shape.k, shape.n, shape.in, shape.b_transposed, shape.b_leading);
  const auto c = describe(shape.m, shape.n, shape.out, false, shape.c_leading);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc description(onednn_engine(), a, b, c, attributes);
#else
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, onednn_engine());
#endif
  primitive_ =
      std::make_unique<Primitive>(Primitive{a, b, c, description.scratchpad_desc(), dnnl::matmul(description)});
  scratch_bytes_ = aligned(static_cast<int64_t>(primitive_->scratchpad.get_size()));
}

SingleThreadProduct::~SingleThreadProduct() = default;
SingleThreadProduct::SingleThreadProduct(SingleThreadProduct&&) noexcept = default;

const SingleThreadProduct* SingleThreadProduct::get(const ProductShape& shape) {
  const Key key = key_of(shape);
  const auto found = known().find(key);
  if (found != known().end()) return &found->second;
  return &known().emplace(key, shape).first->second;
}

void SingleThreadProduct::trim() {
  constexpr size_t capacity = 2048;
  if (known().size() > capacity) known().clear();
}

void SingleThreadProduct::run(const void* a, const void* b, void* c, char* scratch, bool accumulate) const {
  LAMINA_CHECK(!accumulate || shape_.in == DType::f32, "accumulating products of {}", name_of(shape_.in));
  if (shape_.in == DType::f32) {
    return sgemm(shape_, static_cast<const float*>(a), shape_.a_leading, static_cast<const float*>(b), shape_.b_leading,
                 static_cast<float*>(c), shape_.c_leading, accumulate);
  }
  if (!primitive_) return run_widened(a, b, c, scratch);
  thread_local dnnl::stream stream{onednn_engine()};
  // oneDNN's interface has no const data.
  const dnnl::memory left(primitive_->a, onednn_engine(), const_cast<void*>(a)),
      right(primitive_->b, onednn_engine(), const_cast<void*>(b)), out(primitive_->c, onednn_engine(), c),
      scratchpad(primitive_->scratchpad, onednn_engine(), scratch);
  const lamina::cpu::OneThread one;
  primitive_->matmul.execute(
      stream,
      {{DNNL_ARG_SRC, left}, {DNNL_ARG_WEIGHTS, right}, {DNNL_ARG_DST, out}, {DNNL_ARG_SCRATCHPAD, scratchpad}});
  stream.wait();
}

void SingleThreadProduct::run_widened(const void* a, const void* b, void* c, char* scratch) const {
  const auto [m, n, k] = std::array{shape_.m, shape_.n, shape_.k};
  auto* left = reinterpret_cast<float*>(scratch);
  auto* right = reinterpret_cast<float*>(scratch + aligned(4 * m * k));
  auto* sum = reinterpret_cast<float*>(scratch + aligned(4 * m * k) + aligned(4 * k * n));
  const int64_t a_length = shape_.a_transposed ? m : k, b_length = shape_.b_transposed ? k : n;
  widen_lines(static_cast<const bf16*>(a), shape_.a_transposed ? k : m, a_length, shape_.a_leading, left);
  widen_lines(static_cast<const bf16*>(b), shape_.b_transposed ? n : k, b_length, shape_.b_leading, right);
  if (shape_.out == DType::f32) {
    return sgemm(shape_, left, a_length, right, b_length, static_cast<float*>(c), shape_.c_leading, false);
  }
  sgemm(shape_, left, a_length, right, b_length, sum, n, false);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t i = 0; i < n; ++i) static_cast<bf16*>(c)[r * shape_.c_leading + i] = bf16(sum[r * n + i]);
  }
}

}  // namespace lamina::ops::cpu
