// The exchange of selected blocks, simulated without devices: a block is a number, a message copies numbers.

#include "src/planning/block_exchange.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "src/planning/plan.hpp"
#include "tests/support/partitions.hpp"

namespace cpnsa::test {
namespace {

using planning::BlockSchedule;
using planning::ExchangeRound;
using planning::NeedMatrix;
using planning::PeerRange;
using planning::Plan;

using Pair = std::int64_t;  // block * G + group

// The plans of all ranks, and the (block, KV head) pairs that each rank's queries selected, at random among causal
// blocks.
struct World {
  World(const Problem& problem, const Partition& partition, double share) : config(problem.config) {
    for (int rank = 0; rank < partition.ranks(); ++rank)
      plans.push_back(std::make_unique<Plan>(config, partition, rank, AttentionOptions{.gradient_dtype = {}}));
    const planning::Layout& layout = plans[0]->layout;
    needs = NeedMatrix(partition.ranks(), layout.blocks, config.num_kv_heads);
    wanted.resize(plans.size());
    Random random(problem.seed);
    for (const auto& plan : plans)
      for (const Segment& segment : plan->segments)
        for (std::int64_t position = segment.position; position < segment.position + segment.rows; ++position)
          for (std::int64_t block = 0; block <= position / config.select_block; ++block)
            for (std::int64_t group = 0; group < config.num_kv_heads; ++group)
              if (random.chance(share)) want(plan->rank, (segment.block + block) * config.num_kv_heads + group);
  }

  void want(int rank, Pair pair) {
    const auto words = needs.words().size() / plans.size();
    needs.words()[static_cast<std::size_t>(rank) * words + static_cast<std::size_t>(pair / 32)] |= 1u << (pair % 32);
    wanted[static_cast<std::size_t>(rank)].insert(pair);
  }

  std::vector<BlockSchedule> schedules(Exchange exchange) const {
    std::vector<BlockSchedule> result;
    for (const auto& plan : plans)
      result.push_back(exchange == Exchange::gather ? plan->blocks.gather()
                       : exchange == Exchange::pull ? plan->blocks.pull(needs)
                                                    : plan->blocks.fetch(needs));
    return result;
  }

  // The pair whose first own row on a rank is `row`.
  Pair owned(int rank, std::int64_t row, std::int64_t group) const {
    const planning::Layout& layout = plans[0]->layout;
    for (std::int64_t block = 0; block < layout.blocks; ++block) {
      const auto index = static_cast<std::size_t>(block);
      if (layout.block_owner[index] == rank && layout.block_row[index] == row)
        return block * config.num_kv_heads + group;
    }
    ADD_FAILURE() << "rank " << rank << " has no block at row " << row;
    return -1;
  }

  std::vector<Pair> sent(std::size_t rank, const ExchangeRound& round) const {
    std::vector<Pair> pairs(round.packed.size(), -1);
    for (const BlockSlot& item : round.packed) {
      Pair& slot = pairs.at(static_cast<std::size_t>(item.slot));
      EXPECT_EQ(slot, -1) << "a slot of the send buffer is written twice";
      EXPECT_GE(item.group, round.group_begin);
      EXPECT_LT(item.group, round.group_end);
      slot = owned(static_cast<int>(rank), item.row, item.group);
    }
    return pairs;
  }

