#pragma once

// kernels/cuda/ptx/sm80.cuh, acted out.

#include "tests/emulation/products.hpp"

namespace cpnsa::cuda::ptx {

inline std::uint32_t shared_address(const void* pointer) {
  return emulation::ThreadBlock::address_of(pointer);
}

template <int Bytes>
void cp_async(std::uint32_t destination, const void* source, bool valid) {
  auto& block = emulation::ThreadBlock::current();
  if (destination % Bytes != 0 || reinterpret_cast<std::uintptr_t>(source) % Bytes != 0)
    block.fail("cp.async between addresses that are not aligned");
  unsigned char* const to = emulation::ThreadBlock::pointer_to(destination);
  std::memset(to, 0xff, Bytes);
  block.thread().copies.open.push_back([=] {
    if (valid)
      std::memcpy(to, source, Bytes);
    else
      std::memset(to, 0, Bytes);
  });
}

inline void cp_async_16(std::uint32_t destination, const void* source, bool valid) {
  cp_async<16>(destination, source, valid);
}

inline void cp_async_4(std::uint32_t destination, const void* source, bool valid) {
  cp_async<4>(destination, source, valid);
}

inline void cp_async_commit() {
  emulation::ThreadBlock::current().thread().copies.commit();
}

template <int Pending>
void cp_async_wait() {
  auto& groups = emulation::ThreadBlock::current().thread().copies.committed;
  while (groups.size() > Pending) {
    for (const emulation::Copy& copy : groups.front()) copy();
    groups.erase(groups.begin());
  }
}

inline void ldmatrix_x4(std::uint32_t (&r)[4], std::uint32_t address) {
  emulation::load_matrices(r, address, false);
}

inline void ldmatrix_x4_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  emulation::load_matrices(r, address, true);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulation::multiply(d, a, b0, b1, emulation::values_of<T>());
}

// Grids run one after another.
inline void wait_for_previous_grid() {}
inline void allow_next_grid() {}

inline void named_barrier(int barrier, int threads) {
  emulation::ThreadBlock::current().meet(barrier, threads, "bar.sync");
}

inline int opaque(int number) {
  return number;
}

inline float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;
}

}  // namespace cpnsa::cuda::ptx
