#pragma once

// kernels/cuda/ptx/sm90.cuh, acted out.

#include "tests/emulation/products.hpp"
#include "tests/emulation/tensor_copy.hpp"

namespace cpnsa::cuda::ptx {

inline void mbarrier_init(std::uint32_t barrier, int arrivals) {
  emulation::ThreadBlock::current().barrier(barrier) = {arrivals, arrivals, 0, 0};
}

inline void fence_mbarrier_init() {}

inline void mbarrier_arrive(std::uint32_t barrier, int times = 1) {
  auto& block = emulation::ThreadBlock::current();
  if (times < 1) block.fail("an mbarrier is arrived at less than once");
  block.barrier(barrier).missing -= times;
  block.settle(block.barrier(barrier));
}

inline void mbarrier_arrive_expect_tx(std::uint32_t barrier, int bytes) {
  emulation::ThreadBlock::current().barrier(barrier).bytes += bytes;
  mbarrier_arrive(barrier);
}

inline void mbarrier_wait(std::uint32_t barrier, int parity) {
  auto& block = emulation::ThreadBlock::current();
  const emulation::MemoryBarrier& waited = block.barrier(barrier);
  if (waited.arrivals == 0) block.fail("a wait for an mbarrier that was not initialised");
  while (static_cast<int>(waited.phase % 2) == parity) block.wait_while(waited.phase, "mbarrier.try_wait");
}

inline bool mbarrier_test_wait(std::uint32_t barrier, int parity) {
  auto& block = emulation::ThreadBlock::current();
  const emulation::MemoryBarrier& asked = block.barrier(barrier);
  if (asked.arrivals == 0) block.fail("a question to an mbarrier that was not initialised");
  if (static_cast<int>(asked.phase % 2) != parity) return true;
  block.sleep();  // who asks again lets others go on first
  return false;
}

inline void tma_load(std::uint32_t destination, const CUtensorMap* map, std::uint32_t barrier, int c0, int c1, int c2) {
  emulation::start_tensor_copy(destination, *map, barrier, {c0, c1, c2});
}

inline void prefetch_l2(const void*, int) {}

inline void fence_proxy_async() {}

inline void red_add(float* destination, float x, float y) {
  if (reinterpret_cast<std::uintptr_t>(destination) % 8 != 0)
    emulation::ThreadBlock::current().fail("red.v2 to an address that is not aligned");
  std::atomic_ref(destination[0]).fetch_add(x);
  std::atomic_ref(destination[1]).fetch_add(y);
}

template <int Registers>
void warpgroup_reg_dealloc() {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256);
}

template <int Registers>
void warpgroup_reg_alloc() {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256);
}

inline void wgmma_fence() {}

inline void wgmma_commit() {
  emulation::ThreadBlock::current().thread().products.commit();
}

template <int Pending>
void wgmma_wait() {
  emulation::finish_products(Pending);
}

template <int N>
void warpgroup_fence_operand(float (&)[N]) {}

inline std::uint64_t make_smem_desc(std::uint32_t address, int leading = 16) {
  address = __shfl_sync(0xffffffffu, address, 0);  // so that lanes that do not call it are missed here too
  if (address % 16 != 0 || address >= emulation::shared_capacity)
    emulation::ThreadBlock::current().fail("a wgmma operand that is not at a multiple of 16 in shared memory");
  return emulation::Operand{address, leading}.packed();
}

inline std::uint64_t advance_desc(std::uint64_t operand, int bytes) {
  return operand + static_cast<std::uint64_t>(bytes / 16);
}

template <class T, int Values>
void wgmma_ss(T, float (&d)[Values], std::uint64_t first, std::uint64_t second, int accumulate) {
  emulation::enqueue({d, 2 * Values, {}, first, second, false, accumulate != 0, emulation::values_of<T>()});
}

template <class T, int Values>
void wgmma_rs(T, float (&d)[Values], const std::uint32_t (&a)[4], std::uint64_t second) {
  emulation::enqueue({d, 2 * Values, {a[0], a[1], a[2], a[3]}, 0, second, true, true, emulation::values_of<T>()});
}

}  // namespace cpnsa::cuda::ptx
