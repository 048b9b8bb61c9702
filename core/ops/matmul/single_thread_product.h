// Matrix products that one thread does on its own while other threads do others: c = a b, sums in fp32. fp32 goes to oneDNN's
// sgemm, which takes any shape at once. bf16 goes to oneDNN primitives, which cost some 0.2 ms to make for each new shape: the
// caller cuts its work into few shapes and asks for all of them before its threads start. Or it goes through fp32, as any
// bf16 does where the processor has no native products (core/ops/bf16_products.h).
#pragma once

#include <cstdint>
#include <memory>

#include "core/ops/op.h"

namespace lamina::ops::cpu {

struct ProductShape {
  int64_t m, n, k;
  DType in, out;
  bool a_transposed, b_transposed;  // in memory: a is [k, m], b is [n, k]
  int64_t a_leading, b_leading, c_leading;
  bool widened = false;  // bf16 through fp32
};

// An fp32 copy without gaps of lines that lie `leading` elements apart.
void widen_lines(const bf16* from, int64_t lines, int64_t length, int64_t leading, float* to);

class SingleThreadProduct {
 public:
  // The calling thread's, never null; valid until its next call of `trim`.
  static const SingleThreadProduct* get(const ProductShape& shape);
  // Forgets everything once there is more than a training run's shapes.
  static void trim();

  int64_t scratch_bytes() const { return scratch_bytes_; }
  // c = a b, or c += a b (fp32 operands only). By any thread.
  void run(const void* a, const void* b, void* c, char* scratch, bool accumulate = false) const;

  explicit SingleThreadProduct(const ProductShape& shape);
  ~SingleThreadProduct();
  SingleThreadProduct(SingleThreadProduct&&) noexcept;
  SingleThreadProduct& operator=(SingleThreadProduct&&) = delete;

 private:
  struct Primitive;
  void run_widened(const void* a, const void* b, void* c, char* scratch) const;

  ProductShape shape_;
  std::unique_ptr<Primitive> primitive_;  // native bf16
  int64_t scratch_bytes_ = 0;
};

}  // namespace lamina::ops::cpu
