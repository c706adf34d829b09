#include "kernels/cpu/gate.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/scalar.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const CombineBranches& a) {
  using A = Arithmetic<T>;
  const std::int64_t d_v = a.config->head_dim_v;
  const auto* gate = static_cast<const T*>(a.gate);
  const auto* o_cmp = static_cast<const T*>(a.o_cmp);
  const auto* o_slc = static_cast<const T*>(a.o_slc);
  const auto* o_win = static_cast<const T*>(a.o_win);
  auto* out = static_cast<T*>(a.out);

  for (std::int64_t pair = 0; pair < a.rows * a.config->num_q_heads; ++pair) {  // (row, query head)
    const A g0 = gate_value(a.config->gate, widen(gate[3 * pair]));
    const A g1 = gate_value(a.config->gate, widen(gate[3 * pair + 1]));
    const A g2 = gate_value(a.config->gate, widen(gate[3 * pair + 2]));
    for (std::int64_t i = pair * d_v; i < (pair + 1) * d_v; ++i)
      out[i] = narrow<T>(g0 * widen(o_cmp[i]) + g1 * widen(o_slc[i]) + g2 * widen(o_win[i]));
  }
}

}  // namespace

template <>
void run_op(const CombineBranches& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
