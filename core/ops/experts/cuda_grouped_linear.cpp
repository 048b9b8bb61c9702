#include <algorithm>
#include <limits>
#include <vector>

#include "core/ops/experts/grouped_linear_kernels.h"
#include "core/ops/experts/implementations.h"
#include "core/ops/gpu/operands.h"
#include "core/ops/matmul/blas.h"
#include "core/ops/matmul/implementations.h"

namespace lamina::ops::cuda {
namespace {

using Kind = GroupedProductParams::Kind;
constexpr int64_t largest_int = std::numeric_limits<int>::max();
constexpr const char* no_host_offsets = "the host does not know how many rows each expert has";

const char* product_refuses(const TensorView& rows, const TensorView& columns, const ExpertRows& experts) {
  if (rows.dtype == DType::f64) return "fp64 runs on the CPU";
  if (rows.dtype == DType::f32 && experts.host.empty()) return no_host_offsets;
  for (const int64_t extent : {rows.size(0), rows.size(1), columns.size(1)})
    if (extent > largest_int) return "an extent is above 2^31";
  return nullptr;
}

bool is_aligned(const TensorView& v, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(v.data) % bytes == 0;
}

// Every row of it starts at a multiple of 16 bytes.
bool has_aligned_rows(const TensorView& v) {
  return is_aligned(v, 16) && v.stride(0) * size_of(v.dtype) % 16 == 0;
}
bool have_aligned_rows(std::span<const TensorView> matrices) {
  return std::all_of(matrices.begin(), matrices.end(), has_aligned_rows);
}

// In launches of as many experts as fit into one's parameters; `p` says what all share.
void launch_products(OpContext& ctx, GroupedProductParams p, std::span<const TensorView> matrices,
                     const ExpertRows& experts) {
  for (size_t first = 0; first < matrices.size(); first += grouped_experts) {
    p.num_experts = static_cast<int>(std::min<size_t>(grouped_experts, matrices.size() - first));
    p.begin = experts.offsets.as<int32_t>() + first;
    for (size_t e = 0; e < static_cast<size_t>(p.num_experts); ++e) p.matrices[e] = matrices[first + e].data;
    launch_grouped_product(p, stream_of(ctx));
  }
}

// A product by w: of x into y, or of dy into dx.
void multiply_rows(OpContext& ctx, Kind kind, const TensorView& rows, const TensorView& result,
                   std::span<const TensorView> weights, const ExpertRows& experts) {
  GroupedProductParams p{};
  const bool forward = kind == Kind::forward;
  p.kind = kind;
  p.in = forward ? rows.size(1) : result.size(1);
  p.out = forward ? result.size(1) : rows.size(1);
  p.packed = has_aligned_rows(rows) && have_aligned_rows(weights);
  p.out_packed = has_aligned_rows(result);
  p.out_low = result.dtype == DType::bf16;
  p.num_rows = rows.size(0);
  p.rows = rows.data;
  p.result = result.data;
  p.rows_stride = rows.stride(0);
  p.result_stride = result.stride(0);
  launch_products(ctx, p, weights, experts);
}

// Calls body(expert, begin, end) for every expert with rows.
template <class Body>
void for_experts(const ExpertRows& experts, Body&& body) {
  const std::span offsets = experts.host;
  for (size_t e = 0; e + 1 < offsets.size(); ++e)
    if (offsets[e] < offsets[e + 1]) body(e, offsets[e], offsets[e + 1]);
}

const char* cublas_refuses(const TensorView& rows, const TensorView& result, std::span<const TensorView> weights,
                           const ExpertRows& experts) {
  if (rows.dtype != DType::bf16 || result.dtype != DType::bf16) return "only bf16 to bf16";
  if (experts.host.empty()) return no_host_offsets;
  if (const char* reason = product_refuses(rows, result, experts)) return reason;
  if (rows.num_elements() == 0 || result.num_elements() == 0) return "a product is empty";
  if (!has_aligned_rows(rows) || !has_aligned_rows(result) || !have_aligned_rows(weights))
    return "rows are not aligned to 16 bytes";
  for (const TensorView* v : {&rows, &result})
    if (v->stride(0) < v->size(1) || v->stride(0) > largest_int) return "rows overlap or are too far apart";
  return nullptr;
}

// What cuBLAS takes for a group of one product each: sizes from the host, addresses from the device.
struct Groups {
  std::vector<int> rows, first_row;
  std::vector<const void*> weights;
  int count() const { return static_cast<int>(rows.size()); }
};

Groups groups_of(std::span<const TensorView> weights, const ExpertRows& experts) {
  Groups groups;
  for_experts(experts, [&](size_t e, int64_t begin, int64_t end) {
    groups.rows.push_back(static_cast<int>(end - begin));
    groups.first_row.push_back(static_cast<int>(begin));
    groups.weights.push_back(weights[e].data);
  });
  return groups;
}

// Tables of addresses, written by a kernel from its parameters: a copy of them from the host would wait for the device.
struct AddressTables {
  void **weights, **rows, **results;
};
AddressTables write_addresses(OpContext& ctx, const Groups& groups, const TensorView& rows, const TensorView& result) {
  const auto table = [&] {
    static_assert(sizeof(void*) == sizeof(double));
    return static_cast<void**>(ctx.scratch.take(DType::f64, {groups.count()}).data);
  };
  const AddressTables tables{table(), table(), table()};
  AddressTableParams p{};
  p.first_row = static_cast<char*>(rows.data);
  p.first_result = static_cast<char*>(result.data);
  p.row_bytes = rows.stride(0) * size_of(rows.dtype);
  p.result_bytes = result.stride(0) * size_of(result.dtype);
  for (int first = 0; first < groups.count(); first += grouped_experts) {
    p.count = std::min(grouped_experts, groups.count() - first);
    p.matrices = tables.weights + first;
    p.rows = tables.rows + first;
    p.results = tables.results + first;
    std::copy_n(groups.weights.begin() + first, p.count, p.matrix);
    std::copy_n(groups.first_row.begin() + first, p.count, p.row);
    launch_write_addresses(p, stream_of(ctx));
  }
  return tables;
}

// Column by column, as cuBLAS sees matrices: y^T = w x^T or dx^T = w^T dy^T, where w [out, in] reads as [in, out].
void multiply_with_cublas(OpContext& ctx, cublasOperation_t w_operation, const TensorView& rows,
                          const TensorView& result, std::span<const TensorView> weights, const ExpertRows& experts) {
  const Groups groups = groups_of(weights, experts);
  const AddressTables tables = write_addresses(ctx, groups, rows, result);
  const auto for_all = [&](auto value) { return std::vector<decltype(value)>(groups.rows.size(), value); };
  const auto w_stride = static_cast<int>(weights.front().size(1));
  check(cublasGemmGroupedBatchedEx(blas(ctx.stream), for_all(w_operation).data(), for_all(CUBLAS_OP_N).data(),
                                   for_all(static_cast<int>(result.size(1))).data(), groups.rows.data(),
                                   for_all(static_cast<int>(rows.size(1))).data(), for_all(1.0f).data(), tables.weights,
                                   CUDA_R_16BF, for_all(w_stride).data(), tables.rows, CUDA_R_16BF,
                                   for_all(static_cast<int>(rows.stride(0))).data(), for_all(0.0f).data(),
                                   tables.results, CUDA_R_16BF, for_all(static_cast<int>(result.stride(0))).data(),
                                   groups.count(), for_all(1).data(), CUBLAS_COMPUTE_32F),
        "the experts' products");
}

}  // namespace

const char* grouped_linear_refuses(const GroupedLinear& args) {
  return product_refuses(args.x, args.y, args.rows);
}

void grouped_linear(OpContext& ctx, const GroupedLinear& args) {
  if (args.x.dtype == DType::bf16) {
    multiply_rows(ctx, Kind::forward, args.x, args.y, args.weights, args.rows);
    return;
  }
  for_experts(args.rows, [&](size_t e, int64_t begin, int64_t end) {
    cuda::matmul(ctx, Matmul{args.x.slice(0, begin, end), args.weights[e].transposed(), args.y.slice(0, begin, end)});
  });
}

const char* grouped_linear_input_gradient_refuses(const GroupedLinearInputGradient& args) {
  return product_refuses(args.dy, args.dx, args.rows);
}

void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args) {
  if (args.dy.dtype == DType::bf16) {
    multiply_rows(ctx, Kind::input_gradient, args.dy, args.dx, args.weights, args.rows);
    return;
  }
  for_experts(args.rows, [&](size_t e, int64_t begin, int64_t end) {
    cuda::matmul(ctx, Matmul{args.dy.slice(0, begin, end), args.weights[e], args.dx.slice(0, begin, end)});
  });
}

