#include <algorithm>
#include <cstdint>

#include "kernels/cuda/check.hpp"
#include "kernels/cuda/packs.cuh"
#include "kernels/cuda/stage_functions.hpp"

namespace cpnsa::cuda {
namespace {

constexpr int block_threads = 256;
constexpr std::int64_t units_per_thread = 4;
constexpr std::int64_t most_blocks = 1 << 16;  // of a launch, beyond which threads take more
constexpr std::int64_t most_blocks_y = 65535;  // what CUDA allows

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
  std::int64_t longest = 0;
  for (std::int64_t r = 0; r < ranges.count; ++r) longest = std::max(longest, ranges.host[r].count);
  if (longest * rows.width == 0) return;
  // Ranges differ in length: as many thread blocks each as the longest wants, unless most would find nothing to do.
  constexpr std::int64_t units_per_block = block_threads * units_per_thread;
  const std::int64_t wanted = (longest * rows.width + units_per_block - 1) / units_per_block;
  const std::int64_t y = std::min(most_blocks_y, ranges.count);
  const dim3 blocks(static_cast<unsigned>(std::min(wanted, most_blocks / y)), static_cast<unsigned>(y));
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

template <class To, class From, int Count>
__global__ void __launch_bounds__(block_threads)
    convert_kernel(To* __restrict__ destination, const From* __restrict__ source, std::int64_t packs) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * block_threads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * block_threads + threadIdx.x; i < packs; i += step) {
    const Pack<From, Count> from = reinterpret_cast<const Pack<From, Count>*>(source)[i];
    Pack<To, Count> to;
#pragma unroll
    for (int j = 0; j < Count; ++j) to.item[j] = converted<To>(from.item[j]);
    reinterpret_cast<Pack<To, Count>*>(destination)[i] = to;
  }
}

template <int Count, class To, class From>
void launch_convert(To* destination, const From* source, std::int64_t packs, cudaStream_t stream) {
  if (packs == 0) return;
  const std::int64_t blocks = std::min(most_blocks, (packs + block_threads - 1) / block_threads);
  convert_kernel<To, From, Count>
      <<<static_cast<unsigned>(blocks), block_threads, 0, stream>>>(destination, source, packs);
}

template <class To, class From>
void convert_to(void* destination, const void* source, std::int64_t count, cudaStream_t stream) {
  constexpr int wide = 16 / sizeof(From);
  auto* const to = static_cast<To*>(destination);
  const auto* const from = static_cast<const From*>(source);
  const bool aligned = address(to) % static_cast<std::int64_t>(sizeof(To) * wide) == 0 && address(from) % 16 == 0;
  const std::int64_t packs = aligned ? count / wide : 0, done = packs * wide;
  launch_convert<wide>(to, from, packs, stream);
  launch_convert<1>(to + done, from + done, count - done, stream);
}

template <class From>
void convert_from(void* destination, DType to, const void* source, std::int64_t count, cudaStream_t stream) {
  switch (to) {
    case DType::f64: return convert_to<double, From>(destination, source, count, stream);
    case DType::f32: return convert_to<float, From>(destination, source, count, stream);
    case DType::bf16: return convert_to<__nv_bfloat16, From>(destination, source, count, stream);
    case DType::f16: return convert_to<__half, From>(destination, source, count, stream);
  }
}

}  // namespace

void copy_rows(const CopyRows& a, cudaStream_t stream) {
  launch_widest<Assign, uint4, std::uint32_t, std::uint16_t, std::uint8_t>(a, stream);
  check_launch("copy_rows");
}

void add_rows(const AddRows& a, cudaStream_t stream) {
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

void convert(void* destination, DType to, const void* source, DType from, std::int64_t count, cudaStream_t stream) {
  switch (from) {
    case DType::f32: convert_from<float>(destination, to, source, count, stream); break;
    case DType::f64: convert_from<double>(destination, to, source, count, stream); break;
    default: throw ArgumentError("convert: found source dtype " + std::string(name_of(from)) + ", expected f32 or f64");
  }
  check_launch("convert");
}

}  // namespace cpnsa::cuda
