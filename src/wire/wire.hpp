#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/device_memory.hpp"
#include "cpnsa/pull_ops.hpp"
#include "src/planning/peer_range.hpp"
#include "src/wire/stage_timer.hpp"

namespace cpnsa {

/// One phase of messages, or of reads where windows are open. Items are `item_bytes` long.
struct Phase {
  Traffic traffic;
  std::span<const planning::PeerRange> sends;  ///< of `send_base`, which lies in the window if one is open
  const void* send_base;
  std::span<const planning::PeerRange> receives;  ///< into `receive_base`
  void* receive_base;
  std::size_t item_bytes;
  std::span<const std::int64_t> sources{};  ///< for reads: of each receive, its first item in the peer's `send_base`
};

/// How a layer's steps reach the other ranks: the streams that they run on besides the caller's, and what of the
/// traffic and the time is counted. It knows nothing of attention.
///
/// A step enqueues computations on the caller's stream, and messages on stream(), so that the two overlap. After
/// open_window() it reads the other ranks' memory in place of sending messages.
class Wire {
 public:
  using ByTraffic = std::array<std::int64_t, traffic_kinds>;

  /// Both must outlive it. `timing`: whether timed() measures.
  Wire(Device& device, Communicator& communicator, bool timing);

  Stream stream() const { return stream_.get(); }
  Stream side_stream() const { return side_stream_.get(); }  ///< of computations that leave room on the device

  /// Later work of `to` runs after the present end of `from`.
  void hand_over(Stream from, Stream to);

  /// On stream(): sends what the other ranks receive, and receives what they send.
  void exchange(const Phase& phase);
  /// On stream(): gathers all ranks' parts, of `bytes`, in rank order. The own part is already at its position in
  /// `all`, which lies in the window if one is open.
  void all_gather(Traffic traffic, void* all, std::span<const std::size_t> bytes);

  /// Shows the other ranks the window at `own`, until the step ends; its parts have the same offsets on every rank.
  /// Collective, on the host. Every read is between two calls of meet(), and a step that opened a window ends with one.
  void open_window(const void* own);
  /// On stream(): later work runs after all that precedes the ranks' calls of meet(). Does nothing without a window.
  void meet(Traffic traffic);
  /// The array in every rank's window that this rank has at `own`.
  RankPointers in_windows(const void* own) const;
  /// `enqueue` enqueues reads of windows on `on`, which stream() then follows.
  void read(Stream on, const std::function<void()>& enqueue);

  /// Times a stage on a stream, until the scope ends.
  [[nodiscard]] StageTimer::Scope timed(Stage stage, Stream on) { return {timer_, stage, on}; }
  std::array<double, stage_count> seconds() const { return timer_.seconds(); }
  std::vector<StageSpan> spans() const { return timer_.spans(); }

  /// Begins a step on the caller's stream: forgets what was counted and timed.
  void reset(Stream compute);
  void count_received(Traffic traffic, std::int64_t bytes);
  /// Counts the agreements that a step begins with, and what the plan says that the step receives.
  void account(const ByTraffic& predicted, int agreements);
  const ByTraffic& received() const { return received_; }
  const ByTraffic& predicted() const { return predicted_; }

  /// Runs a step, which enqueues on `compute`; if it fails on this rank alone, aborts the communicator to release the
  /// other ranks.
  void run(Stream compute, const std::function<void()>& step);
  /// Waits on the host for all steps, as long as the communicator's deadline lets it.
  void wait_for_steps();
  /// Waits for all work, up to the deadline and a little more. True if no work is left running.
  bool drained() noexcept;

  Device& device;
  Communicator& communicator;
  OwnedEvent summary_halo_arrived;
  OwnedEvent window_halo_arrived;
  OwnedEvent summaries_arrived;

 private:
  OwnedStream stream_;
  OwnedStream side_stream_;
  OwnedEvent handed_over_;
  StageTimer timer_;
  std::vector<const std::byte*> windows_;  ///< of each rank, while they are open
  ByTraffic received_{};
  ByTraffic predicted_{};
};

}  // namespace cpnsa
