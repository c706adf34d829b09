#pragma once

#include <cstdint>
#include <string>

#include "cpnsa/error.hpp"

namespace cpnsa::comm {

/// Why a communicator can no longer be used. What one rank found ends every rank's calls, each with the same error.
struct Failure {
  enum class Kind : std::uint8_t { aborted, deadline, mismatch, interrupted };

  Kind kind;
  std::string reason;

  [[noreturn]] void raise() const {
    switch (kind) {
      case Kind::deadline: throw DeadlineError(reason);
      case Kind::mismatch: throw MismatchError(reason);
      case Kind::interrupted: throw InterruptedError(reason);
      case Kind::aborted: break;
    }
    throw CommunicationError(reason);
  }
};

}  // namespace cpnsa::comm