  Config config;
  std::vector<std::unique_ptr<Plan>> plans;
  NeedMatrix needs;
  std::vector<std::set<Pair>> wanted;  // pairs that each rank's queries selected
};

std::int64_t covered(const std::vector<PeerRange>& ranges) {
  std::int64_t next = 0;
  int peer = -1;
  for (const PeerRange& range : ranges) {
    EXPECT_GT(range.peer, peer) << "peers ascend";
    EXPECT_EQ(range.first, next);
    EXPECT_GT(range.count, 0) << "empty messages are left out";
    peer = range.peer;
    next += range.count;
  }
  return next;
}

const PeerRange* to_peer(const std::vector<PeerRange>& ranges, std::size_t peer) {
  for (const PeerRange& range : ranges)
    if (range.peer == static_cast<int>(peer)) return &range;
  return nullptr;
}

// The pair in each slot of each rank's pool after the round's messages.
std::vector<std::vector<Pair>> deliver(const World& world, const std::vector<BlockSchedule>& schedules,
                                       std::size_t round) {
  const std::size_t ranks = schedules.size();
  std::vector<std::vector<Pair>> pools(ranks);
  std::size_t messages_sent = 0, messages_received = 0;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const ExchangeRound& now = schedules[rank].rounds[round];
    EXPECT_EQ(covered(now.sends), static_cast<std::int64_t>(now.packed.size()));
    EXPECT_EQ(covered(now.receives), now.received);
    EXPECT_LE(now.received, world.plans[rank]->blocks.pool_slots());
    EXPECT_LE(static_cast<std::int64_t>(now.packed.size()), world.plans[rank]->blocks.send_slots());
    messages_sent += now.sends.size();
    messages_received += now.receives.size();
    pools[rank].assign(static_cast<std::size_t>(now.received), -1);
    for (const PeerRange& receive : now.receives) {
      const auto peer = static_cast<std::size_t>(receive.peer);
      EXPECT_NE(peer, rank);
      const PeerRange* send = to_peer(schedules[peer].rounds[round].sends, rank);
      if (!send || send->count != receive.count) {
        ADD_FAILURE() << "rank " << rank << " expects a message of rank " << peer << " that is not sent alike";
        return pools;
      }
      const std::vector<Pair> pairs = world.sent(peer, schedules[peer].rounds[round]);
      for (std::int64_t i = 0; i < receive.count; ++i)
        pools[rank][static_cast<std::size_t>(receive.first + i)] = pairs[static_cast<std::size_t>(send->first + i)];
    }
  }
  EXPECT_EQ(messages_sent, messages_received);
  return pools;
}

// Every pair that a rank's queries selected is read exactly once: in the round of its group, at the table's location.
void check_computed(const World& world, const std::vector<BlockSchedule>& schedules) {
  const std::int64_t groups = world.config.num_kv_heads;
  std::vector<std::map<Pair, int>> reads(schedules.size());
  std::int64_t group = 0;
  for (std::size_t round = 0; round < schedules[0].rounds.size(); ++round) {
    const auto pools = deliver(world, schedules, round);
    const auto [begin, end] = std::pair{schedules[0].rounds[round].group_begin, schedules[0].rounds[round].group_end};
    ASSERT_EQ(begin, group) << "rounds run over the groups in order";
    ASSERT_GT(end, begin);
    group = end;
    for (std::size_t rank = 0; rank < schedules.size(); ++rank) {
      ASSERT_EQ(schedules[rank].rounds.size(), schedules[0].rounds.size()) << "all ranks form the same rounds";
      ASSERT_EQ(schedules[rank].rounds[round].group_begin, begin);
      ASSERT_EQ(schedules[rank].rounds[round].group_end, end);
      for (const Pair pair : world.wanted[rank]) {
        if (pair % groups < begin || pair % groups >= end) continue;
        const BlockLocation where = schedules[rank].table.at(static_cast<std::size_t>(pair));
        const Pair found = where >= 0 ? world.owned(static_cast<int>(rank), where, pair % groups)
                                      : pools[rank].at(static_cast<std::size_t>(-1 - where));
        ASSERT_EQ(found, pair);
        ++reads[rank][pair];
      }
    }
  }
  ASSERT_EQ(group, groups);
  for (std::size_t rank = 0; rank < schedules.size(); ++rank) {
    ASSERT_EQ(reads[rank].size(), world.wanted[rank].size());
    for (const auto& [pair, count] : reads[rank]) ASSERT_EQ(count, 1) << "pair " << pair;
  }
}

// The gradients of all pool slots are sent back along the reversed lists: the owner of a pair gets one gradient from
// each rank that received the pair.
void check_returned(const World& world, const std::vector<BlockSchedule>& schedules) {
  std::map<Pair, std::multiset<std::size_t>> returned, received;
  for (std::size_t round = 0; round < schedules[0].rounds.size(); ++round) {
    const auto pools = deliver(world, schedules, round);
    for (std::size_t rank = 0; rank < schedules.size(); ++rank) {
      for (const Pair pair : pools[rank]) received[pair].insert(rank);
      const ExchangeRound& now = schedules[rank].rounds[round];
      const std::vector<Pair> slots = world.sent(rank, now);
      for (const PeerRange& send : now.sends) {
        const auto peer = static_cast<std::size_t>(send.peer);
        const PeerRange* back = to_peer(schedules[peer].rounds[round].receives, rank);
        ASSERT_TRUE(back);
        std::set<Pair> of_peer;
        for (std::int64_t i = 0; i < send.count; ++i) {
          const Pair pair = slots[static_cast<std::size_t>(send.first + i)];
          ASSERT_EQ(pools[peer][static_cast<std::size_t>(back->first + i)], pair);
          ASSERT_TRUE(of_peer.insert(pair).second) << "a list of additions names a block twice";
          returned[pair].insert(peer);
        }
      }
    }
  }
  ASSERT_EQ(returned, received);
}

void check_amounts(const World& world, const std::vector<BlockSchedule>& schedules, Exchange exchange) {
  const Config& config = world.config;
  const planning::Layout& layout = world.plans[0]->layout;
  const std::int64_t slot_elements = config.select_block * (config.head_dim_qk + config.head_dim_v);
  for (std::size_t rank = 0; rank < schedules.size(); ++rank) {
    const Plan& plan = *world.plans[rank];
    std::set<Pair> expected;
    if (exchange == Exchange::gather) {
      for (const std::int64_t block : layout.reachable_blocks(static_cast<int>(rank)))
        for (std::int64_t group = 0; group < config.num_kv_heads; ++group)
          expected.insert(block * config.num_kv_heads + group);
    } else {
      for (const Pair pair : world.wanted[rank])
        if (layout.block_owner[static_cast<std::size_t>(pair / config.num_kv_heads)] != static_cast<int>(rank))
          expected.insert(pair);
      ASSERT_EQ(plan.blocks.needed(world.needs, static_cast<int>(rank)), static_cast<std::int64_t>(expected.size()));
    }
    std::set<Pair> received;
    std::int64_t slots = 0, sent = 0;
    for (std::size_t round = 0; round < schedules[rank].rounds.size(); ++round) {
      const auto pool = deliver(world, schedules, round)[rank];
      received.insert(pool.begin(), pool.end());
      slots += static_cast<std::int64_t>(pool.size());
      sent += static_cast<std::int64_t>(schedules[rank].rounds[round].packed.size());
    }
    ASSERT_EQ(received, expected);
    ASSERT_EQ(slots, static_cast<std::int64_t>(expected.size())) << "no pair travels twice";
    ASSERT_EQ(schedules[rank].received, slots);

    const auto forward = plan.bytes_forward(schedules[rank]), backward = plan.bytes_backward(schedules[rank]);
    const auto of = [](const auto& bytes, Traffic kind) { return bytes[static_cast<std::size_t>(kind)]; };
    ASSERT_EQ(of(forward, Traffic::blocks), slots * slot_elements * 4);
    ASSERT_EQ(of(backward, Traffic::refetched_blocks), slots * slot_elements * 4);
    ASSERT_EQ(of(backward, Traffic::block_gradients), sent * slot_elements * 4);
  }
}

// Rounds are as wide as possible: no two consecutive rounds could have been one.
void check_rounds_are_full(const World& world, const std::vector<BlockSchedule>& schedules) {
  for (std::size_t round = 1; round < schedules[0].rounds.size(); ++round) {
    bool one_more_group_fits = true;
    const std::int64_t group = schedules[0].rounds[round].group_begin;
    for (std::size_t rank = 0; rank < schedules.size(); ++rank) {
      const auto of_group = [&](const std::vector<Pair>& pairs) {
        return std::count_if(pairs.begin(), pairs.end(),
                             [&](Pair pair) { return pair % world.config.num_kv_heads == group; });
      };
      const ExchangeRound& before = schedules[rank].rounds[round - 1];
      const std::int64_t sent = of_group(world.sent(rank, schedules[rank].rounds[round]));
      const std::int64_t received = of_group(deliver(world, schedules, round)[rank]);
      one_more_group_fits =
          one_more_group_fits && before.received + received <= world.plans[rank]->blocks.pool_slots() &&
          static_cast<std::int64_t>(before.packed.size()) + sent <= world.plans[rank]->blocks.send_slots();
    }
    ASSERT_FALSE(one_more_group_fits) << "round " << round;
  }
}

template <class Check>
void for_each_world(Check check) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const Problem problem = random_problem(seed, 100);
    SCOPED_TRACE(describe(problem));
    for (const int ranks : {1, 2, 3, 4, 8})
      for (const PartitionKind kind : partition_kinds) {
        const double share = std::vector{0.0, 0.002, 0.03, 1.0}[(seed + static_cast<std::uint64_t>(ranks)) % 4];
        SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks, share " + std::to_string(share));
        check(World(problem, make_partition(kind, problem, ranks), share));
        if (testing::Test::HasFailure()) return;
      }
  }
}

