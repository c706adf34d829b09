#pragma once

#include <nanobind/nanobind.h>

namespace cpnsa::python {

namespace nb = nanobind;

// One a file, each adds its types to the module.
void bind_errors(nb::module_& module);
void bind_forecast(nb::module_& module);
void bind_info(nb::module_& module);
void bind_log(nb::module_& module);
void bind_config(nb::module_& module);
void bind_partition(nb::module_& module);
void bind_device(nb::module_& module);
void bind_communicator(nb::module_& module);
void bind_tensor(nb::module_& module);
void bind_saved(nb::module_& module);
void bind_step_record(nb::module_& module);
void bind_token(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_decoder(nb::module_& module);
void bind_page_allocator(nb::module_& module);

}  // namespace cpnsa::python
