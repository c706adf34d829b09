#pragma once

#include <nccl.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "cpnsa/communicator.hpp"

namespace cpnsa::nccl {

/// Options of a communicator that the library makes.
struct Options {
  std::string name = "cpnsa";                           ///< NCCL's commName, for its logs and profilers
  std::optional<std::chrono::milliseconds> deadline{};  ///< of making it and of its waits; initial_deadline() if empty
};

// Each rank has a GPU; exchange and all_gather enqueue on the given stream and return. NCCL does not compare the sizes
// that ranks send and expect: mismatched calls end at the deadline. It does not send the reason of an abort() to other
// ranks either; a communicator with a control communicator does.

/// A communicator over the caller's, which must outlive it. It neither destroys nor aborts that one: after a failure,
/// the owner must abort it to end the work that is still enqueued. All made over one handle number their layers
/// together. Throws CommunicationError if NCCL refuses the handle.
std::unique_ptr<Communicator> make_communicator(ncclComm_t borrowed);

/// A communicator over a new NCCL communicator for the current device; collective. `id` comes from one ncclGetUniqueId
/// and is the same on every rank. Throws CommunicationError when NCCL reports an error, DeadlineError when ranks do not
/// come.
std::unique_ptr<Communicator> make_communicator(const ncclUniqueId& id, int size, int rank,
                                                const Options& options = {});

/// The same for the ranks of `control`, e.g. a communicator over MPI, and for `device`. `control` distributes the id,
/// and then moves data in host memory and the reasons of failures; it must outlive the communicator, which takes its
/// deadline.
std::unique_ptr<Communicator> make_communicator(Communicator& control, Device& device, const Options& options = {});

}  // namespace cpnsa::nccl
