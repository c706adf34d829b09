#pragma once

#include "tests/emulation/cuda_vocabulary.hpp"

namespace cub {

/// As far as kernels use it.
template <class Value, int Threads>
class BlockScan {
 public:
  struct TempStorage {
    Value values[Threads];
  };
  explicit BlockScan(TempStorage& storage) : storage_(storage) {}

  void ExclusiveSum(Value own, Value& before, Value& total) {
    const unsigned thread = threadIdx.x;
    storage_.values[thread] = own;
    __syncthreads();
    before = total = 0;
    for (unsigned i = 0; i < Threads; ++i) {
      if (i < thread) before += storage_.values[i];
      total += storage_.values[i];
    }
    __syncthreads();
  }

 private:
  TempStorage& storage_;
};

}  // namespace cub
