// kernels/cuda/common/matrix_product.cpp without cuBLASLt: every element one sum in one order.

#include "kernels/cuda/common/matrix_product.hpp"

#include "tests/emulation/products.hpp"

namespace cpnsa::cuda {
namespace {

template <class T>
std::vector<float> widened(const void* matrices, std::int64_t count) {
  const float* const values = emulation::values_of<T>();
  const auto* const bits = static_cast<const std::uint16_t*>(matrices);
  std::vector<float> widened(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < widened.size(); ++i) widened[i] = values[bits[i]];
  return widened;
}

void multiply(const MatrixProduct& p, const float* a, const float* b, float* c) {
  const bool a_transposed = p.stored == MatrixProduct::Stored::a_transposed;
  const bool b_transposed = p.stored == MatrixProduct::Stored::b_transposed;
  std::vector<float> straight;  // b as [depth, columns]
  if (b_transposed) {
    straight.resize(static_cast<std::size_t>(p.depth * p.columns));
    for (std::int64_t column = 0; column < p.columns; ++column)
      for (std::int64_t k = 0; k < p.depth; ++k)
        straight[static_cast<std::size_t>(k * p.columns + column)] = b[column * p.depth + k];
    b = straight.data();
  }
  std::vector<float> sums(static_cast<std::size_t>(p.columns));
  for (std::int64_t row = 0; row < p.rows; ++row) {
    std::fill(sums.begin(), sums.end(), 0.f);
    for (std::int64_t k = 0; k < p.depth; ++k) {
      const float x = a_transposed ? a[k * p.rows + row] : a[row * p.depth + k];
      if (x == 0) continue;  // chunks are filled up with zeros
      for (std::int64_t column = 0; column < p.columns; ++column)
        sums[static_cast<std::size_t>(column)] += x * b[k * p.columns + column];
    }
    for (std::int64_t column = 0; column < p.columns; ++column) {
      float& sum = c[row * p.columns + column];
      sum = (p.add ? sum : 0.f) + sums[static_cast<std::size_t>(column)];
    }
  }
}

}  // namespace

struct MatrixProducts::Prepared {};

MatrixProducts::MatrixProducts() = default;
MatrixProducts::~MatrixProducts() = default;

const MatrixProducts::Prepared& MatrixProducts::prepared(const MatrixProduct&) {
  static const Prepared nothing;
  return nothing;
}

bool MatrixProducts::offers(const MatrixProduct&) {
  return true;
}

void MatrixProducts::prepare(const MatrixProduct&) {}

void MatrixProducts::run(const MatrixProduct& p, const void* a, const void* b, void* c, cudaStream_t) {
  const auto wide = [&](const void* matrices, std::int64_t count) {
    return p.dtype == DType::bf16 ? widened<__nv_bfloat16>(matrices, count) : widened<__half>(matrices, count);
  };
  const std::vector<float> first = wide(a, p.batch * p.rows * p.depth), second = wide(b, p.batch * p.depth * p.columns);
  for (std::int64_t i = 0; i < p.batch; ++i)
    multiply(p, first.data() + i * p.rows * p.depth, second.data() + i * p.depth * p.columns,
             static_cast<float*>(c) + i * p.rows * p.columns);
}

}  // namespace cpnsa::cuda
