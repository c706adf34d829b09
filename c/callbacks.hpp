#pragma once

#include <memory>

#include "cpnsa/communicator.hpp"
#include "cpnsa/cpnsa.h"

namespace cpnsa::c {

/// A communicator over the caller's functions; a number that one returns becomes the exception it stands for.
std::unique_ptr<Communicator> make_callback_communicator(int rank, int ranks, const cpnsa_callbacks* callbacks);

}  // namespace cpnsa::c