TEST(BlockExchange, EveryPairIsComputedOnceAndEveryGradientReturnsOnce) {
  for_each_world([](const World& world) {
    for (const Exchange exchange : {Exchange::fetch, Exchange::gather, Exchange::pull}) {
      SCOPED_TRACE(name_of(exchange));
      const auto schedules = world.schedules(exchange);
      check_computed(world, schedules);
      check_returned(world, schedules);
    }
  });
}

TEST(BlockExchange, MovesWhatWasSelectedOrWhatIsReachable) {
  for_each_world([](const World& world) {
    for (const Exchange exchange : {Exchange::fetch, Exchange::gather, Exchange::pull}) {
      SCOPED_TRACE(name_of(exchange));
      check_amounts(world, world.schedules(exchange), exchange);
    }
  });
}

// Where a rank puts a block that it pulls follows from the plan alone: the reader's list, the owner's list and the
// table of every rank say the same.
TEST(BlockExchange, ReadersAndOwnersOfPulledBlocksAgreeOnSlots) {
  for_each_world([](const World& world) {
    const planning::Layout& layout = world.plans[0]->layout;
    using Item = std::array<std::int64_t, 5>;  // owner, reader, block, its row, slot
    std::multiset<Item> of_readers, of_owners;
    for (const auto& plan : world.plans) {
      const std::vector<PulledBlock> pulled = plan->blocks.pulled(), readers = plan->blocks.readers();
      const BlockSchedule gathered = plan->blocks.gather();
      ASSERT_EQ(pulled.size(), layout.reachable_blocks(plan->rank).size());
      ASSERT_EQ(static_cast<std::int64_t>(pulled.size()), plan->blocks.pool_slots());
      ASSERT_LE(plan->blocks.pool_slots(), plan->blocks.max_pool_slots());
      for (const PulledBlock& item : pulled) {
        of_readers.insert({item.rank, plan->rank, item.block, item.row, item.slot});
        for (std::int64_t group = 0; group < world.config.num_kv_heads; ++group) {
          const auto pair = static_cast<std::size_t>(item.block * world.config.num_kv_heads + group);
          ASSERT_EQ(gathered.table[pair], -1 - item.slot);
        }
      }
      for (std::size_t i = 0; i < readers.size(); ++i) {
        const PulledBlock& item = readers[i];
        of_owners.insert({plan->rank, item.rank, item.block, item.row, item.slot});
        if (i == 0) continue;
        const PulledBlock& before = readers[i - 1];
        ASSERT_LT(std::pair(before.block, before.rank), std::pair(item.block, item.rank)) << "the order of additions";
      }
    }
    ASSERT_EQ(of_readers, of_owners);
    for (const Item& item : of_owners) {
      ASSERT_EQ(item[0], layout.block_owner[static_cast<std::size_t>(item[2])]);
      ASSERT_EQ(item[3], layout.block_row[static_cast<std::size_t>(item[2])]);
    }
  });
}

