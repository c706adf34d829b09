#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "comm/cached.hpp"
#include "comm/operation.hpp"
#include "cpnsa/communicator.hpp"

namespace cpnsa::comm {

/// Moves a device's messages for a transport that works on the host: waits for the stream, and copies memory that the
/// host cannot reach to a host buffer and back. When a call returns, all messages are in place.
class HostStaging {
 public:
  /// `move(sends, receives)` moves messages of host memory.
  template <class Move>
  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream, Move move) {
    if (device.host_accessible()) {
      device.synchronize(stream);
      move(sends, receives);
      return;
    }
    std::size_t total = 0;
    for (const SendMessage& message : sends) total += aligned(message.bytes);
    for (const ReceiveMessage& message : receives) total += aligned(message.bytes);
    std::byte* next = total > 0 ? buffer_.get(device, total) : nullptr;
    std::vector<SendMessage> staged_sends(sends.begin(), sends.end());
    for (SendMessage& message : staged_sends) {
      device.copy(next, message.data, message.bytes, stream);
      message.data = next;
      next += aligned(message.bytes);
    }
    std::vector<ReceiveMessage> staged_receives(receives.begin(), receives.end());
    for (ReceiveMessage& message : staged_receives) {
      message.data = next;
      next += aligned(message.bytes);
    }
    device.synchronize(stream);
    move(std::span<const SendMessage>(staged_sends), std::span<const ReceiveMessage>(staged_receives));
    for (std::size_t i = 0; i < receives.size(); ++i)
      device.copy(receives[i].data, staged_receives[i].data, receives[i].bytes, stream);
    device.synchronize(stream);  // the next call overwrites the buffer
  }

  /// `move(all)` fills in the other ranks' parts in host memory, where this rank's part is already.
  template <class Move>
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, int rank, Device& device,
                  Stream stream, Move move) {
    auto* destination = static_cast<std::byte*>(all);
    const std::size_t offset = offset_of(bytes, rank), own_bytes = bytes[static_cast<std::size_t>(rank)];
    const std::size_t behind = offset + own_bytes, total = offset_of(bytes, static_cast<int>(bytes.size()));
    if (own_bytes > 0 && own != destination + offset) device.copy(destination + offset, own, own_bytes, stream);
    if (device.host_accessible() || total == 0) {
      device.synchronize(stream);
      move(destination);
      return;
    }
    std::byte* const staged = buffer_.get(device, total);
    if (own_bytes > 0) device.copy(staged + offset, own, own_bytes, stream);
    device.synchronize(stream);
    move(staged);
    if (offset > 0) device.copy(destination, staged, offset, stream);
    if (total > behind) device.copy(destination + behind, staged + behind, total - behind, stream);
    device.synchronize(stream);
  }

 private:
  // Messages start at multiples of this.
  static std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

  CachedHostBuffer buffer_;
};

}  // namespace cpnsa::comm
