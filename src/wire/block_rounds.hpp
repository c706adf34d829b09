#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "src/layer/buffers.hpp"
#include "src/layer/layer_lists.hpp"
#include "src/wire/wire.hpp"

namespace cpnsa {

/// Resources of the block rounds of one kind of pass, forward or backward; every call reuses them.
struct RoundResources {
  /// `list_bytes`: of one schedule's lists.
  RoundResources(Device& device, std::size_t list_bytes)
      : lists(device, list_bytes),
        lists_copied(device),
        waits(device),
        brought{OwnedEvent(device), OwnedEvent(device)},
        returned{OwnedEvent(device), OwnedEvent(device)} {}

  PinnedBuffer lists;       ///< what a call's lists are copied to the device from
  OwnedEvent lists_copied;  ///< keeps the next call from overwriting what is still being copied
  OwnedStream waits;  ///< drains with `lists_copied`, so that the communicator's wait, which has a deadline, serves
  bool lists_in_use = false;
  std::array<OwnedEvent, 2> brought;  ///< of each pool; rounds alternate between them
  std::array<OwnedEvent, 2> returned;
};

/// The selected branch's rounds in one pass: each brings some KV heads' blocks of other ranks to a pool, where a
/// computation reads them. One round is brought while the one before is computed:
///
///     bring the next round (messages) | wait until this one is there | compute | hand its pool over to the next but
///     one
class BlockRounds {
 public:
  struct Pass {
    const planning::BlockSchedule& schedule;
    const ExchangeBuffers& buffers;
    void* saved_blocks;  ///< SavedBuffers::blocks, if saved
    Blocks blocks;       ///< whether the rounds' blocks are received or already there
    ConstKeyValue own;   ///< this rank's keys and values, which it sends blocks of: [rows, G, d]
    Traffic traffic;     ///< what the blocks are counted as
    Stage stage;         ///< what bringing them is timed as
    KeyValue window{};   ///< with Exchange::pull: where in its window each rank shows its keys and values
    const std::uint32_t* needs = nullptr;  ///< with Exchange::pull: this rank's part of the need matrix
  };

  /// Copies the schedule's lists to the device, on `compute`, where the computations run. Waits on the host for the
  /// copies of an earlier call, if they are still under way.
  BlockRounds(Wire& wire, const LayerPlan& layer, const LayerLists& lists, RoundResources& resources, const Pass& pass,
              Stream compute);

  std::size_t count() const { return pass_.schedule.rounds.size(); }
  const BlockLocation* table() const { return table_; }  ///< [B, G], in device memory

  /// Brings a round in early, for the pass that begins with it.
  void bring_first() { bring(0); }
  void bring_last() { bring(count() - 1); }

  /// Calls compute(round, pool) for each round, first to last; `pool` has the round's blocks when the computation runs.
  template <class Compute>
  void first_to_last(const Compute& compute) {
    bring(0);
    for (std::size_t round = 0; round < count(); ++round) {
      if (round + 1 < count()) bring(round + 1);
      wait_for(round);
      compute(round, pool(round));
    }
  }
  /// The same from the last to the first. Rounds that another pass has left in the pools are not brought again.
  template <class Compute>
  void last_to_first(const Compute& compute) {
    bring(count() - 1);
    for (std::size_t round = count(); round-- > 0;) {
      if (round > 0) bring(round - 1);
      wait_for(round);
      compute(round, pool(round));
    }
  }

  /// Sends the gradients of a round's blocks, in `dpool`, back to their owners; what this rank gets back of its own
  /// blocks arrives in `returned`. With Exchange::pull the owners read `dpool` instead, before they meet again.
  void send_back(std::size_t round, const void* dpool, void* returned);
  /// Later work of `compute` runs after a round's gradients have returned.
  void wait_for_returned(std::size_t round);
  /// The own blocks that a round sends, as slots of the send buffer and of what returns.
  ListView<BlockSlot> packed(std::size_t round) const;

 private:
  const BlockLocation* copy_lists();
  void bring(std::size_t round);
  void receive(std::size_t round);
  void pull(std::size_t round);
  void wait_for(std::size_t round);
  void* pool(std::size_t round) const;

  Wire& wire_;
  const LayerPlan& layer_;
  const LayerLists& lists_;
  RoundResources& resources_;
  const Pass pass_;
  Stream compute_;
  const BlockLocation* table_;
  std::array<std::optional<std::size_t>, 2> in_pool_;  ///< the round whose blocks are in each pool, or on their way
};

}  // namespace cpnsa
