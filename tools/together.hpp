#pragma once

#include <functional>
#include <string>

#include "cpnsa/communicator.hpp"

namespace cpnsa::tool {

/// Runs `local`, which must not communicate, on every rank and goes on only where it succeeded on all of them and
/// returned the same text everywhere (see agree()). So a mistake that one rank finds, a file that it cannot read or
/// memory that it does not get, ends every rank with the same error.
void together(Communicator& communicator, const std::function<std::string()>& local);

}  // namespace cpnsa::tool
