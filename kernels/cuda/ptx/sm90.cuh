#pragma once

// PTX instructions of sm_90a, one function each: mbarriers, TMA, register reallocation, WGMMA.

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cpnsa::cuda::ptx {

// --- mbarriers: addresses are shared-memory addresses ------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Makes initialised barriers visible to TMA.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

/// Arrives `times` times, once at least.
__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier, int times) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(times) : "memory");
}

/// Arrives, and makes the phase wait for `bytes` bytes of copies too.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

/// Waits until the phase of this parity is complete; right after initialisation the phase of parity 1 is.
__device__ __forceinline__ void mbarrier_wait(std::uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra READY_%=;\n"
      "bra WAIT_%=;\n"
      "READY_%=:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// Returns whether the phase of this parity is complete.
__device__ __forceinline__ bool mbarrier_test_wait(std::uint32_t barrier, int parity) {
  int passed;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.b32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(passed)
      : "r"(barrier), "r"(parity)
      : "memory");
  return passed != 0;
}

// --- tensor copies ------------------------------------------------------------------------------------------------

/// The map's box at element coordinates (c0, c1, c2), innermost first, to shared memory; out of bounds reads as zero.
__device__ __forceinline__ void tma_load(std::uint32_t destination, const CUtensorMap* map, std::uint32_t barrier,
                                         int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];\n" ::
          "r"(destination),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

/// Prefetches `bytes` bytes of global memory, a multiple of 16, into the L2.
__device__ __forceinline__ void prefetch_l2(const void* address, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(address), "r"(bytes) : "memory");
}

/// Adds to two neighbouring floats in global memory. Unlike a load, an add and a store, it does not stall on the old
/// values.
__device__ __forceinline__ void red_add(float* destination, float x, float y) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};\n" ::"l"(destination), "f"(x), "f"(y) : "memory");
}

/// Makes what this thread wrote to shared memory visible to WGMMA and TMA.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// --- registers ----------------------------------------------------------------------------------------------------

template <int Registers>
__device__ __forceinline__ void warpgroup_reg_dealloc() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
}

template <int Registers>
__device__ __forceinline__ void warpgroup_reg_alloc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
}

// --- products of warpgroups ---------------------------------------------------------------------------------------

/// Orders this thread's register accesses before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

/// Waits until at most `Pending` groups of products are under way.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
}

/// Keeps the compiler from moving accesses of an accumulator across the products that write it.
template <int N>
__device__ __forceinline__ void warpgroup_fence_operand(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// The descriptor of an operand in shared memory under 128-byte swizzle. Rows of 128 bytes, eight of them 1024 bytes
/// apart from the next eight; `leading` is the distance in bytes between columns of 64 elements, of an operand whose
/// rows run along the summed dimension. All lanes call it with the same address. The shuffle makes the address
/// warp-uniform, so that the compiler keeps the descriptor in uniform registers, where WGMMA reads it.
__device__ __forceinline__ std::uint64_t make_smem_desc(std::uint32_t address, int leading = 16) {
  address = __shfl_sync(0xffffffffu, address, 0);
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<std::uint64_t>((leading & 0x3ffff) >> 4) << 16 | static_cast<std::uint64_t>(1024 >> 4) << 32 |
         static_cast<std::uint64_t>(1) << 62;
}

/// The operand that lies a multiple of 16 bytes further on.
__device__ __forceinline__ std::uint64_t advance_desc(std::uint64_t operand, int bytes) {
  std::uint32_t low, high;
  asm("mov.b64 {%0, %1}, %2;\n" : "=r"(low), "=r"(high) : "l"(operand));
  low += static_cast<std::uint32_t>(bytes / 16);  // the address, which never carries into what is above it
  asm("mov.b64 %0, {%1, %2};\n" : "=l"(operand) : "r"(low), "r"(high));
  return operand;
}

#define CPNSA_R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define CPNSA_R16(d, i) CPNSA_R4(d, i), CPNSA_R4(d, i + 4), CPNSA_R4(d, i + 8), CPNSA_R4(d, i + 12)
#define CPNSA_R16_ALL(d) CPNSA_R16(d, 0)
#define CPNSA_R32(d) CPNSA_R16(d, 0), CPNSA_R16(d, 16)
#define CPNSA_R32_FROM(d, i) CPNSA_R16(d, i), CPNSA_R16(d, i + 16)
#define CPNSA_R40(d) CPNSA_R32(d), CPNSA_R4(d, 32), CPNSA_R4(d, 36)
#define CPNSA_R64(d) CPNSA_R32(d), CPNSA_R16(d, 32), CPNSA_R16(d, 48)
#define CPNSA_R96(d) CPNSA_R64(d), CPNSA_R16(d, 64), CPNSA_R16(d, 80)
#define CPNSA_R128(d) CPNSA_R64(d), CPNSA_R32_FROM(d, 64), CPNSA_R32_FROM(d, 96)
#define CPNSA_D16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define CPNSA_D32                                                                                       \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31}"
#define CPNSA_D40                                                                                       \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39}"
#define CPNSA_D64                                                                                                \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"          \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

#define CPNSA_D96                                                                                                \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"          \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80," \
  "%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95}"

#define CPNSA_D128                                                                                       \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"  \
  "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
  "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76," \
  "%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,"    \
  "%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120," \
  "%121,%122,%123,%124,%125,%126,%127}"

// The same instruction for each type and width; assembly takes both from its text alone.
#define CPNSA_WGMMA(Type, type, N, Values, D, R, a0, a1, a2, a3, b, c)                                          \
  /* d[64 x N] = a[64 x 16] b[N x 16]^T (+ d), both in shared memory, rows along the summed dimension */        \
  __device__ __forceinline__ void wgmma_ss(Type, float(&d)[Values], std::uint64_t first, std::uint64_t second,  \
                                           int accumulate) {                                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" c                                                         \
                 ", 0;\n"                                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " " D ", %" a0 ", %" a1        \
                 ", p, 1, 1, 0, 0;\n}\n"                                                                        \
                 : R(d)                                                                                         \
                 : "l"(first), "l"(second), "r"(accumulate));                                                   \
  }                                                                                                             \
  /* d[64 x N] += a[64 x 16] b[16 x N], a in registers, b in shared memory, rows across the summed dimension */ \
  __device__ __forceinline__ void wgmma_rs(Type, float(&d)[Values], const std::uint32_t(&a)[4],                 \
                                           std::uint64_t second) {                                              \
    asm volatile(                                                                                               \
        "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " " D ", {%" a0 ",%" a1 ",%" a2 ",%" a3 \
        "}, %" b ", p, 1, 1, 1;\n}\n"                                                                           \
        : R(d)                                                                                                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(second));                                             \
  }

