#include <cstring>

#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/scalar.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void add(const AddRows& a) {
  for (std::int64_t r = 0; r < a.ranges.count; ++r) {
    const RowRange& range = a.ranges.host[r];
    for (std::int64_t i = 0; i < range.count; ++i) {
      const T* source = static_cast<const T*>(a.source) + (range.source + i) * a.source_stride;
      T* destination = static_cast<T*>(a.destination) + (range.destination + i) * a.destination_stride;
      for (std::int64_t c = 0; c < a.width; ++c) destination[c] += source[c];
    }
  }
}

}  // namespace

template <>
void run_op(const CopyRows& a) {
  const bool dense = a.source_stride == a.width && a.destination_stride == a.width;
  for (std::int64_t r = 0; r < a.ranges.count; ++r) {
    const RowRange& range = a.ranges.host[r];
    const auto* source = static_cast<const std::byte*>(a.source) + range.source * a.source_stride;
    auto* destination = static_cast<std::byte*>(a.destination) + range.destination * a.destination_stride;
    const std::int64_t copies = dense ? std::min<std::int64_t>(range.count, 1) : range.count;
    const std::int64_t bytes = dense ? range.count * a.width : a.width;
    for (std::int64_t i = 0; i < copies && bytes > 0; ++i)
      std::memcpy(destination + i * a.destination_stride, source + i * a.source_stride,
                  static_cast<std::size_t>(bytes));
  }
}

template <>
void run_op(const AddRows& a) {
  switch (a.dtype) {
    case DType::f32: return add<float>(a);
    case DType::f64: return add<double>(a);
    default: throw ArgumentError("add_rows: found dtype " + std::string(name_of(a.dtype)) + ", expected f32 or f64");
  }
}

template <>
void run_op(const Convert& a) {
  if (a.from != DType::f32 && a.from != DType::f64)
    throw ArgumentError("convert: found source dtype " + std::string(name_of(a.from)) + ", expected f32 or f64");
  visit(a.to, [&]<class T>(std::type_identity<T>) {
    for (const Conversion& array : a.arrays) {
      const auto from_type = [&](const auto* values) {
        for (std::int64_t i = 0; i < array.count; ++i) static_cast<T*>(array.destination)[i] = narrow<T>(values[i]);
      };
      if (a.from == DType::f32) {
        from_type(static_cast<const float*>(array.source));
      } else {
        from_type(static_cast<const double*>(array.source));
      }
    }
  });
}

}  // namespace cpnsa::cpu
