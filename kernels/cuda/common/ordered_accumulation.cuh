#pragma once

// Ordered accumulation: several thread blocks add to the same gradients in a fixed order, without memory for partial
// sums. Each waits until those before it have added. Thread blocks take their work in the order of tickets, so that a
// thread block never waits for one that has not begun.

#include <cstddef>
#include <cstdint>
#include <cuda/atomic>

namespace cpnsa::cuda {

/// In scratch memory, zeroed before the launch.
struct OrderedAccumulation {
  unsigned* tickets;  ///< handed out
  unsigned* done;     ///< [slots], thread blocks, or their parts, that have added to a slot

  static std::size_t bytes(std::int64_t slots) { return static_cast<std::size_t>(slots + 1) * sizeof(unsigned); }
  explicit OrderedAccumulation(void* scratch) : tickets(static_cast<unsigned*>(scratch)), done(tickets + 1) {}

  /// All threads call it, once.
  __device__ unsigned next_ticket() const {
    __shared__ unsigned ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(tickets, 1u);
    __syncthreads();
    return ticket;
  }

  /// Returns when `turn` others have called release() for the slot. All threads of a group call it, of which one
  /// `is_leader`; `wait_for_all` is a barrier of theirs.
  template <class WaitForAll>
  __device__ void acquire(std::int64_t slot, unsigned turn, bool is_leader, WaitForAll&& wait_for_all) const {
    if (is_leader) {
      const ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device> count(done[slot]);
      while (count.load(::cuda::memory_order_acquire) != turn) __nanosleep(100);
    }
    wait_for_all();
  }
  template <class WaitForAll>
  __device__ void release(std::int64_t slot, unsigned turn, bool is_leader, WaitForAll&& wait_for_all) const {
    wait_for_all();
    if (is_leader)
      ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device>(done[slot])
          .store(turn + 1, ::cuda::memory_order_release);
  }

  /// The same for whole thread blocks.
  __device__ void acquire(std::int64_t slot, unsigned turn) const {
    acquire(slot, turn, threadIdx.x == 0, [] { __syncthreads(); });
  }
  __device__ void release(std::int64_t slot, unsigned turn) const {
    release(slot, turn, threadIdx.x == 0, [] { __syncthreads(); });
  }
};

}  // namespace cpnsa::cuda
