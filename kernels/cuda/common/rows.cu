#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/common/run_op.hpp"

namespace cpnsa::cuda {
namespace {

constexpr int block_threads = 256;
constexpr std::int64_t units_per_thread = 4;
constexpr std::int64_t max_blocks = 1 << 16;  // of a launch, beyond which threads take more
constexpr std::int64_t max_blocks_y = 65535;  // the limit of CUDA

struct Assign {
  template <class Unit>
  __device__ static void apply(Unit& destination, const Unit& source) {
    destination = source;
  }
};

struct Add {
  template <class T, int Count>
  __device__ static void apply(Pack<T, Count>& destination, const Pack<T, Count>& source) {
#pragma unroll
    for (int i = 0; i < Count; ++i) destination.item[i] += source.item[i];
  }
};

/// Strides and width in units.
template <class Unit>
struct Rows {
  const Unit* source;
  Unit* destination;
  std::int64_t source_stride;
  std::int64_t destination_stride;
  std::int64_t width;
};

// blockIdx.y walks the ranges, blockIdx.x the units of one.
template <class Operation, class Unit>
__global__ void __launch_bounds__(block_threads)
    rows_kernel(const Rows<Unit> a, const RowRange* __restrict__ ranges, std::int64_t count) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * block_threads;
  for (std::int64_t r = blockIdx.y; r < count; r += gridDim.y) {
    const RowRange range = ranges[r];
    for (std::int64_t i = first; i < range.count * a.width; i += step) {
      const std::int64_t row = i / a.width, unit = i % a.width;
      Operation::apply(a.destination[(range.destination + row) * a.destination_stride + unit],
                       a.source[(range.source + row) * a.source_stride + unit]);
    }
  }
}

template <class Operation, class Unit>
void launch(const Rows<Unit>& rows, const ListView<RowRange>& ranges, cudaStream_t stream) {
  std::int64_t max_count = 0;
  for (std::int64_t r = 0; r < ranges.count; ++r) max_count = std::max(max_count, ranges.host[r].count);
  if (max_count * rows.width == 0) return;
  // Ranges differ in length: as many thread blocks each as the max_count wants, unless most would find nothing to do.
  constexpr std::int64_t units_per_block = block_threads * units_per_thread;
  const std::int64_t wanted = (max_count * rows.width + units_per_block - 1) / units_per_block;
  const std::int64_t y = std::min(max_blocks_y, ranges.count);
  const dim3 blocks(static_cast<unsigned>(std::min(wanted, max_blocks / y)), static_cast<unsigned>(y));
  rows_kernel<Operation, Unit><<<blocks, block_threads, 0, stream>>>(rows, ranges.device, ranges.count);
}

std::int64_t address(const void* pointer) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(pointer));
}

// With the widest unit that pointers, strides and width are multiples of; all sizes in bytes.
template <class Operation, class Unit, class... Narrower>
void launch_widest(const CopyRows& a, cudaStream_t stream) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(Unit));
  const std::int64_t all =
      address(a.source) | address(a.destination) | a.source_stride | a.destination_stride | a.width;
  if (all % size == 0) {
    launch<Operation>(Rows<Unit>{static_cast<const Unit*>(a.source), static_cast<Unit*>(a.destination),
                                 a.source_stride / size, a.destination_stride / size, a.width / size},
                      a.ranges, stream);
  } else if constexpr (sizeof...(Narrower) > 0) {
    launch_widest<Operation, Narrower...>(a, stream);
  }
}

template <class To, class From>
__device__ __forceinline__ To converted(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<To, __nv_bfloat16>) {
    if constexpr (std::is_same_v<From, double>)
      return __double2bfloat16(x);
    else
      return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<To, __half>) {
    if constexpr (std::is_same_v<From, double>)
      return __double2half(x);
    else
      return __float2half_rn(x);
  } else {
    return static_cast<To>(x);
  }
}

/// The arrays that one launch converts. Thread blocks from an array's `first_block` to the next array's convert it.
template <class To, class From>
struct Arrays {
  static constexpr int most = 20;  // a layer's gradients
  static constexpr int wide = 16 / sizeof(From);
  struct Array {
    To* destination;
    const From* source;
    std::int64_t count;
    std::int64_t packs;  ///< of `wide` elements; the others follow one by one
    unsigned first_block;
  };
  Array array[most];
  int count = 0;
  unsigned blocks = 0;
};

