// The emulation itself: products against sums in double, and kernels with a mistake in them, which must not pass.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <utility>

#include "kernels/cuda/ptx/sm80.cuh"
#include "kernels/cuda/ptx/sm90.cuh"

namespace emulation {
namespace {

namespace ptx = cpnsa::cuda::ptx;
using T = __nv_bfloat16;

constexpr int rows = 64, columns = 64, tile_bytes = rows * 128;
constexpr cudaStream_t stream = nullptr;

std::vector<T> random_tile(unsigned seed) {
  std::minstd_rand random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> tile(rows * columns);
  for (T& value : tile) value = __float2bfloat16(normal(random));
  return tile;
}

float at(const std::vector<T>& tile, int row, int column) {
  return __bfloat162float(tile[static_cast<std::size_t>(row * columns + column)]);
}

CUtensorMap map_of(const std::vector<T>& tile) {
  const cuuint64_t shape[] = {columns, 1, rows}, strides[] = {columns * 2, columns * 2};
  const cuuint32_t box[] = {columns, 1, rows}, steps[] = {1, 1, 1};
  CUtensorMap map{};
  EXPECT_EQ(encode_tiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<T*>(tile.data()), shape, strides, box,
                         steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                         CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
            CUDA_SUCCESS);
  return map;
}

enum class Mistake { none, no_wait_for_copies, overwrites_operand, no_wait_for_products, nobody_arrives };

struct Tiles {
  CUtensorMap first, second;
  float* out;
  Mistake mistake;
};

// out = (first second^T) second: both kinds of products of a warpgroup.
void warpgroup_kernel(Tiles tiles) {
  const std::uint32_t first = 1024, second = first + tile_bytes, barrier = second + tile_bytes;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0 && tiles.mistake != Mistake::nobody_arrives) {
    ptx::mbarrier_arrive_expect_tx(barrier, 2 * tile_bytes);
    ptx::tma_load(first, &tiles.first, barrier, 0, 0, 0);
    ptx::tma_load(second, &tiles.second, barrier, 0, 0, 0);
  }
  if (tiles.mistake != Mistake::no_wait_for_copies) ptx::mbarrier_wait(barrier, 0);
  const unsigned warp = threadIdx.x / 32;
  float s[columns / 2] = {}, o[columns / 2] = {};
  ptx::wgmma_fence();
  for (int step = 0; step < columns / 16; ++step)
    ptx::wgmma_ss(T{}, s, ptx::make_smem_desc(first + step * 32), ptx::make_smem_desc(second + step * 32), step > 0);
  ptx::wgmma_commit();
  if (tiles.mistake == Mistake::overwrites_operand)
    std::memset(ThreadBlock::pointer_to(first + warp * 16 * 128), 0, 16 * 128);
  ptx::wgmma_wait<0>();
  for (int step = 0; step < columns / 16; ++step) {
    std::uint32_t p[4];
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
      std::memcpy(&p[i], &pair, sizeof pair);
    }
    ptx::wgmma_rs(T{}, o, p, ptx::make_smem_desc(second + step * 2048, tile_bytes));
  }
  ptx::wgmma_commit();
  if (tiles.mistake != Mistake::no_wait_for_products) ptx::wgmma_wait<0>();
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < columns / 2; ++i)
    tiles.out[(warp * 16 + lane / 4 + i / 2 % 2 * 8) * columns + i / 4 * 8 + lane % 4 * 2 + i % 2] = o[i];
}

// Largest difference from the sums in double, by their norm.
double error_of(Mistake mistake) {
  const std::vector<T> first = random_tile(1), second = random_tile(2);
  std::vector<float> out(rows * columns, NAN);
  const Tiles tiles{map_of(first), map_of(second), out.data(), mistake};
  warpgroup_kernel->*Grid{1, 128, 1024 + 2 * tile_bytes + 64, stream}(tiles);
  double error = 0, norm = 0;
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column) {
      double sum = 0;
      for (int key = 0; key < rows; ++key) {
        double score = 0;
        for (int k = 0; k < columns; ++k) score += double{at(first, row, k)} * at(second, key, k);
        sum += score * at(second, key, column);
      }
      const double difference = out[static_cast<std::size_t>(row * columns + column)] - sum;
      if (!(std::abs(difference) <= error)) error = std::isnan(difference) ? INFINITY : std::abs(difference);
      norm += sum * sum;
    }
  return error / std::sqrt(norm / (rows * columns));
}

template <class Run>
std::string complaint(Run&& run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return {};
}

TEST(Emulation, ProductsOfWarpgroups) {
  EXPECT_LT(error_of(Mistake::none), 0.03);
}

TEST(Emulation, ACopyThatIsNotWaitedForIsNotThere) {
  EXPECT_THAT(complaint([] { error_of(Mistake::no_wait_for_copies); }), testing::HasSubstr("before its copies"));
}

TEST(Emulation, AnOperandThatIsOverwrittenTooEarlyIsSeen) {
  EXPECT_GT(error_of(Mistake::overwrites_operand), 0.3);
}

TEST(Emulation, ProductsThatAreNotWaitedForAreAnError) {
  EXPECT_THAT(complaint([] { error_of(Mistake::no_wait_for_products); }), testing::HasSubstr("before its products"));
}

TEST(Emulation, AWaitInVainEndsAndSaysWhere) {
  EXPECT_THAT(complaint([] { error_of(Mistake::nobody_arrives); }),
              testing::AllOf(testing::HasSubstr("cannot go on"), testing::HasSubstr("32 in mbarrier.try_wait")));
}

void looking_kernel(bool arrives) {
  if (threadIdx.x == 0) ptx::mbarrier_init(0, 2);
  __syncthreads();
  if (threadIdx.x == 32 && arrives) ptx::mbarrier_arrive(0, 2);
  while (!ptx::mbarrier_test_wait(0, 0)) {
  }
}

