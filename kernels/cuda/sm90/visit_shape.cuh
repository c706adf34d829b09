#pragma once

#include <type_traits>
#include <utility>

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/sm90/shapes.hpp"

namespace cpnsa::cuda::sm90 {

/// Calls function(std::type_identity<KernelShape<T, d_qk, d_v, heads per group>>{}) for the row of the table that is
/// the layer's shape; UnsupportedError when there is none.
template <template <class, int, int, int> class KernelShape, class Function>
void visit_shape(const OpContext& a, Function&& function) {
  const int layer = index_of(*a.config);
  if (layer < 0) refuse_shape(*a.config);
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    [&]<int... Row>(std::integer_sequence<int, Row...>) {
      const auto visit = [&]<int R>(std::integral_constant<int, R>) {
        function(std::type_identity<KernelShape<T, shapes[R].d_qk, shapes[R].d_v, shapes[R].heads_per_group>>{});
        return true;
      };
      static_cast<void>(((Row == layer && visit(std::integral_constant<int, Row>{})) || ...));
    }
    (std::make_integer_sequence<int, static_cast<int>(std::size(shapes))>{});
  });
}

}  // namespace cpnsa::cuda::sm90
