#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cpnsa/dtype.hpp"

namespace cpnsa::cuda {

/// c = a b, or c += a b, for `batch` dense row-major matrices that lie one after another: a [rows, depth],
/// b [depth, columns] of type `dtype`, c [rows, columns] in float32, sums in float32.
struct MatrixProduct {
  enum class Stored { straight, a_transposed, b_transposed };  ///< a as [depth, rows], b as [columns, depth]

  DType dtype;
  std::int64_t batch;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t depth;
  Stored stored = Stored::straight;
  bool add = false;
  std::int64_t alike_rows = 0;  ///< another number of rows, for which the algorithm is the same; 0: none

  bool operator==(const MatrixProduct&) const = default;
};

/// Batched matrix products through cuBLASLt. The algorithm is chosen once a shape, with no workspace and no split of
/// the depth: every element of c is one sum in one fixed order, so that a row's result does not depend on where in `a`
/// the row lies, nor on which of `rows` and `alike_rows` there are. Operands are aligned to 16 bytes. May be shared by
/// threads.
class MatrixProducts {
 public:
  MatrixProducts();
  ~MatrixProducts();
  MatrixProducts(const MatrixProducts&) = delete;
  MatrixProducts& operator=(const MatrixProducts&) = delete;

  /// Returns whether cuBLASLt has an algorithm for the shape; of two numbers of rows that are to have the same one, the
  /// larger is not offered where no algorithm serves both. It is chosen now, if it was not before.
  bool offers(const MatrixProduct& product);

  /// Chooses the algorithm ahead of the first use; UnsupportedError when cuBLASLt has none for the shape.
  void prepare(const MatrixProduct& product);

  void run(const MatrixProduct& product, const void* a, const void* b, void* c, cudaStream_t stream);

 private:
  struct Prepared;

  const Prepared& prepared(const MatrixProduct& product);

  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::vector<std::unique_ptr<const Prepared>> prepared_;  // guarded by mutex_; few, and never removed
};

}  // namespace cpnsa::cuda
