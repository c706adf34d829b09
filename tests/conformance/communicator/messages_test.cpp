// The data that the calls of a Communicator move, once and repeatedly.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "comm/all_reduce.hpp"
#include "tests/conformance/communicator/transports.hpp"
#include "tests/support/device_buffer.hpp"

namespace cpnsa::test {
namespace {

class Messages : public TransportTest {};
INSTANTIATE_TEST_SUITE_P(Communicator, Messages, ::testing::ValuesIn(transports()), name_of);

TEST_P(Messages, ExchangeMovesRandomPatterns) {
  run([](Communicator& communicator, Device& device) {
    for (std::uint64_t seed = 1; seed <= 10; ++seed)
      check_exchange(communicator, device, random_sizes(seed, communicator.size()), seed);
  });
}

TEST_P(Messages, ExchangeMovesLongMessages) {
  run([](Communicator& communicator, Device& device) {
    Sizes sizes = random_sizes(1, communicator.size());
    for (std::size_t from = 0; from < sizes.size(); ++from)
      for (std::size_t to = 0; to < sizes.size(); ++to) sizes[from][to] = from == to ? 0 : 300'000 + 1000 * from + to;
    check_exchange(communicator, device, sizes, 1);
  });
}

TEST_P(Messages, ExchangeWithoutMessagesReturns) {
  run([](Communicator& communicator, Device& device) {
    for (int repetition = 0; repetition < 3; ++repetition) communicator.exchange({}, {}, device, Stream{});
    check_exchange(communicator, device, random_sizes(1, communicator.size()), 1);
  });
}

TEST_P(Messages, ThousandSmallExchangesStayInOrder) {
  run([](Communicator& communicator, Device& device) {
    const int rank = communicator.rank(), ranks = communicator.size();
    const int next = (rank + 1) % ranks, previous = (rank + ranks - 1) % ranks;
    DeviceBuffer outgoing(device, sizeof(int)), incoming(device, sizeof(int));
    for (int repetition = 0; repetition < 1000; ++repetition) {
      const int sent = repetition * 100 + rank, expected = repetition * 100 + previous;
      device.copy(outgoing.data(), &sent, sizeof sent, Stream{});
      const SendMessage send{next, outgoing.data(), sizeof sent};
      const ReceiveMessage receive{previous, incoming.data(), sizeof sent};
      const std::size_t messages = ranks > 1 ? 1 : 0;
      communicator.exchange({&send, messages}, {&receive, messages}, device, Stream{});
      if (messages == 0) continue;
      int found = -1;
      device.copy(&found, incoming.data(), sizeof found, Stream{});
      device.synchronize(Stream{});
      ASSERT_EQ(found, expected) << "rank " << rank << " of " << ranks << ", exchange " << repetition;
    }
  });
}

void check_all_gather(Communicator& communicator, Device& device, const std::vector<std::size_t>& bytes,
                      bool in_place) {
  const int rank = communicator.rank();
  Bytes expected;
  for (int peer = 0; peer < communicator.size(); ++peer) {
    const Bytes part = message(5, peer, 0, bytes[static_cast<std::size_t>(peer)]);
    expected.insert(expected.end(), part.begin(), part.end());
  }
  const std::size_t own_bytes = bytes[static_cast<std::size_t>(rank)];
  const std::size_t own_offset = std::accumulate(bytes.begin(), bytes.begin() + rank, std::size_t{0});
  DeviceBuffer all(device, expected.size()), apart(device, own_bytes);
  std::byte* const own = static_cast<std::byte*>(in_place ? all.data() : apart.data()) + (in_place ? own_offset : 0);
  device.copy(own, expected.data() + own_offset, own_bytes, Stream{});
  communicator.all_gather(own, all.data(), bytes, device, Stream{});
  EXPECT_TRUE(all.read() == expected) << "rank " << rank << " of " << bytes.size();
}

TEST_P(Messages, AllGatherTakesAnySizesInPlaceOrNot) {
  run([](Communicator& communicator, Device& device) {
    std::mt19937_64 random(11);
    for (int repetition = 0; repetition < 10; ++repetition) {
      std::vector<std::size_t> bytes(static_cast<std::size_t>(communicator.size()));
      for (std::size_t& size : bytes) size = random() % 3 == 0 ? 0 : random() % 5000;
      check_all_gather(communicator, device, bytes, false);
      check_all_gather(communicator, device, bytes, true);
    }
  });
}

TEST_P(Messages, AllGatherTakesEqualSizesAndNone) {
  run([](Communicator& communicator, Device& device) {
    for (const std::size_t size : {0, 1, 4096, 100'001}) {
      const std::vector<std::size_t> bytes(static_cast<std::size_t>(communicator.size()), size);
      check_all_gather(communicator, device, bytes, false);
      check_all_gather(communicator, device, bytes, true);
    }
  });
}

TEST_P(Messages, AllReduceSumsInRankOrder) {
  run([](Communicator& communicator, Device& device) {
    const DeviceListBuffer<RowRange> one_row(device, {{0, 0, 1}});
    const auto part = [](int rank, std::int64_t i) {
      return static_cast<float>(1 + rank) / static_cast<float>(3 + i % 1000);
    };
    for (const std::int64_t count : {0, 1, 7, 100, 5000}) {
      Values own, expected;
      for (std::int64_t i = 0; i < count; ++i) {
        own.push_back(part(communicator.rank(), i));
        float sum = 0;
        for (int rank = 0; rank < communicator.size(); ++rank) sum += part(rank, i);
        expected.push_back(sum);
      }
      const std::int64_t work_count = comm::all_reduce_work(count, communicator.size());
      const DeviceBuffer data(device, DType::f32, own);
      const DeviceBuffer work(device, static_cast<std::size_t>(work_count) * sizeof(float));
      const std::int64_t received = comm::all_reduce(
          communicator, device,
          {.data = data.data(), .count = count, .dtype = DType::f32, .work = work.data(), .one_row = one_row.view()},
          Stream{});
      communicator.wait(device, Stream{});
      EXPECT_EQ(data.values(DType::f32), expected) << count << " elements";
      if (communicator.size() == 1)
        EXPECT_EQ(received, 0);
      else
        EXPECT_GE(received, count);
    }
  });
}

TEST_P(Messages, AllGatherHostConcatenatesInRankOrder) {
  run([](Communicator& communicator, Device&) {
    for (const std::size_t size : {0, 1, 1024, 70'000}) {
      Bytes expected, all(size * static_cast<std::size_t>(communicator.size()), std::byte{0xff});
      for (int peer = 0; peer < communicator.size(); ++peer) {
        const Bytes part = message(3, peer, 0, size);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      const Bytes own = message(3, communicator.rank(), 0, size);
      communicator.all_gather_host(own.data(), all.data(), size);
      EXPECT_TRUE(all == expected) << "rank " << communicator.rank() << ", " << size << " bytes";

      std::fill(all.begin(), all.end(), std::byte{0xff});
      std::byte* const own_part = all.data() + size * static_cast<std::size_t>(communicator.rank());
      std::copy(own.begin(), own.end(), own_part);
      communicator.all_gather_host(own_part, all.data(), size);
      EXPECT_TRUE(all == expected) << "rank " << communicator.rank() << ", in place";
    }
  });
}

// The ranks of a test are on one host and share its monotonic clock.
TEST_P(Messages, NoRankLeavesABarrierBeforeAllHaveCome) {
  run([](Communicator& communicator, Device&) {
    const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
    for (int late = 0; late < communicator.size(); ++late) {
      if (communicator.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      const std::int64_t came = now();
      communicator.barrier();
      const std::int64_t left = now();
      std::vector<std::int64_t> all(static_cast<std::size_t>(communicator.size()));
      communicator.all_gather_host(&came, all.data(), sizeof came);
      EXPECT_GE(left, *std::max_element(all.begin(), all.end()));
    }
  });
}

TEST_P(Messages, CallsOfAllKindsFollowEachOther) {
  run([](Communicator& communicator, Device& device) {
    const std::vector<std::size_t> bytes(static_cast<std::size_t>(communicator.size()), 100);
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      check_exchange(communicator, device, random_sizes(seed, communicator.size()), seed);
      communicator.barrier();
      agree(communicator, "round " + std::to_string(seed));
      check_all_gather(communicator, device, bytes, true);
    }
  });
}

}  // namespace
}  // namespace cpnsa::test
