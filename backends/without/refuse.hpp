#pragma once

#include <string>

#include "cpnsa/error.hpp"

namespace cpnsa::backends {

/// Reports a backend that this build does not have: refuse("CUDA", "CPNSA_CUDA").
[[noreturn]] inline void refuse(const std::string& name, const std::string& option) {
  throw UnsupportedError("found a cpnsa built without " + name + ", expected one built with " + option + "=ON");
}

}  // namespace cpnsa::backends
