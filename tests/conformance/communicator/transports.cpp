#include "tests/conformance/communicator/transports.hpp"

#include <random>

#include "tests/support/device_buffer.hpp"

namespace cpnsa::test {
namespace {

constexpr std::size_t margin = 13;  // poisoned bytes between messages; makes addresses odd

// Several messages in one buffer, as the library packs them.
template <class Message, class SizeOf>
std::vector<Message> lay_out(DeviceBuffer& buffer, int ranks, SizeOf size_of_peer) {
  std::vector<Message> messages;
  std::size_t offset = margin;
  for (int peer = 0; peer < ranks; ++peer) {
    const std::size_t size = size_of_peer(peer);
    if (size > 0) messages.push_back({peer, static_cast<std::byte*>(buffer.data()) + offset, size});
    offset += size + margin;
  }
  return messages;
}

template <class BytesOf>
Bytes content(int ranks, BytesOf bytes_of_peer) {
  const Bytes gap(margin, std::byte{0xff});
  Bytes all = gap;
  for (int peer = 0; peer < ranks; ++peer) {
    const Bytes part = bytes_of_peer(peer);
    all.insert(all.end(), part.begin(), part.end());
    all.insert(all.end(), gap.begin(), gap.end());
  }
  return all;
}

}  // namespace

void TransportTest::run(const Body& body, int min_ranks) {
  for (const DeviceBackend& backend : devices())
    for (const int ranks : GetParam().rank_counts()) {
      if (ranks < min_ranks) continue;
      GetParam().run(ranks, [&](Communicator& communicator) {
        SCOPED_TRACE("device " + backend.name);
        communicator.set_deadline(std::chrono::minutes(1));
        const std::unique_ptr<Device> device = backend.make();
        device->activate();
        ASSERT_EQ(communicator.size(), ranks);
        body(communicator, *device);
      });
    }
}

std::string name_of(const ::testing::TestParamInfo<TransportBackend>& info) {
  return info.param.name;
}

Bytes message(std::uint64_t seed, int from, int to, std::size_t size) {
  std::mt19937_64 random(seed * 1000003 + static_cast<std::uint64_t>(from) * 1009 + static_cast<std::uint64_t>(to));
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

Sizes random_sizes(std::uint64_t seed, int ranks) {
  std::mt19937_64 random(seed);
  Sizes sizes(static_cast<std::size_t>(ranks), std::vector<std::size_t>(static_cast<std::size_t>(ranks)));
  for (std::size_t from = 0; from < sizes.size(); ++from)
    for (std::size_t to = 0; to < sizes.size(); ++to) {
      const std::size_t longest = random() % 4 == 0 ? 20000 : 100;
      if (from != to && random() % 2 == 0) sizes[from][to] = random() % longest;
    }
  return sizes;
}

void check_exchange(Communicator& communicator, Device& device, const Sizes& sizes, std::uint64_t seed) {
  const int rank = communicator.rank(), ranks = communicator.size();
  const auto sent_to = [&](int peer) { return sizes[static_cast<std::size_t>(rank)][static_cast<std::size_t>(peer)]; };
  const auto received_from = [&](int peer) {
    return sizes[static_cast<std::size_t>(peer)][static_cast<std::size_t>(rank)];
  };
  const Bytes sent = content(ranks, [&](int peer) { return message(seed, rank, peer, sent_to(peer)); });
  const Bytes expected = content(ranks, [&](int peer) { return message(seed, peer, rank, received_from(peer)); });

  DeviceBuffer outgoing(device, sent), incoming(device, expected.size());
  communicator.exchange(lay_out<SendMessage>(outgoing, ranks, sent_to),
                        lay_out<ReceiveMessage>(incoming, ranks, received_from), device, Stream{});
  EXPECT_TRUE(incoming.read() == expected) << "rank " << rank << " of " << ranks << ", seed " << seed;
  EXPECT_TRUE(outgoing.read() == sent) << "rank " << rank << " of " << ranks << ", seed " << seed;
}

}  // namespace cpnsa::test
