#pragma once

// The CUDA built-ins that kernels use, for the host compiler: included before every kernel.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <cuda/atomic>
#include <type_traits>

#include "tests/emulation/thread_block.hpp"

#define threadIdx (::emulation::ThreadBlock::current().thread().index)
#define blockIdx (::emulation::ThreadBlock::current().index)
#define blockDim (::emulation::ThreadBlock::current().size)
#define gridDim (::emulation::ThreadBlock::current().grid)
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __shared__
#define __shared__ static thread_local  // blocks of one grid run one after another

using std::isnan;

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

inline void __syncthreads() {
  auto& block = emulation::ThreadBlock::current();
  block.meet(0, block.live_threads(), "__syncthreads");
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  char nothing = 0;
  emulation::ThreadBlock::current().meet_warp("__syncwarp", mask, nothing, [](const auto&) {});
}

inline void __nanosleep(unsigned) {
  emulation::ThreadBlock::current().sleep();
}

namespace emulation {

template <class Value>
struct Shuffle {
  Value value;
  int source;
  Value result;
};

template <class Value>
Value shuffle(std::string_view verb, unsigned mask, Value value, int source) {
  Shuffle<Value> shuffle{value, source, value};
  ThreadBlock::current().meet_warp(verb, mask, shuffle, [](const auto& lanes) {
    for (Shuffle<Value>* lane : lanes)
      if (lane) lane->result = lanes.at(static_cast<std::size_t>(lane->source))->value;
  });
  return shuffle.result;
}

inline int own_lane() {
  return ThreadBlock::current().thread().lane();
}

struct Vote {
  bool value;
  unsigned result;
};

inline unsigned vote(std::string_view verb, unsigned mask, bool value) {
  Vote vote{value, 0};
  ThreadBlock::current().meet_warp(verb, mask, vote, [](const auto& lanes) {
    unsigned result = 0;
    for (std::size_t lane = 0; lane < lanes.size(); ++lane)
      if (lanes[lane] && lanes[lane]->value) result |= 1u << lane;
    for (Vote* lane : lanes)
      if (lane) lane->result = result;
  });
  return vote.result;
}

}  // namespace emulation

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source) {
  return emulation::shuffle("__shfl_sync", mask, value, source & 31);
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int bits) {
  return emulation::shuffle("__shfl_xor_sync", mask, value, emulation::own_lane() ^ bits);
}
template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, int by) {
  const int lane = emulation::own_lane();
  return emulation::shuffle("__shfl_up_sync", mask, value, lane < by ? lane : lane - by);
}
template <class Value>
Value __reduce_min_sync(unsigned mask, Value value) {
  for (int bits = 1; bits < 32; bits *= 2) value = std::min(value, __shfl_xor_sync(mask, value, bits));
  return value;
}
template <class Value>
Value __reduce_max_sync(unsigned mask, Value value) {
  for (int bits = 1; bits < 32; bits *= 2) value = std::max(value, __shfl_xor_sync(mask, value, bits));
  return value;
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  return emulation::vote("__ballot_sync", mask, value);
}
inline bool __any_sync(unsigned mask, bool value) {
  return emulation::vote("__any_sync", mask, value) != 0;
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  for (int bits = 16; bits > 0; bits /= 2) value = std::max(value, __shfl_xor_sync(mask, value, bits));
  return value;
}
inline void __threadfence() {}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}

// Ranks are threads that share the GPU.
inline unsigned atomicAdd(unsigned* to, unsigned value) {
  return std::atomic_ref(*to).fetch_add(value);
}
template <class Word>
Word atomicOr(Word* to, Word value) {
  return std::atomic_ref(*to).fetch_or(value);
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, int by) {
  return static_cast<unsigned>(((static_cast<std::uint64_t>(high) << 32 | low) << (by & 31)) >> 32);
}
inline int __ffs(int x) {
  return ffs(x);
}
template <class Value>
Value __ldg(const Value* from) {
  return *from;
}
template <class Value>
Value __ldcg(const Value* from) {
  return *from;
}
inline int __vimax3_s32(int a, int b, int c) {
  return std::max(a, std::max(b, c));
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  return cudaSuccess;
}

#define cudaLaunchKernelEx ::emulation::launch_kernel
