#include "tests/emulation/tensor_copy.hpp"

#include <cstring>

#include "tests/emulation/thread_block.hpp"

namespace emulation {
namespace {

constexpr int row_bytes = 128;

TensorMap unpacked(const CUtensorMap& map) {
  TensorMap unpacked{};
  std::memcpy(static_cast<void*>(&unpacked), &map, sizeof unpacked);
  return unpacked;
}

void land(const TensorMap& map, std::uint32_t destination, const std::array<int, 3>& first) {
  for (int outer = 0; outer < map.box[2]; ++outer)
    for (int middle = 0; middle < map.box[1]; ++middle) {
      const auto row = static_cast<std::uint32_t>(outer * map.box[1] + middle);
      const std::int64_t at[3] = {first[0], first[1] + middle, first[2] + outer};
      for (std::uint32_t unit = 0; unit < row_bytes / 16; ++unit) {
        const std::uint32_t address = destination + row * row_bytes + unit * 16;
        unsigned char* const to = ThreadBlock::pointer_to(address ^ (address >> 7 & 7) << 4);
        for (int i = 0; i < 8; ++i) {
          const std::int64_t column = at[0] + unit * 8 + i;
          const bool inside = column >= 0 && column < map.shape[0] && at[1] >= 0 && at[1] < map.shape[1] &&
                              at[2] >= 0 && at[2] < map.shape[2];
          std::uint16_t value = 0;
          if (inside)
            std::memcpy(&value, map.tensor + column * 2 + at[1] * map.strides[0] + at[2] * map.strides[1],
                        sizeof value);
          std::memcpy(to + 2 * i, &value, sizeof value);
        }
      }
    }
}

}  // namespace

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* tensor, const cuuint64_t* shape,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  bool fits = rank == 3 && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
              reinterpret_cast<std::uintptr_t>(tensor) % 16 == 0 && tensor && box[0] == row_bytes / 2;
  for (int i = 0; i < 3; ++i)
    fits = fits && shape[i] > 0 && shape[i] <= 1ull << 32 && box[i] > 0 && box[i] <= 256 && steps[i] == 1;
  for (int i = 0; i < 2; ++i) fits = fits && strides[i] % 16 == 0 && strides[i] < 1ull << 40;
  if (!fits) return CUDA_ERROR_INVALID_VALUE;
  TensorMap packed{static_cast<const unsigned char*>(tensor), {}, {}, {}};
  for (int i = 0; i < 3; ++i)
    packed.shape[i] = static_cast<std::int64_t>(shape[i]), packed.box[i] = static_cast<int>(box[i]);
  for (int i = 0; i < 2; ++i) packed.strides[i] = static_cast<std::int64_t>(strides[i]);
  *map = {};
  std::memcpy(static_cast<void*>(map), &packed, sizeof packed);
  return CUDA_SUCCESS;
}

void start_tensor_copy(std::uint32_t destination, const CUtensorMap& map, std::uint32_t barrier,
                       std::array<int, 3> first) {
  ThreadBlock& block = ThreadBlock::current();
  const TensorMap from = unpacked(map);
  if (!from.tensor) block.fail("a copy by an empty tensor map");
  if (destination % row_bytes != 0) block.fail("a tensor copy to an address that is not aligned to 128");
  const int bytes = from.box[1] * from.box[2] * row_bytes;
  if (destination + static_cast<std::uint32_t>(bytes) > shared_capacity + 1024)
    block.fail("a tensor copy beyond shared memory");
  std::memset(ThreadBlock::pointer_to(destination), 0xff, static_cast<std::size_t>(bytes));
  MemoryBarrier& reports = block.barrier(barrier);
  block.start_copy([&block, &reports, from, destination, first, bytes] {
    land(from, destination, first);
    reports.bytes -= bytes;
    block.settle(reports);
  });
}

}  // namespace emulation
