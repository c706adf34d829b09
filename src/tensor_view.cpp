#include "cpnsa/tensor_view.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>

#include "cpnsa/error.hpp"
#include "src/planning/at.hpp"
#include "src/planning/checked.hpp"

namespace cpnsa {

TensorView::TensorView(void* data, DType dtype, std::initializer_list<std::int64_t> dims)
    : data(data), dtype(dtype), rank(static_cast<int>(dims.size())), given(true) {
  if (dims.size() > max_rank)
    throw ArgumentError(fmt::format("tensor: found {} dimensions, expected at most {}", dims.size(), max_rank));
  std::copy(dims.begin(), dims.end(), shape.begin());
}

std::int64_t TensorView::elements() const {
  if (!given) return 0;
  std::int64_t count = 1;
  for (int i = 0; i < rank; ++i) count = checked_product({count, at(shape, i)}, "tensor");
  return count;
}

std::string describe(const TensorView& view) {
  if (!view) return "no tensor";
  return fmt::format("{} [{}]", name_of(view.dtype), fmt::join(std::span(view.shape).first(to_size(view.rank)), ", "));
}

void expect(const TensorView& view, const std::string& name, DType dtype, std::span<const std::int64_t> shape) {
  const bool same = view && view.dtype == dtype && view.rank == static_cast<int>(shape.size()) &&
                    std::equal(shape.begin(), shape.end(), view.shape.begin());
  if (!same)
    throw ArgumentError(
        fmt::format("{}: found {}, expected {} [{}]", name, describe(view), name_of(dtype), fmt::join(shape, ", ")));
}

}  // namespace cpnsa
