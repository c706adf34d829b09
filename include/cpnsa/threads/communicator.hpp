#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "cpnsa/communicator.hpp"

namespace cpnsa::threads {

/// Communicators of `ranks` ranks of this process, index = rank; each is used by one thread at a time. They move
/// memory that all ranks can reach: the host's, or one GPU's.
std::vector<std::unique_ptr<Communicator>> make_communicators(int ranks);

/// Runs `body` on `ranks` threads, one a rank, and joins them. When a rank throws, its communicator is aborted so that
/// the others are released, and the first exception thrown is rethrown here.
void run_ranks(int ranks, const std::function<void(Communicator&)>& body);

}  // namespace cpnsa::threads
