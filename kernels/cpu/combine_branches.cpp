#include "kernels/cpu/gate.hpp"
#include "kernels/cpu/scalar.hpp"
#include "kernels/cpu/stage_functions.hpp"

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

  for (std::int64_t head = 0; head < a.rows * a.config->num_q_heads; ++head) {
    const A g0 = gate_value(a.config->gate, widen(gate[3 * head]));
    const A g1 = gate_value(a.config->gate, widen(gate[3 * head + 1]));
    const A g2 = gate_value(a.config->gate, widen(gate[3 * head + 2]));
    for (std::int64_t i = head * d_v; i < (head + 1) * d_v; ++i)
      out[i] = narrow<T>(g0 * widen(o_cmp[i]) + g1 * widen(o_slc[i]) + g2 * widen(o_win[i]));
  }
}

}  // namespace

void combine_branches(const CombineBranches& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
