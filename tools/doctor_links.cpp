#include "tools/doctor_links.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "cpnsa/device_memory.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::tool {
namespace {

constexpr std::size_t small_bytes = 8;

// The partner of a rank in round `round` of a tournament in which everybody meets everybody once; -1 for none.
int partner(int rank, int round, int ranks) {
  const int players = ranks + ranks % 2;  // with an odd number one rank pauses
  const int others = players - 1;
  int opponent = 0;
  if (rank == players - 1)
    opponent = round;
  else if (rank == round)
    opponent = players - 1;
  else
    opponent = ((2 * round - rank) % others + others) % others;
  return opponent < ranks ? opponent : -1;
}

std::byte pattern(int rank, std::size_t i) {
  return static_cast<std::byte>((static_cast<std::size_t>(rank) * 131 + i * 7 + i / 251) & 0xff);
}

void write_pattern(Device& device, Stream stream, void* destination, int rank, std::size_t bytes) {
  std::vector<std::byte> host(bytes);
  for (std::size_t i = 0; i < bytes; ++i) host[i] = pattern(rank, i);
  device.copy(destination, host.data(), bytes, stream);
  device.synchronize(stream);
}

bool holds_pattern(Device& device, Stream stream, const void* source, int rank, std::size_t bytes) {
  std::vector<std::byte> host(bytes);
  device.copy(host.data(), source, bytes, stream);
  device.synchronize(stream);
  for (std::size_t i = 0; i < bytes; ++i)
    if (host[i] != pattern(rank, i)) return false;
  return true;
}

// The fastest of the repetitions: others waited for a processor.
double fastest(Communicator& control, std::int64_t iterations, const std::function<void()>& step) {
  double best = std::numeric_limits<double>::infinity();
  for (std::int64_t i = -1; i < iterations; ++i) {  // the first makes connections
    control.barrier();
    const auto begin = std::chrono::steady_clock::now();
    step();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (i >= 0) best = std::min(best, taken.count());
  }
  return best;
}

template <class Item>
std::vector<Item> gather(Communicator& control, const Item& own) {
  std::vector<Item> all(static_cast<std::size_t>(control.size()));
  control.all_gather_host(&own, all.data(), sizeof own);
  return all;
}

}  // namespace

std::vector<Link> exercise_links(Communicator& communicator, Communicator& control, Device& device,
                                 const std::vector<std::string>& hosts, std::int64_t bytes, std::int64_t iterations) {
  const int rank = communicator.rank(), ranks = communicator.size();
  const auto large = static_cast<std::size_t>(bytes);
  const OwnedStream stream(device);
  DeviceBuffer sent, received;
  agree_on(control, "allocate messages", [&] {
    sent = DeviceBuffer(device, large);
    received = DeviceBuffer(device, large);
    write_pattern(device, stream.get(), sent.data(), rank, large);
  });
  const auto swap = [&](int peer, std::size_t size) {
    const SendMessage send{peer, sent.data(), size};
    const ReceiveMessage receive{peer, received.data(), size};
    const std::size_t count = peer < 0 ? 0 : 1;
    communicator.exchange({&send, count}, {&receive, count}, device, stream.get());
    communicator.wait(device, stream.get());
  };

  std::vector<Link> links;
  const int rounds = ranks < 2 ? 0 : ranks + ranks % 2 - 1;
  for (int round = 0; round < rounds; ++round) {
    const int peer = partner(rank, round, ranks);
    struct Measured {
      double small = 0;
      double large = 0;
      bool right = true;
    } own;
    own.small = fastest(control, iterations, [&] { swap(peer, std::min(small_bytes, large)); });
    agree_on(control, "clear", [&] { device.fill_zero(received.data(), large, stream.get()); });
    own.large = fastest(control, iterations, [&] { swap(peer, large); });
    agree_on(control, "compare", [&] {
      if (peer >= 0) own.right = holds_pattern(device, stream.get(), received.data(), peer, large);
    });
    const std::vector<Measured> all = gather(control, own);
    for (int first = 0; first < ranks; ++first) {
      const int second = partner(first, round, ranks);
      if (second <= first) continue;
      const Measured &a = all[static_cast<std::size_t>(first)], &b = all[static_cast<std::size_t>(second)];
      links.push_back({first, second, hosts[static_cast<std::size_t>(first)] == hosts[static_cast<std::size_t>(second)],
                       a.right && b.right, static_cast<double>(bytes) / std::max(a.large, b.large),
                       std::max(a.small, b.small)});
    }
  }
  std::sort(links.begin(), links.end(),
            [](const Link& a, const Link& b) { return std::pair(a.first, a.second) < std::pair(b.first, b.second); });
  return links;
}

std::vector<Collective> exercise_collectives(Communicator& communicator, Communicator& control, Device& device,
                                             std::int64_t bytes, std::int64_t iterations) {
  const int rank = communicator.rank(), ranks = communicator.size();
  const auto part = static_cast<std::size_t>(bytes) / static_cast<std::size_t>(ranks) + 1;
  const OwnedStream stream(device);
  DeviceBuffer own, all;
  std::vector<std::byte> host_own(part), host_all(part * static_cast<std::size_t>(ranks));
  agree_on(control, "allocate parts", [&] {
    own = DeviceBuffer(device, part);
    all = DeviceBuffer(device, part * static_cast<std::size_t>(ranks));
    write_pattern(device, stream.get(), own.data(), rank, part);
    for (std::size_t i = 0; i < part; ++i) host_own[i] = pattern(rank, i);
  });
  const std::vector<std::size_t> parts(static_cast<std::size_t>(ranks), part);
  std::vector<Collective> collectives;
  const auto add = [&](const char* name, double received, const std::function<void()>& step,
                       const std::function<bool()>& right) {
    struct Measured {
      double seconds = 0;
      bool right = true;
    } measured;
    measured.seconds = fastest(control, iterations, step);
    agree_on(control, "compare", [&] { measured.right = right(); });
    Collective collective{name, received, 0, true};
    for (const Measured& of_rank : gather(control, measured)) {
      collective.seconds = std::max(collective.seconds, of_rank.seconds);
      collective.right = collective.right && of_rank.right;
    }
    collectives.push_back(collective);
  };
  const double others = static_cast<double>(part) * (ranks - 1);
  const auto* gathered = static_cast<const std::byte*>(all.data());
  add(
      "all_gather", others,
      [&] {
        communicator.all_gather(own.data(), all.data(), parts, device, stream.get());
        communicator.wait(device, stream.get());
      },
      [&] {
        bool right = true;
        for (int peer = 0; peer < ranks; ++peer)
          right = right &&
                  holds_pattern(device, stream.get(), gathered + static_cast<std::size_t>(peer) * part, peer, part);
        return right;
      });
  add(
      "all_gather_host", others, [&] { communicator.all_gather_host(host_own.data(), host_all.data(), part); },
      [&] {
        for (int peer = 0; peer < ranks; ++peer)
          for (std::size_t i = 0; i < part; ++i)
            if (host_all[static_cast<std::size_t>(peer) * part + i] != pattern(peer, i)) return false;
        return true;
      });
  add(
      "barrier", 0, [&] { communicator.barrier(); }, [] { return true; });
  return collectives;
}

}  // namespace cpnsa::tool
