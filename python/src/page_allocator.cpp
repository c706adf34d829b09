#include "cpnsa/page_allocator.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <memory>

#include "src/decoder.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

/// [(part, from, to), ...]
nb::list list_of(const std::vector<PageCopy>& copies) {
  nb::list list;
  for (const PageCopy& copy : copies) {
    const std::string_view part = name_of(copy.part);
    list.append(nb::make_tuple(nb::str(part.data(), part.size()), copy.from, copy.to));
  }
  return list;
}

/// int32 [slots, columns] that owns its memory.
nb::ndarray<nb::array_api, std::int32_t, nb::ndim<2>, nb::device::cpu> table_of(const PageAllocator& pages,
                                                                                CachePart part) {
  auto copy = std::make_unique<std::vector<std::int32_t>>(pages.table(part));
  std::int32_t* const data = copy->data();
  const nb::capsule owner(copy.release(), [](void* p) noexcept { delete static_cast<std::vector<std::int32_t>*>(p); });
  return {data, {static_cast<std::size_t>(pages.slots()), static_cast<std::size_t>(pages.columns(part))}, owner};
}

}  // namespace

void bind_page_allocator(nb::module_& module) {
  using namespace nb::literals;
  nb::list parts;
  for (const std::string_view part : enum_names<CachePart>) parts.append(nb::str(part.data(), part.size()));
  module.attr("cache_parts") = nb::tuple(parts);
  nb::class_<PageAllocator>(module, "PageAllocator",
                            "Hands out the pages of a rank's pools to sequences and writes their page tables.")
      .def(
          "__init__",
          [](PageAllocator* self, const SharedDecoder& decoder, std::int64_t cmp, std::int64_t slc, std::int64_t win,
             std::int64_t summaries, std::int64_t slots, std::int64_t max_length, std::optional<std::uint64_t> seed) {
            new (self)
                PageAllocator(decoder.layout(), decoder.rank(), {cmp, slc, win, summaries}, slots, max_length, seed);
          },
          "decoder"_a, "cmp"_a, "slc"_a, "win"_a, "summaries"_a, "slots"_a, "max_length"_a, "seed"_a = nb::none())
      .def("reserve", &PageAllocator::reserve, "slot"_a, "length"_a)
      .def("release", &PageAllocator::release, "slot"_a)
      .def(
          "cut",
          [](PageAllocator& self, std::int64_t slot, std::int64_t length) { return list_of(self.cut(slot, length)); },
          "slot"_a, "length"_a)
      .def("drop_before", &PageAllocator::drop_before, "slot"_a, "length"_a)
      .def(
          "fork",
          [](PageAllocator& self, std::int64_t from, std::int64_t to, std::int64_t tokens) {
            return list_of(self.fork(from, to, tokens));
          },
          "source"_a, "target"_a, "tokens"_a)
      .def(
          "free_pages",
          [](const PageAllocator& self, std::string_view part) {
            return self.free_pages(named<CachePart>("part", part));
          },
          "part"_a)
      .def(
          "table",
          [](const PageAllocator& self, std::string_view part) {
            return table_of(self, named<CachePart>("part", part));
          },
          "part"_a);
}

}  // namespace cpnsa::python
