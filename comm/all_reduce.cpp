#include "comm/all_reduce.hpp"

#include <cstddef>
#include <vector>

namespace cpnsa::comm {

std::int64_t all_reduce(Communicator& communicator, Device& device, const AllReduce& sum, Stream stream) {
  const int ranks = communicator.size(), rank = communicator.rank();
  const auto bytes = [&](std::int64_t count) { return static_cast<std::size_t>(count) * size_of(sum.dtype); };
  const auto begin = [&](int chunk) { return sum.count * chunk / ranks; };
  const std::int64_t own = begin(rank + 1) - begin(rank);
  auto* const data = static_cast<std::byte*>(sum.data);
  auto* const received = static_cast<std::byte*>(sum.work);  // [ranks - 1, own]

  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  std::vector<std::size_t> chunk_bytes;
  for (int peer = 0; peer < ranks; ++peer) {
    const std::int64_t theirs = begin(peer + 1) - begin(peer);
    chunk_bytes.push_back(bytes(theirs));
    if (peer == rank) continue;
    if (theirs > 0) sends.push_back({peer, data + bytes(begin(peer)), bytes(theirs)});
    if (own > 0) receives.push_back({peer, received + receives.size() * bytes(own), bytes(own)});
  }
  communicator.exchange(sends, receives, device, stream);

  // The sum starts with rank 0's part, so the own part moves aside until its turn.
  auto* const chunk = data + bytes(begin(rank));
  auto* const aside = received + bytes((ranks - 1) * own);
  if (own > 0) {
    device.copy(aside, chunk, bytes(own), stream);
    device.fill_zero(chunk, bytes(own), stream);
    std::size_t next = 0;
    for (int peer = 0; peer < ranks; ++peer) {
      const void* part = peer == rank ? aside : receives[next++].data;
      device.run(AddRows{part, chunk, own, own, own, sum.dtype, sum.one_row}, stream);
    }
  }
  communicator.all_gather(chunk, data, chunk_bytes, device, stream);
  return static_cast<std::int64_t>(bytes((ranks - 1) * own) + bytes(sum.count - own));
}

}  // namespace cpnsa::comm
