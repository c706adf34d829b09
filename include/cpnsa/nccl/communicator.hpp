#pragma once

#include <nccl.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "cpnsa/communicator.hpp"

namespace cpnsa::nccl {

/// How a communicator of the library's own is made.
struct Options {
  std::string name = "cpnsa";                           ///< NCCL's commName, for its logs and profilers
  std::optional<std::chrono::milliseconds> deadline{};  ///< of making it and of its waits; initial_deadline() if empty
};

// Each rank has a GPU; exchange and all_gather enqueue on the stream given and return. NCCL does not compare what the
// ranks send with what they expect: calls that do not fit together end at the deadline. It does not carry the reason
// of an abort() to other ranks either; a communicator made over a control communicator does.

/// Over the caller's communicator, which must outlive it, and which it neither destroys nor aborts: after a failure,
/// aborting what is still enqueued is the owner's. All made over one handle number their layers together. Throws
/// CommunicationError if NCCL refuses the handle.
std::unique_ptr<Communicator> make_communicator(ncclComm_t borrowed);

/// Over a communicator of its own for the device that is current; collective. `id` is of one ncclGetUniqueId, the same
/// on every rank. Throws CommunicationError when NCCL reports an error, DeadlineError when ranks do not come.
std::unique_ptr<Communicator> make_communicator(const ncclUniqueId& id, int size, int rank,
                                                const Options& options = {});

/// The same for the ranks of `control`, e.g. one over MPI, and for `device`. `control` brings the id to every rank, and
/// must outlive the communicator, for which it goes on to move what is in host memory and the reasons of failures; its
/// deadline becomes the communicator's.
std::unique_ptr<Communicator> make_communicator(Communicator& control, Device& device, const Options& options = {});

}  // namespace cpnsa::nccl
