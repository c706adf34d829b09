#include "examples/model/all_reduce.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

namespace model {

std::int64_t AllReduce::sum(const TensorView& values) {
  const int ranks = communicator_.size(), own = communicator_.rank();
  if (ranks == 1) return 0;
  constexpr std::int64_t alignment = 64;  // elements
  const std::int64_t count = values.elements();
  const std::int64_t longest = ((count + ranks - 1) / ranks + alignment - 1) / alignment * alignment;
  const auto begin = [&](int rank) { return std::min(count, rank * longest); };
  const auto length = [&](int rank) { return std::min(count, (rank + 1) * longest) - begin(rank); };
  const std::size_t element = cpnsa::size_of(values.dtype);
  const auto part = [&](int rank) {
    return TensorView(static_cast<char*>(values.data) + static_cast<std::size_t>(begin(rank)) * element, values.dtype,
                      {length(rank)});
  };

  const Tensor parts(operations_, values.dtype, {ranks, length(own)});  // the own part of each rank's values
  const auto row = [&](int rank) { return static_cast<char*>(parts.view().data) + rank * part(own).bytes(); };
  std::vector<cpnsa::SendMessage> sends;
  std::vector<cpnsa::ReceiveMessage> receives;
  std::vector<std::size_t> bytes;
  for (int rank = 0; rank < ranks; ++rank) {
    bytes.push_back(part(rank).bytes());
    if (rank == own) continue;
    if (part(rank).bytes() > 0) sends.push_back({rank, part(rank).data, part(rank).bytes()});
    if (part(own).bytes() > 0) receives.push_back({rank, row(rank), part(own).bytes()});
  }
  operations_.device().copy(row(own), part(own).data, part(own).bytes(), operations_.stream());
  communicator_.exchange(sends, receives, operations_.device(), operations_.stream());
  operations_.sum_parts(part(own), parts);
  communicator_.all_gather(part(own).data, values.data, bytes, operations_.device(), operations_.stream());
  const auto others = static_cast<std::size_t>(ranks - 1);
  return static_cast<std::int64_t>(others * part(own).bytes() + values.bytes() - part(own).bytes());
}

std::int64_t AllReduce::sum_on_host(std::span<double> values) {
  const auto ranks = static_cast<std::size_t>(communicator_.size());
  std::vector<double> all(values.size() * ranks);
  communicator_.all_gather_host(values.data(), all.data(), values.size_bytes());
  std::copy_n(all.begin(), values.size(), values.begin());
  for (std::size_t rank = 1; rank < ranks; ++rank)
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += all[rank * values.size() + i];
  return static_cast<std::int64_t>((ranks - 1) * values.size_bytes());
}

}  // namespace model
