#pragma once

#include <atomic>

#include "cpnsa/interrupt.hpp"
#include "src/bindings.hpp"

namespace cpnsa::python {

// Python's handlers of signals run when the main thread asks for them, which a wait in C++ does here. What a handler
// raises (KeyboardInterrupt, unless the program has another handler) waits in cpnsa.errors while C++ code unwinds: the
// modules _core and _nccl have each a copy of the library, but that Python module in common.

inline std::atomic<bool> signal_raised{false};
inline std::atomic<unsigned long> main_thread{0};

/// Runs the handlers of the signals that have arrived. True if one has raised an exception.
inline bool poll_signals() {
  if (PyThread_get_thread_ident() != main_thread) return false;
  const nb::gil_scoped_acquire held;
  if (PyErr_CheckSignals() == 0) return false;
  const nb::python_error raised;
  nb::module_::import_("cpnsa.errors").attr("_of_signal") = raised.value();
  signal_raised = true;
  return true;
}

/// Raises the exception of a handler, if one waits. Under the interpreter's lock.
inline void raise_of_signal() {
  signal_raised = false;
  const nb::module_ errors = nb::module_::import_("cpnsa.errors");
  const nb::object exception = errors.attr("_of_signal");
  if (exception.is_none()) return;
  errors.attr("_of_signal") = nb::none();
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  nb::raise_python_error();
}

/// Makes this module's copy of the library ask for signals.
inline void handle_signals() {
  main_thread = nb::cast<unsigned long>(nb::module_::import_("threading").attr("main_thread")().attr("ident"));
  set_interrupt_poll(&poll_signals);
}

}  // namespace cpnsa::python
