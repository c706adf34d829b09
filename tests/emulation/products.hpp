#pragma once

// Matrix products of warps and warpgroups: the layouts of registers, and of operands in shared memory under 128-byte
// swizzle, as PTX defines them.

#include <vector>

#include "tests/emulation/cuda_vocabulary.hpp"

namespace emulation {

/// The values of all 65536 numbers of a 16-bit type.
template <class T>
const float* values_of() {
  static const std::vector<float> values = [] {
    std::vector<float> all(1 << 16);
    for (std::size_t bits = 0; bits < all.size(); ++bits)
      all[bits] = static_cast<float>(std::bit_cast<T>(static_cast<std::uint16_t>(bits)));
    return all;
  }();
  return values.data();
}

/// ldmatrix.x4, .trans if `transposed`.
void load_matrices(std::uint32_t (&r)[4], std::uint32_t address, bool transposed);

/// mma.m16n8k16.
void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, const float* values);

/// The descriptor of an operand of wgmma.
struct Operand {
  std::uint32_t address;
  int leading;

  std::uint32_t at(int bytes) const { return address + static_cast<std::uint32_t>(bytes); }
  std::uint64_t packed() const { return address / 16 | static_cast<std::uint64_t>(leading / 16) << 16; }
  static Operand unpacked(std::uint64_t bits) {
    return {static_cast<std::uint32_t>(bits & 0x3fff) * 16, static_cast<int>(bits >> 16 & 0x3fff) * 16};
  }
};

/// wgmma.mma_async: computed by finish_products(), when at most `pending` groups may be left.
void enqueue(const Product& product);
void finish_products(std::size_t pending);

}  // namespace emulation
