#include "kernels/cuda/common/matrix_product.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <utility>

#include "cpnsa/error.hpp"
#include "kernels/cuda/common/check.hpp"

namespace cpnsa::cuda {
namespace {

constexpr std::uint32_t operand_alignment = 16;

struct DestroyDescriptor {
  void operator()(cublasLtMatmulDesc_t descriptor) const { static_cast<void>(cublasLtMatmulDescDestroy(descriptor)); }
  void operator()(cublasLtMatrixLayout_t layout) const { static_cast<void>(cublasLtMatrixLayoutDestroy(layout)); }
  void operator()(cublasLtMatmulPreference_t preference) const {
    static_cast<void>(cublasLtMatmulPreferenceDestroy(preference));
  }
};
using Descriptor = std::unique_ptr<cublasLtMatmulDescOpaque_t, DestroyDescriptor>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyDescriptor>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, DestroyDescriptor>;

// Dense column-major matrices, `batch` of them one after another.
Layout layout_of(cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t batch) {
  cublasLtMatrixLayout_t raw = nullptr;
  check(cublasLtMatrixLayoutCreate(&raw, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns),
                                   rows),
        "cublasLtMatrixLayoutCreate");
  Layout layout(raw);
  const auto count = static_cast<std::int32_t>(batch);
  const std::int64_t stride = rows * columns;
  check(cublasLtMatrixLayoutSetAttribute(raw, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
        "cublasLtMatrixLayoutSetAttribute");
  check(cublasLtMatrixLayoutSetAttribute(raw, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride),
        "cublasLtMatrixLayoutSetAttribute");
  return layout;
}

template <class Value>
void set(const Descriptor& descriptor, cublasLtMatmulDescAttributes_t attribute, Value value) {
  check(cublasLtMatmulDescSetAttribute(descriptor.get(), attribute, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute");
}

template <class Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, Value value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
        "cublasLtMatmulPreferenceSetAttribute");
}

bool splits_depth(const cublasLtMatmulAlgo_t& algorithm) {
  std::int32_t parts = 1;
  std::size_t written = 0;
  check(
      cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts, &written),
      "cublasLtMatmulAlgoConfigGetAttribute");
  return parts > 1;
}

Preference whole_sums() {
  cublasLtMatmulPreference_t raw = nullptr;
  check(cublasLtMatmulPreferenceCreate(&raw), "cublasLtMatmulPreferenceCreate");
  Preference preference(raw);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{0});
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  for (const auto operand : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                             CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    set(preference, operand, operand_alignment);
  return preference;
}

}  // namespace

// cuBLAS is column-major, where a row-major matrix is its transpose: it is given cᵀ = bᵀ aᵀ.
struct MatrixProducts::Prepared {
  explicit Prepared(const MatrixProduct& p) : product(p) {
    const cudaDataType_t type = p.dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
    const bool a_transposed = p.stored == MatrixProduct::Stored::a_transposed;
    const bool b_transposed = p.stored == MatrixProduct::Stored::b_transposed;
    cublasLtMatmulDesc_t raw = nullptr;
    check(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    operation.reset(raw);
    set(operation, CUBLASLT_MATMUL_DESC_TRANSA, b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(operation, CUBLASLT_MATMUL_DESC_TRANSB, a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    b = b_transposed ? layout_of(type, p.depth, p.columns, p.batch) : layout_of(type, p.columns, p.depth, p.batch);
    a = a_transposed ? layout_of(type, p.rows, p.depth, p.batch) : layout_of(type, p.depth, p.rows, p.batch);
    c = layout_of(CUDA_R_32F, p.columns, p.rows, p.batch);
  }

  std::optional<cublasLtMatmulAlgo_t> choose(cublasLtHandle_t handle, const Prepared* alike) const {
    const Preference preference = whole_sums();
    std::array<cublasLtMatmulHeuristicResult_t, 16> results{};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle, operation.get(), b.get(), a.get(), c.get(), c.get(), preference.get(),
                                       static_cast<int>(results.size()), results.data(), &found);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, "cublasLtMatmulAlgoGetHeuristic");
    for (const auto& result : std::span(results).first(static_cast<std::size_t>(found)))
      if (result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize == 0 && !splits_depth(result.algo) &&
          (!alike || alike->accepts(handle, result.algo)))
        return result.algo;
    return {};
  }

  bool accepts(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& candidate) const {
    cublasLtMatmulHeuristicResult_t result{};
    const cublasStatus_t status =
        cublasLtMatmulAlgoCheck(handle, operation.get(), b.get(), a.get(), c.get(), c.get(), &candidate, &result);
    return status == CUBLAS_STATUS_SUCCESS && result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize == 0;
  }

  MatrixProduct product;
  Descriptor operation;
  Layout a, b, c;
  std::optional<cublasLtMatmulAlgo_t> algorithm;
};

MatrixProducts::MatrixProducts() {
  check(cublasLtCreate(&handle_), "cublasLtCreate");
}

MatrixProducts::~MatrixProducts() {
  static_cast<void>(cublasLtDestroy(handle_));  // nothing to be done about a device that fails here
}

const MatrixProducts::Prepared& MatrixProducts::prepared(const MatrixProduct& product) {
  const std::lock_guard lock(mutex_);
  const auto known = [&] { return std::ranges::find(prepared_, product, [](const auto& p) { return p->product; }); };
  if (const auto found = known(); found != prepared_.end()) return **found;
  auto chosen = std::make_unique<Prepared>(product);
  if (product.alike_rows == 0) {
    chosen->algorithm = chosen->choose(handle_, nullptr);
  } else {
    MatrixProduct other = product;
    std::swap(other.rows, other.alike_rows);
    auto alike = std::make_unique<Prepared>(other);
    if (product.rows > other.rows) std::swap(chosen, alike);
    chosen->algorithm = alike->algorithm = chosen->choose(handle_, alike.get());
    if (!chosen->algorithm) chosen->algorithm = chosen->choose(handle_, nullptr);
    prepared_.push_back(std::move(alike));
  }
  prepared_.push_back(std::move(chosen));
  return **known();
}

bool MatrixProducts::offers(const MatrixProduct& product) {
  return prepared(product).algorithm.has_value();
}

void MatrixProducts::prepare(const MatrixProduct& product) {
  if (!offers(product))
    throw UnsupportedError(fmt::format(
        "cuda device: cuBLASLt has no algorithm without a workspace for {} products of {} [{}, {}] and [{}, {}]",
        product.batch, name_of(product.dtype), product.rows, product.depth, product.depth, product.columns));
}

void MatrixProducts::run(const MatrixProduct& product, const void* a, const void* b, void* c, cudaStream_t stream) {
  prepare(product);
  const Prepared& p = prepared(product);
  const float one = 1, previous = product.add ? 1 : 0;
  check(cublasLtMatmul(handle_, p.operation.get(), &one, b, p.b.get(), a, p.a.get(), &previous, c, p.c.get(), c,
                       p.c.get(), &*p.algorithm, nullptr, 0, stream),
        "cublasLtMatmul");
}

}  // namespace cpnsa::cuda
