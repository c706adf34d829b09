#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/scalar.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const RotateRows& a) {
  using A = Arithmetic<T>;
  auto* data = static_cast<T*>(a.data);
  const auto* cos = static_cast<const A*>(a.cos);
  const auto* sin = static_cast<const A*>(a.sin);
  const std::int64_t first_step = a.interleaved ? 2 : 1, second = a.interleaved ? 1 : a.pairs;
  for (std::int64_t r = 0; r < a.ranges.count; ++r) {
    const RowRange& range = a.ranges.host[r];
    for (std::int64_t i = 0; i < range.count; ++i)
      for (std::int64_t head = 0; head < a.heads; ++head) {
        T* const row = data + ((range.destination + i) * a.heads + head) * a.dim;
        for (std::int64_t pair = 0; pair < a.pairs; ++pair) {
          const A c = cos[(range.source + i) * a.pairs + pair];
          const A s = (a.inverse ? -1 : 1) * sin[(range.source + i) * a.pairs + pair];
          T& x = row[pair * first_step];
          T& y = row[pair * first_step + second];
          const A wide_x = widen(x), wide_y = widen(y);
          x = narrow<T>(wide_x * c - wide_y * s);
          y = narrow<T>(wide_x * s + wide_y * c);
        }
      }
  }
}

}  // namespace

template <>
void run_op(const RotateRows& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
