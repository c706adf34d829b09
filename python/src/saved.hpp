#pragma once

#include <cstdint>
#include <memory>

#include "cpnsa/attention.hpp"

namespace cpnsa::python {

/// State of a forward for its backward, without its device memory, which is a tensor of the caller's framework.
struct Saved {
  std::shared_ptr<SavedForward> forward = std::make_shared<SavedForward>();
};

}  // namespace cpnsa::python
