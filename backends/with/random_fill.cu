#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <thrust/execution_policy.h>
#include <thrust/system_error.h>
#include <thrust/tabulate.h>

#include <string>

#include "backends/backends.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::backends {
namespace {

template <class T>
struct ElementAt {
  RandomRows numbers;
  std::int64_t first_row;

  __device__ T operator()(std::int64_t index) const {
    return static_cast<T>(numbers.at(first_row + index / numbers.width, index % numbers.width));
  }
};

template <class T>
void fill(void* destination, const RandomRows& numbers, std::int64_t first_row, std::int64_t rows, Stream stream) {
  auto* const begin = static_cast<T*>(destination);
  thrust::tabulate(thrust::cuda::par_nosync.on(static_cast<cudaStream_t>(stream.handle)), begin,
                   begin + rows * numbers.width, ElementAt<T>{numbers, first_row});
}

}  // namespace

void fill_random(void* destination, DType dtype, const RandomRows& numbers, std::int64_t first_row, std::int64_t rows,
                 Stream stream) {
  try {
    switch (dtype) {
      case DType::bf16: return fill<__nv_bfloat16>(destination, numbers, first_row, rows, stream);
      case DType::f16: return fill<__half>(destination, numbers, first_row, rows, stream);
      default:
        throw UnsupportedError("random numbers: found " + std::string(name_of(dtype)) + ", expected bf16 or f16");
    }
  } catch (const thrust::system_error& error) {
    throw DeviceError(std::string("random numbers: ") + error.what());
  }
}

}  // namespace cpnsa::backends
