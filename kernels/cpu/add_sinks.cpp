#include <cmath>

#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/scalar.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const AddSinks& a) {
  using A = Arithmetic<T>;
  const std::int64_t heads = a.config->num_q_heads, d_v = a.config->head_dim_v;
  const auto* sinks = static_cast<const T*>(a.sinks);
  auto* out = static_cast<T*>(a.out);
  auto* log_sum_exp = static_cast<A*>(a.log_sum_exp);
  for (std::int64_t pair = 0; pair < a.rows * heads; ++pair) {  // (row, query head)
    const A sink = widen(sinks[pair % heads]), before = log_sum_exp[pair];
    // log(1 + exp(d)), d = sink - l, without overflow; l = -infinity leaves the sink alone.
    const A difference = sink - before;
    const A after =
        difference > 0 ? sink + std::log1p(std::exp(-difference)) : before + std::log1p(std::exp(difference));
    const A factor = std::exp(before - after);
    for (std::int64_t i = pair * d_v; i < (pair + 1) * d_v; ++i) out[i] = narrow<T>(factor * widen(out[i]));
    log_sum_exp[pair] = after;
  }
}

}  // namespace

template <>
void run_op(const AddSinks& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
