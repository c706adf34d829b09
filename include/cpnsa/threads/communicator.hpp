#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "cpnsa/communicator.hpp"

namespace cpnsa::threads {

/// The communicators of `ranks` ranks in this process; the index is the rank. Each may be used by one thread at a time.
/// They move memory that all ranks can access: host memory, or that of one GPU.
std::vector<std::unique_ptr<Communicator>> make_communicators(int ranks);

/// Runs `body` on `ranks` threads, one per rank, and joins them. If a rank throws, its communicator is aborted, so that
/// the other ranks do not wait for it, and the first exception is rethrown here.
void run_ranks(int ranks, const std::function<void(Communicator&)>& body);

}  // namespace cpnsa::threads
