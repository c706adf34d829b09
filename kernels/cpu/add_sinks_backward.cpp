#include <cmath>

#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/scalar.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const AddSinksBackward& a) {
  using A = Arithmetic<T>;
  const std::int64_t heads = a.config->num_q_heads;
  const auto* sinks = static_cast<const T*>(a.sinks);
  const auto* log_sum_exp = static_cast<const A*>(a.log_sum_exp);
  const auto* deltas = static_cast<const A*>(a.deltas);
  auto* dsinks = static_cast<A*>(a.dsinks);
  for (std::int64_t head = 0; head < heads; ++head) {
    const A sink = widen(sinks[head]);
    double sum = 0;
    for (std::int64_t pair = head; pair < a.rows * heads; pair += heads)
      sum += static_cast<double>(std::exp(sink - log_sum_exp[pair]) * deltas[pair]);
    dsinks[head] -= static_cast<A>(sum);
  }
}

}  // namespace

template <>
void run_op(const AddSinksBackward& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