TEST(BlockExchange, PullsOneHeadARound) {
  for_each_world([](const World& world) {
    for (const BlockSchedule& schedule : world.schedules(Exchange::pull))
      ASSERT_EQ(schedule.rounds.size(), static_cast<std::size_t>(world.config.num_kv_heads));
  });
}

TEST(BlockExchange, HeadsShareRoundsWhereThePoolsSuffice) {
  for_each_world([](const World& world) { check_rounds_are_full(world, world.schedules(Exchange::fetch)); });
}

TEST(BlockExchange, AllRanksChooseAlike) {
  for_each_world([](const World& world) {
    for (const auto& plan : world.plans) {
      ASSERT_EQ(plan->blocks.choose(world.needs), world.plans[0]->blocks.choose(world.needs));
      ASSERT_EQ(plan->blocks.any_reachable(), world.plans[0]->blocks.any_reachable());
    }
  });
}

// One document of 8 blocks on 2 ranks: rank 1 can reach the 4 blocks of rank 0.
Problem two_halves() {
  Config config;
  config.num_q_heads = config.num_kv_heads = 4;
  config.head_dim_qk = config.head_dim_v = 2;
  config.compress_block = config.compress_stride = config.select_block = 4;
  config.select_count = 3;
  config.init_blocks = config.local_blocks = 1;
  config.window = 4;
  config.compressor = Compressor::mean;
  return make_problem(config, {0, 32}, 1);
}

