#pragma once

// Registers that warpgroups give to one another (setmaxnreg).

namespace cpnsa::cuda::sm90 {

/// Returns whether the registers that the producers release suffice for those that the consumers take; otherwise
/// setmaxnreg would wait forever. A launch of one thread block a multiprocessor gives every thread alike, a multiple of
/// 8 of 65536 in all.
constexpr bool registers_suffice(int threads, int consumers, int producer_registers, int consumer_registers) {
  const int at_launch = 65536 / threads / 8 * 8;
  return consumers * consumer_registers + (threads - consumers) * producer_registers <= threads * at_launch &&
         producer_registers <= at_launch;
}

/// Registers of a producer's thread: those that the consumers leave.
constexpr int spare_registers(int threads, int consumers, int consumer_registers) {
  return (65536 / threads / 8 * 8 * threads - consumers * consumer_registers) / (threads - consumers) / 8 * 8;
}

}  // namespace cpnsa::cuda::sm90
