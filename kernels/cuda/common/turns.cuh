#pragma once

// Sums of several thread blocks in one place, in a fixed order and without room for parts: each adds when those before
// it have. Thread blocks take their work in the order of tickets, so that whoever is waited for has begun.

#include <cstddef>
#include <cstdint>
#include <cuda/atomic>

namespace cpnsa::cuda {

/// In scratch memory, zeroed before the launch.
struct Turns {
  unsigned* tickets;  ///< handed out
  unsigned* done;     ///< [places], thread blocks, or their parts, that have added to a place

  static std::size_t bytes(std::int64_t places) { return static_cast<std::size_t>(places + 1) * sizeof(unsigned); }
  explicit Turns(void* scratch) : tickets(static_cast<unsigned*>(scratch)), done(tickets + 1) {}

  /// All threads call it, once.
  __device__ unsigned take_ticket() const {
    __shared__ unsigned ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(tickets, 1u);
    __syncthreads();
    return ticket;
  }

  /// Returns when `turn` others have called end() for the place. All threads of a group call it, of which one `speaks`;
  /// `wait_for_all` is a barrier of theirs.
  template <class WaitForAll>
  __device__ void wait(std::int64_t place, unsigned turn, bool speaks, WaitForAll&& wait_for_all) const {
    if (speaks) {
      const ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device> count(done[place]);
      while (count.load(::cuda::memory_order_acquire) != turn) __nanosleep(100);
    }
    wait_for_all();
  }
  template <class WaitForAll>
  __device__ void end(std::int64_t place, unsigned turn, bool speaks, WaitForAll&& wait_for_all) const {
    wait_for_all();
    if (speaks)
      ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device>(done[place])
          .store(turn + 1, ::cuda::memory_order_release);
  }

  /// The same for whole thread blocks.
  __device__ void wait(std::int64_t place, unsigned turn) const {
    wait(place, turn, threadIdx.x == 0, [] { __syncthreads(); });
  }
  __device__ void end(std::int64_t place, unsigned turn) const {
    end(place, turn, threadIdx.x == 0, [] { __syncthreads(); });
  }
};

}  // namespace cpnsa::cuda