TEST(BlockExchange, ChoosesByTheGreatestShare) {
  const Problem problem = two_halves();
  const Partition partition = make_partition(PartitionKind::contiguous, problem, 2);
  World none(problem, partition, 0.0), all(problem, partition, 1.0), half(problem, partition, 0.0);
  for (Pair pair = 0; pair < 8; ++pair) half.want(1, pair);
  EXPECT_EQ(none.plans[0]->blocks.choose(none.needs), Exchange::fetch);
  EXPECT_EQ(half.plans[0]->blocks.choose(half.needs), Exchange::fetch);
  EXPECT_EQ(all.plans[0]->blocks.choose(all.needs), Exchange::gather);
}

TEST(BlockExchange, GatherTakesOneHeadARoundAndFetchAsManyAsFit) {
  const Problem problem = two_halves();
  const Partition partition = make_partition(PartitionKind::contiguous, problem, 2);
  World world(problem, partition, 0.0);
  for (Pair pair = 0; pair < 4; ++pair) world.want(1, pair);  // block 0 of all four groups fills a pool
  EXPECT_EQ(world.schedules(Exchange::gather)[1].rounds.size(), 4u);
  EXPECT_EQ(world.schedules(Exchange::gather)[1].received, 16);
  EXPECT_EQ(world.schedules(Exchange::fetch)[1].rounds.size(), 1u);
  EXPECT_EQ(world.schedules(Exchange::fetch)[1].received, 4);
  world.want(1, 4);  // block 1 of group 0: five slots do not fit into four
  EXPECT_EQ(world.schedules(Exchange::fetch)[1].rounds.size(), 2u);
  EXPECT_EQ(world.plans[1]->blocks.pool_slots(), 4);
  EXPECT_EQ(world.plans[0]->blocks.send_slots(), 4);
}

}  // namespace
}  // namespace cpnsa::test
