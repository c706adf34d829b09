#pragma once

#include <cstdint>

#include "cpnsa/communicator.hpp"

namespace cpnsa::comm {

/// Elements of work memory that all_reduce() needs for `count` elements.
constexpr std::int64_t all_reduce_work(std::int64_t count, int ranks) {
  return count + 2 * ranks;
}

/// The arguments of all_reduce(). All pointers are the device's memory.
struct AllReduce {
  void* data;                  ///< [count], overwritten with the sum over the ranks
  std::int64_t count;          ///< elements, the same on every rank
  DType dtype;                 ///< f32 or f64
  void* work;                  ///< [all_reduce_work(count, ranks)], not data
  ListView<RowRange> one_row;  ///< {{0, 0, 1}}
};

/// Sums over the ranks, in their order: the same bits on every rank and in every run. Each rank sums one chunk of what
/// all ranks have, then the chunks are gathered. Enqueued on `stream`. Returns the bytes that this rank receives.
std::int64_t all_reduce(Communicator& communicator, Device& device, const AllReduce& sum, Stream stream);

}  // namespace cpnsa::comm
