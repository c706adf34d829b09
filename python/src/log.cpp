#include "cpnsa/log.hpp"

#include <nanobind/stl/string_view.h>

#include <string>

#include "src/bindings.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

bool interpreter_is_alive() {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsInitialized() && !Py_IsFinalizing();
#else
  return Py_IsInitialized() && !_Py_IsFinalizing();
#endif
}

/// Python's logger "cpnsa", whose levels are those of the module logging.
void log_to_python(LogLevel level, std::string_view message) {
  if (!interpreter_is_alive()) return;
  const nb::gil_scoped_acquire gil;
  // A message may come while an exception is on its way to the caller, which Python code must not see or replace.
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  try {
    const nb::module_ logging = nb::module_::import_("logging");
    std::string name(name_of(level));
    logging.attr("getLogger")("cpnsa").attr(name.c_str())("%s", nb::str(message.data(), message.size()));
  } catch (const nb::python_error&) {  // of a handler of the user's
    PyErr_Clear();
  }
  PyErr_Restore(type, value, trace);
}

}  // namespace

void bind_log(nb::module_& module) {
  using namespace nb::literals;
  set_log_hook(log_to_python);
  module.def(
      "set_log_level", [](std::string_view level) { set_log_level(named<LogLevel>("level", level)); }, "level"_a,
      "Messages below this level, one of debug, info, warning, error and off, do not reach Python's logger \"cpnsa\". "
      "Unless set: the variable CPNSA_LOG, or warning.");
}

}  // namespace cpnsa::python
