#include <array>

#include "kernels/cpu/gate.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/scalar.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const CombineBranchesBackward& a) {
  using A = Arithmetic<T>;
  const std::int64_t d_v = a.config->head_dim_v;
  const std::int64_t pairs = a.rows * a.config->num_q_heads;  // (row, query head)
  const auto* gate = static_cast<const T*>(a.gate);
  const auto* dout = static_cast<const T*>(a.dout);
  const std::array<const T*, 3> outputs{static_cast<const T*>(a.o_cmp), static_cast<const T*>(a.o_slc),
                                        static_cast<const T*>(a.o_win)};
  auto* dgate = static_cast<A*>(a.dgate);
  auto* weights = static_cast<A*>(a.weights);
  auto* deltas = static_cast<A*>(a.deltas);

  for (std::int64_t pair = 0; pair < pairs; ++pair)
    for (std::int64_t branch = 0; branch < 3; ++branch) {
      const T* const out = outputs[static_cast<std::size_t>(branch)] + pair * d_v;
      A product = 0;
#pragma omp simd reduction(+ : product)
      for (std::int64_t c = 0; c < d_v; ++c) product += widen(dout[pair * d_v + c]) * widen(out[c]);
      const A value = gate_value(a.config->gate, widen(gate[3 * pair + branch]));
      dgate[3 * pair + branch] = product * gate_slope(a.config->gate, value);
      weights[branch * pairs + pair] = value;
      deltas[branch * pairs + pair] = value * product;
    }
}

}  // namespace

template <>
void run_op(const CombineBranchesBackward& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
