#pragma once

#include <type_traits>
#include <utility>

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/sm90/shapes.hpp"

namespace cpnsa::cuda::sm90 {

/// Calls function(std::type_identity<KernelShape<T, d_qk, d_v, heads per group>>{}) for a row of the table, which is of
/// a fixed number of heads unless the kernel takes any, and has kernels of every branch unless it `is_dense`.
template <template <class, int, int, int> class KernelShape, bool takes_any_heads = true, bool is_dense = false,
          class Function>
void visit_row(int row, DType dtype, Function&& function) {
  visit_type(dtype, [&]<class T>(std::type_identity<T>) {
    [&]<int... Row>(std::integer_sequence<int, Row...>) {
      const auto visit = [&]<int R>(std::integral_constant<int, R>) {
        if constexpr ((takes_any_heads || shapes[R].heads_per_group != any_heads) &&
                      (is_dense || has_selection(shapes[R])))
          function(std::type_identity<KernelShape<T, shapes[R].d_qk, shapes[R].d_v, shapes[R].heads_per_group>>{});
        return true;
      };
      static_cast<void>(((Row == row && visit(std::integral_constant<int, Row>{})) || ...));
    }
    (std::make_integer_sequence<int, static_cast<int>(std::size(shapes))>{});
  });
}

/// Calls function() so for the row that serves the layer; UnsupportedError when there is none.
template <template <class, int, int, int> class KernelShape, bool takes_any_heads = false, class Function>
void visit_shape(const OpContext& a, Function&& function) {
  const int row = takes_any_heads ? serving_row(*a.config) : index_of(*a.config);
  if (row < 0) refuse_shape(*a.config);
  visit_row<KernelShape, takes_any_heads>(row, a.dtype, function);
}

/// The same for kernels of the compressed and the window branch.
template <template <class, int, int, int> class KernelShape, class Function>
void visit_dense_shape(const OpContext& a, Function&& function) {
  const int row = dense_row(*a.config);
  if (row < 0) refuse_shape(*a.config);
  visit_row<KernelShape, true, true>(row, a.dtype, function);
}

}  // namespace cpnsa::cuda::sm90
