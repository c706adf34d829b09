#pragma once

#include <span>
#include <string>

#include "comm/threads/group.hpp"

namespace cpnsa::threads {

/// How the ranks' calls differ where they should fit together; empty if they do fit.
std::string find_mismatch(std::span<const Call> calls);

}  // namespace cpnsa::threads
