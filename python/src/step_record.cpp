#include "cpnsa/step_record.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string_view>
#include <vector>

#include "src/bindings.hpp"

namespace cpnsa::python {

void bind_step_record(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<StepRecord>(module, "StepRecord",
                         "One rank's part of a step: its stages with their times, waits and bytes. Can be pickled, so "
                         "that torch.distributed.gather_object() collects those of all ranks.")
      .def_ro("rank", &StepRecord::rank)
      .def_ro("ranks", &StepRecord::ranks)
      .def_prop_ro("seconds", &StepRecord::seconds)
      .def(
          "to_dict",
          [](const StepRecord& record) -> nb::object {
            return nb::module_::import_("json").attr("loads")(json_of({&record, 1}))[0];
          },
          "The record's numbers, in seconds and bytes.")
      .def("__getstate__",
           [](const StepRecord& record) {
             const std::string bytes = pack_record(record);
             return nb::bytes(bytes.data(), bytes.size());
           })
      .def("__setstate__", [](StepRecord& record, const nb::bytes& state) {
        new (&record) StepRecord(unpack_record(std::string_view(state.c_str(), state.size())));
      });
  module.def(
      "chrome_trace", [](const std::vector<StepRecord>& records) { return chrome_trace_of(records); }, "records"_a,
      "The records of a step, one per rank, as the text of a file for chrome://tracing or Perfetto.");
}

}  // namespace cpnsa::python
