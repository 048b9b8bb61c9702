#include "core/ops/matmul/implementations.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_map>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/matmul/onednn.h"
#include "core/ops/matmul/row_products.h"

namespace lamina::ops::cpu {
namespace {

// One operand as oneDNN sees it: row-major with a leading dimension, or transposed.
struct Layout {
  bool transposed;
  int64_t leading;
};

// Extents of one leave the strides free; normalised, equal products share one primitive.
Layout layout_of(const TensorView& view) {
  const int64_t rows = view.size(0), cols = view.size(1);
  if (view.stride(1) == 1 || cols == 1) return {false, rows > 1 ? view.stride(0) : cols};
  return {true, cols > 1 ? view.stride(1) : rows};
}

struct Problem {
  int64_t m, n, k;
  Layout a, b, c;
  DType in, out;
  bool accumulate;
  int num_threads;  // oneDNN fixes the partition when it makes the primitive

  std::array<int64_t, 12> key() const {
    return {m,
            n,
            k,
            a.leading,
            b.leading,
            c.leading,
            a.transposed,
            b.transposed,
            static_cast<int64_t>(in),
            static_cast<int64_t>(out),
            accumulate,
            num_threads};
  }
};

Problem problem_of(const Matmul& args) {
  return {args.c.size(0),
          args.c.size(1),
          args.a.size(1),
          layout_of(args.a),
          layout_of(args.b),
          {false, args.c.size(0) > 1 ? args.c.stride(0) : args.c.size(1)},
          args.a.dtype,
          args.c.dtype,
          args.mode == GradMode::accumulate,
          omp_in_parallel() != 0 ? 1 : lamina::cpu::num_threads()};
}

dnnl::memory::desc describe(int64_t rows, int64_t cols, DType dtype, const Layout& layout) {
  const auto type = dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  const auto strides =
      layout.transposed ? dnnl::memory::dims{1, layout.leading} : dnnl::memory::dims{layout.leading, 1};
  return {dnnl::memory::dims{rows, cols}, type, strides};
}

struct Primitive {
  dnnl::memory::desc a, b, c, scratchpad;
  dnnl::matmul matmul;
};

Primitive make_primitive(const Problem& problem) {
  const auto a = describe(problem.m, problem.k, problem.in, problem.a);
  const auto b = describe(problem.k, problem.n, problem.in, problem.b);
  const auto c = describe(problem.m, problem.n, problem.out, problem.c);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (problem.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc description(onednn_engine(), a, b, c, attributes);
#else
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, onednn_engine());
#endif
  return {a, b, c, description.scratchpad_desc(), dnnl::matmul(description)};
}

ProductClass class_of(const Problem& problem) {
  if (problem.m == 1 || problem.n == 1) return ProductClass::single_row;
  return problem.a.transposed ? ProductClass::weight_gradient : ProductClass::dense;
}

struct KeyHash {
  size_t operator()(const std::array<int64_t, 12>& key) const {
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a over words
    for (int64_t word : key) hash = (hash ^ static_cast<uint64_t>(word)) * 0x100000001b3u;
    return static_cast<size_t>(hash ^ (hash >> 29));
  }
};

// Immutable primitives by shape. One per thread, so ranks that are threads need no lock; asking oneDNN's own cache takes
// 1.6 to 3 us a call, as long as a small product.
struct PrimitiveCache {
  static constexpr size_t capacity = 512;  // experts see a new number of tokens every step
  std::unordered_map<std::array<int64_t, 12>, Primitive, KeyHash> primitives;
  dnnl::stream stream{onednn_engine()};