template <class To, class From>
__global__ void __launch_bounds__(block_threads) convert_kernel(const __grid_constant__ Arrays<To, From> a) {
  constexpr int wide = Arrays<To, From>::wide;
  int mine = 0;
  while (mine + 1 < a.count && a.array[mine + 1].first_block <= blockIdx.x) ++mine;
  const auto& array = a.array[mine];
  const unsigned end = mine + 1 < a.count ? a.array[mine + 1].first_block : a.blocks;
  const std::int64_t step = static_cast<std::int64_t>(end - array.first_block) * block_threads;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x - array.first_block) * block_threads + threadIdx.x;
  for (std::int64_t i = first; i < array.packs; i += step) {
    const Pack<From, wide> from = reinterpret_cast<const Pack<From, wide>*>(array.source)[i];
    Pack<To, wide> to;
#pragma unroll
    for (int j = 0; j < wide; ++j) to.item[j] = converted<To>(from.item[j]);
    reinterpret_cast<Pack<To, wide>*>(array.destination)[i] = to;
  }
  for (std::int64_t i = array.packs * wide + first; i < array.count; i += step)
    array.destination[i] = converted<To>(array.source[i]);
}

template <class To, class From>
void convert_to(std::span<const Conversion> arrays, cudaStream_t stream) {
  using Launched = Arrays<To, From>;
  while (!arrays.empty()) {
    Launched launched;
    for (; !arrays.empty() && launched.count < Launched::most; arrays = arrays.subspan(1)) {
      const Conversion& given = arrays.front();
      if (given.count == 0) continue;
      constexpr auto pack_bytes = static_cast<std::int64_t>(sizeof(To) * Launched::wide);
      const bool aligned = address(given.destination) % pack_bytes == 0 && address(given.source) % 16 == 0;
      const std::int64_t packs = aligned ? given.count / Launched::wide : 0;
      launched.array[launched.count++] = {static_cast<To*>(given.destination), static_cast<const From*>(given.source),
                                          given.count, packs, launched.blocks};
      const std::int64_t units = packs > 0 ? packs : given.count;
      launched.blocks += static_cast<unsigned>(std::min(max_blocks, (units + block_threads - 1) / block_threads));
    }
    if (launched.blocks > 0) convert_kernel<To, From><<<launched.blocks, block_threads, 0, stream>>>(launched);
  }
}

template <class From>
void convert_from(const Convert& a, cudaStream_t stream) {
  switch (a.to) {
    case DType::f64: return convert_to<double, From>(a.arrays, stream);
    case DType::f32: return convert_to<float, From>(a.arrays, stream);
    case DType::bf16: return convert_to<__nv_bfloat16, From>(a.arrays, stream);
    case DType::f16: return convert_to<__half, From>(a.arrays, stream);
  }
}

}  // namespace

template <>
void run_op(const CopyRows& a, cudaStream_t stream) {
  launch_widest<Assign, uint4, std::uint32_t, std::uint16_t, std::uint8_t>(a, stream);
  check_launch("copy_rows");
}

template <>
void run_op(const AddRows& a, cudaStream_t stream) {
  const auto size = static_cast<std::int64_t>(size_of(a.dtype));
  const CopyRows bytes{a.source,       a.destination, a.source_stride * size, a.destination_stride * size,
                       a.width * size, a.ranges};
  switch (a.dtype) {
    case DType::f32: launch_widest<Add, Pack<float, 4>, Pack<float, 1>>(bytes, stream); break;
    case DType::f64: launch_widest<Add, Pack<double, 2>, Pack<double, 1>>(bytes, stream); break;
    default: throw ArgumentError("add_rows: found dtype " + std::string(name_of(a.dtype)) + ", expected f32 or f64");
  }
  check_launch("add_rows");
}

template <>
void run_op(const Convert& a, cudaStream_t stream) {
  switch (a.from) {
    case DType::f32: convert_from<float>(a, stream); break;
    case DType::f64: convert_from<double>(a, stream); break;
    default:
      throw ArgumentError("convert: found source dtype " + std::string(name_of(a.from)) + ", expected f32 or f64");
  }
  check_launch("convert");
}

}  // namespace cpnsa::cuda