const char* grouped_linear_weight_gradient_refuses(const GroupedLinearWeightGradient& args) {
  return product_refuses(args.dy, args.x, args.rows);
}

void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args) {
  if (args.x.dtype != DType::bf16) {
    for_experts(args.rows, [&](size_t e, int64_t begin, int64_t end) {
      cuda::matmul(ctx, Matmul{args.dy.slice(0, begin, end).transposed(), args.x.slice(0, begin, end), args.dweights[e],
                               GradMode::accumulate});
    });
    return;
  }
  GroupedProductParams p{};
  p.kind = Kind::weight_gradient;
  p.in = args.x.size(1);
  p.out = args.dy.size(1);
  p.packed = has_aligned_rows(args.dy) && has_aligned_rows(args.x);
  p.out_packed = have_aligned_rows(args.dweights);
  p.rows = args.dy.data;
  p.inputs = args.x.data;
  p.rows_stride = args.dy.stride(0);
  p.inputs_stride = args.x.stride(0);
  launch_products(ctx, p, args.dweights, args.rows);
}

const char* grouped_linear_cublas_refuses(const GroupedLinear& args) {
  return cublas_refuses(args.x, args.y, args.weights, args.rows);
}

void grouped_linear_cublas(OpContext& ctx, const GroupedLinear& args) {
  multiply_with_cublas(ctx, CUBLAS_OP_T, args.x, args.y, args.weights, args.rows);
}

const char* grouped_linear_input_gradient_cublas_refuses(const GroupedLinearInputGradient& args) {
  return cublas_refuses(args.dy, args.dx, args.weights, args.rows);
}

void grouped_linear_input_gradient_cublas(OpContext& ctx, const GroupedLinearInputGradient& args) {
  multiply_with_cublas(ctx, CUBLAS_OP_N, args.dy, args.dx, args.weights, args.rows);
}

}  // namespace lamina::ops::cuda