TEST(Emulation, LookingInVainEndsAndSaysWhere) {
  const auto longest = std::exchange(emulation::ThreadBlock::max_sleep, std::chrono::milliseconds(50));
  EXPECT_EQ(complaint([] { looking_kernel->*Grid{1, 64, 64, stream}(true); }), "");
  EXPECT_THAT(complaint([] {
                looking_kernel->*Grid{1, 64, 64, stream}(false);
              }),
              testing::AllOf(testing::HasSubstr("cannot go on"), testing::HasSubstr("warp 1: 32 in __nanosleep")));
  emulation::ThreadBlock::max_sleep = longest;
}

enum class Freeing { by_every_warp, by_one_warp_after_all, by_one_warp };

// A warpgroup looks at what passes through a ring of two stages. The first thread of another fills it.
void ring_kernel(Freeing freeing) {
  constexpr int stages = 2, turns = 16;
  const auto ready = [](int turn) { return static_cast<std::uint32_t>(turn % stages * 8); };
  const auto free = [](int turn) { return static_cast<std::uint32_t>((stages + turn % stages) * 8); };
  if (threadIdx.x == 0)
    for (int stage = 0; stage < stages; ++stage) {
      ptx::mbarrier_init(ready(stage), 1);
      ptx::mbarrier_init(free(stage), freeing == Freeing::by_every_warp ? 4 : 1);
    }
  __syncthreads();
  for (int turn = 0; turn < turns; ++turn) {
    const int parity = turn / stages % 2;
    if (threadIdx.x >= 128) {
      ptx::mbarrier_wait(ready(turn), parity);
      if (freeing == Freeing::by_one_warp_after_all) ptx::named_barrier(1, 128);
      if (freeing == Freeing::by_every_warp ? threadIdx.x % 32 == 0 : threadIdx.x == 128)
        ptx::mbarrier_arrive(free(turn));
    } else if (threadIdx.x == 0) {
      ptx::mbarrier_wait(free(turn), parity ^ 1);
      ptx::mbarrier_arrive(ready(turn));
    }
  }
}

TEST(Emulation, AWarpThatFreesWhatOthersHaveYetToSeeIsFound) {
  const auto run = [](Freeing freeing) { return complaint([&] { ring_kernel->*Grid{16, 256, 64, stream}(freeing); }); };
  EXPECT_EQ(run(Freeing::by_every_warp), "");
  EXPECT_EQ(run(Freeing::by_one_warp_after_all), "");
  EXPECT_THAT(run(Freeing::by_one_warp), testing::HasSubstr("cannot go on"));
}

void parting_kernel() {
  if (threadIdx.x % 2 == 0)
    __syncwarp();
  else
    __shfl_sync(0xffffffffu, 1, 0);
}

TEST(Emulation, LanesThatPartAreAnError) {
  EXPECT_THAT(complaint([] { parting_kernel->*Grid{1, 32, 0, stream}(); }), testing::HasSubstr("lanes of a warp part"));
}

void scan_kernel(int* sums) {
  int sum = static_cast<int>(threadIdx.x) + 1;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (static_cast<int>(threadIdx.x) >= offset) sum += other;
  }
  sums[blockIdx.x * 32 + threadIdx.x] = sum;
}

TEST(Emulation, ShufflesInEveryBlock) {
  std::vector<int> sums(3 * 32, -1);
  scan_kernel->*Grid{3, 32, 0, stream}(sums.data());
  for (int i = 0; i < 3 * 32; ++i) EXPECT_EQ(sums[static_cast<std::size_t>(i)], (i % 32 + 1) * (i % 32 + 2) / 2);
}

struct Product16 {
  const T *a, *b;
  float* out;
  bool waits;
};

// out[16, 8] = a[16, 16] b[8, 16]^T, through cp.async and ldmatrix.
void warp_kernel(Product16 product) {
  const std::uint32_t a = 0, b = 16 * 32;
  const int lane = static_cast<int>(threadIdx.x);
  ptx::cp_async_16(a + lane * 16, product.a + lane * 8, true);
  ptx::cp_async_16(b + lane * 16, product.b + lane * 8, lane < 16);
  ptx::cp_async_commit();
  if (product.waits) ptx::cp_async_wait<0>();
  __syncwarp();
  std::uint32_t first[4], second[4];
  ptx::ldmatrix_x4(first, a + lane % 16 * 32 + lane / 16 * 16);
  ptx::ldmatrix_x4(second, b + lane % 8 * 32 + lane / 8 % 2 * 16);
  float d[4] = {};
  ptx::mma_m16n8k16<T>(d, first, second[0], second[1]);
  for (int i = 0; i < 4; ++i) product.out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
  if (!product.waits) ptx::cp_async_wait<0>();
}

TEST(Emulation, ProductsOfWarps) {
  const std::vector<T> a = random_tile(3), b = random_tile(4);
  for (const bool waits : {true, false}) {
    std::vector<float> out(16 * 8);
    warp_kernel->*Grid{1, 32, 1024, stream}(Product16{a.data(), b.data(), out.data(), waits});
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        double sum = 0;
        for (int k = 0; k < 16; ++k)
          sum += double{__bfloat162float(a[static_cast<std::size_t>(row * 16 + k)])} *
                 __bfloat162float(b[static_cast<std::size_t>(column * 16 + k)]);
        const float found = out[static_cast<std::size_t>(row * 8 + column)];
        if (waits)
          EXPECT_NEAR(found, sum, 1e-4);
        else
          EXPECT_TRUE(std::isnan(found));
      }
  }
}

}  // namespace
}  // namespace emulation