  const Primitive& get(const Problem& problem) {
    const auto key = problem.key();
    const auto found = primitives.find(key);
    if (found != primitives.end()) return found->second;
    if (primitives.size() >= capacity) primitives.clear();
    return primitives.emplace(key, make_primitive(problem)).first->second;
  }
};

void run_primitive(OpContext& ctx, const Matmul& args, const Problem& problem) {
  thread_local PrimitiveCache cache;
  const Primitive& primitive = cache.get(problem);
  const auto scratch_bytes = static_cast<int64_t>(primitive.scratchpad.get_size());
  const TensorView scratch = ctx.scratch.take(DType::f32, {(scratch_bytes + 3) / 4});
  const dnnl::memory a(primitive.a, onednn_engine(), args.a.data), b(primitive.b, onednn_engine(), args.b.data);
  const dnnl::memory c(primitive.c, onednn_engine(), args.c.data);
  const dnnl::memory scratchpad(primitive.scratchpad, onednn_engine(), scratch.data);
  primitive.matmul.execute(
      cache.stream, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}, {DNNL_ARG_SCRATCHPAD, scratchpad}});
  cache.stream.wait();
}

void run_sgemm(const Matmul& args, const Problem& problem) {
  const auto status =
      dnnl_sgemm(problem.a.transposed ? 'T' : 'N', problem.b.transposed ? 'T' : 'N', problem.m, problem.n, problem.k,
                 1.0f, args.a.as<float>(), problem.a.leading, args.b.as<float>(), problem.b.leading,
                 problem.accumulate ? 1.0f : 0.0f, args.c.as<float>(), problem.c.leading);
  LAMINA_CHECK(status == dnnl_success, "sgemm {} x {}: status {}", args.a.to_string(), args.b.to_string(),
               static_cast<int>(status));
}

// sgemm packs both operands once; the matmul primitive reads them where they are, a transposed left one through a copy per strip
// of columns. On a core with AVX-512 the products of a hidden-512 model run at 106 against 101 GFLOP/s; those of less than this,
// in the second-level cache, at 110 against 114. With AVX2 both are the same kernel.
bool fits_cache(const Problem& problem) {
  constexpr int64_t num_elements = int64_t{1} << 19;  // 2 MiB
  return problem.m * problem.k + problem.k * problem.n + problem.m * problem.n < num_elements;
}

// A vector whose elements lie apart. oneDNN 3.7 with AVX-512 writes such a column, and reads such a row, as if they didn't.
bool is_spread_vector(const TensorView& view) {
  const int64_t rows = view.size(0), cols = view.size(1);
  return (cols == 1 && rows > 1 && view.stride(0) != 1) || (rows == 1 && cols > 1 && view.stride(1) != 1);
}

void copy_vector(const TensorView& from, const TensorView& to) {
  const int64_t bytes = size_of(from.dtype);
  const int axis = from.size(0) == 1 ? 1 : 0;
  for (int64_t i = 0; i < from.size(axis); ++i)
    std::memcpy(static_cast<char*>(to.data) + i * to.stride(axis) * bytes,
                static_cast<const char*>(from.data) + i * from.stride(axis) * bytes, static_cast<size_t>(bytes));
}

TensorView dense(OpContext& ctx, const TensorView& view) {
  if (!is_spread_vector(view)) return view;
  const TensorView copy = ctx.scratch.take(view.dtype, view.shape);
  copy_vector(view, copy);
  return copy;
}

}  // namespace

const char* matmul_refuses(const Matmul& args) {
  if (args.a.dtype == DType::f64) return "oneDNN has no float64";
  return args.a.size(1) == 0 ? "a sum over nothing" : nullptr;
}

void matmul(OpContext& ctx, const Matmul& args) {
  if (args.c.num_elements() == 0) return;
  if (is_row_product(args)) return row_product(ctx, args);
  if (is_spread_vector(args.a) || is_spread_vector(args.b) || is_spread_vector(args.c)) {
    Matmul packed = args;
    packed.a = dense(ctx, args.a);
    packed.b = dense(ctx, args.b);
    packed.c = dense(ctx, args.c);
    cpu::matmul(ctx, packed);
    if (is_spread_vector(args.c)) copy_vector(packed.c, args.c);
    return;
  }
  const Problem problem = problem_of(args);
  if (problem.in == DType::f32 && (problem.a.transposed || !fits_cache(problem))) return run_sgemm(args, problem);
  if (problem.in == DType::bf16 && !(has_native_bf16_products() && ctx.bf16_products.is_native(class_of(problem))))
    return matmul_widened(ctx, args);
  run_primitive(ctx, args, problem);
}

}  // namespace lamina::ops::cpu
