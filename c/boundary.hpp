#pragma once

#include <string>

#include "cpnsa/cpnsa.h"
#include "cpnsa/error.hpp"

namespace cpnsa::c {

/// No handle of a living object of that kind.
class HandleError : public Error {
 public:
  using Error::Error;
};

/// The status of the exception that is being handled, whose text becomes the thread's last error: "<function>: <text>".
cpnsa_status report(const char* function) noexcept;

/// Runs what a function of the interface does; no exception leaves it.
template <class Body>
cpnsa_status guarded(const char* function, Body body) noexcept {
  try {
    body();
    return CPNSA_SUCCESS;
  } catch (...) {
    return report(function);
  }
}

/// Throws ArgumentError "<name>: found NULL, expected ..." for a null pointer.
template <class Item>
Item& not_null(Item* pointer, const char* name) {
  if (!pointer) throw ArgumentError(std::string(name) + ": found NULL, expected a pointer");
  return *pointer;
}

}  // namespace cpnsa::c
