#include <exception>

#include "cpnsa/error.hpp"
#include "src/bindings.hpp"

namespace cpnsa::python {
namespace {

// The classes of cpnsa.errors, which also derive from the built-in exceptions that Python code expects.
void raise(const char* type, const std::exception& error) {
  const nb::object raised = nb::module_::import_("cpnsa.errors").attr(type);
  PyErr_SetString(raised.ptr(), error.what());
}

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const ConfigError& error) {
    raise("ConfigError", error);
  } catch (const ArgumentError& error) {
    raise("ArgumentError", error);
  } catch (const UnsupportedError& error) {
    raise("UnsupportedError", error);
  } catch (const MismatchError& error) {
    raise("MismatchError", error);
  } catch (const DeadlineError& error) {
    raise("DeadlineError", error);
  } catch (const CommunicationError& error) {
    raise("CommunicationError", error);
  } catch (const DeviceError& error) {
    raise("DeviceError", error);
  } catch (const Error& error) {
    raise("Error", error);
  }
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator(translate);
}

}  // namespace cpnsa::python
