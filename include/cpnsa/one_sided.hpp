#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "cpnsa/device.hpp"

namespace cpnsa {

/// Access of a communicator's ranks to each other's memory, in which the owner takes no part. A step opens windows,
/// reads between barriers, and ends with a barrier, after which no rank reads what the step left in its window.
///
/// Errors: those of the communicator, whose deadline and failure also end these calls.
class OneSided {
 public:
  virtual ~OneSided() = default;

  /// Shows this rank's window, memory of its device, to the others. Returns the address of each rank's window as this
  /// rank's device reads it, by rank; its own is `own`. Collective, on the host.
  virtual std::vector<const std::byte*> open(const void* own) = 0;

  /// Later work of `stream` runs after all work that precedes the ranks' calls of barrier() on their streams.
  /// Collective; a transport that works on the host waits for the other ranks to call it.
  virtual void barrier(Device& device, Stream stream) = 0;

  /// Calls `enqueue`, which enqueues reads of other ranks' windows that end, for `stream`, with its last work. Throws
  /// the communicator's failure in its place if there is one: from then on ranks may free their windows.
  virtual void read(Device& device, Stream stream, const std::function<void()>& enqueue) = 0;

  /// After a failure of the communicator: returns when no rank enqueues reads any more, and lets later work of `stream`
  /// run after those that were enqueued. Then this rank's window may be freed once `stream` has drained. Waits for
  /// ranks that are inside read() alone, never for one to arrive.
  virtual void close(Device& device, Stream stream) noexcept = 0;
};

}  // namespace cpnsa