CPNSA_WGMMA(__nv_bfloat16, "bf16", 32, 16, CPNSA_D16, CPNSA_R16_ALL, "16", "17", "18", "19", "20", "18")
CPNSA_WGMMA(__half, "f16", 32, 16, CPNSA_D16, CPNSA_R16_ALL, "16", "17", "18", "19", "20", "18")
CPNSA_WGMMA(__nv_bfloat16, "bf16", 64, 32, CPNSA_D32, CPNSA_R32, "32", "33", "34", "35", "36", "34")
CPNSA_WGMMA(__half, "f16", 64, 32, CPNSA_D32, CPNSA_R32, "32", "33", "34", "35", "36", "34")
CPNSA_WGMMA(__nv_bfloat16, "bf16", 80, 40, CPNSA_D40, CPNSA_R40, "40", "41", "42", "43", "44", "42")
CPNSA_WGMMA(__half, "f16", 80, 40, CPNSA_D40, CPNSA_R40, "40", "41", "42", "43", "44", "42")
CPNSA_WGMMA(__nv_bfloat16, "bf16", 128, 64, CPNSA_D64, CPNSA_R64, "64", "65", "66", "67", "68", "66")
CPNSA_WGMMA(__half, "f16", 128, 64, CPNSA_D64, CPNSA_R64, "64", "65", "66", "67", "68", "66")
CPNSA_WGMMA(__nv_bfloat16, "bf16", 192, 96, CPNSA_D96, CPNSA_R96, "96", "97", "98", "99", "100", "98")
CPNSA_WGMMA(__half, "f16", 192, 96, CPNSA_D96, CPNSA_R96, "96", "97", "98", "99", "100", "98")
CPNSA_WGMMA(__nv_bfloat16, "bf16", 256, 128, CPNSA_D128, CPNSA_R128, "128", "129", "130", "131", "132", "130")
CPNSA_WGMMA(__half, "f16", 256, 128, CPNSA_D128, CPNSA_R128, "128", "129", "130", "131", "132", "130")

#undef CPNSA_WGMMA
#undef CPNSA_D128
#undef CPNSA_D96
#undef CPNSA_D64
#undef CPNSA_D40
#undef CPNSA_D32
#undef CPNSA_D16
#undef CPNSA_R128
#undef CPNSA_R96
#undef CPNSA_R64
#undef CPNSA_R40
#undef CPNSA_R32_FROM
#undef CPNSA_R32
#undef CPNSA_R16_ALL
#undef CPNSA_R16
#undef CPNSA_R4

}  // namespace cpnsa::cuda::ptx
