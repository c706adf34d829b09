#include "comm/threads/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>

namespace cpnsa::threads {
namespace {

using comm::Operation;

void wait_for(Device& device, Stream stream, const std::optional<Event>& event) {
  if (event) device.wait(stream, *event);
}

}  // namespace

ThreadCommunicator::ThreadCommunicator(std::shared_ptr<Group> group, int rank)
    : group_(std::move(group)), rank_(rank), guard_(*this, *group_, rank) {
  recorder().set_owner(name(), rank, size());
}

void ThreadCommunicator::set_deadline(std::chrono::milliseconds deadline) {
  comm::check_deadline(deadline);
  deadline_ = deadline;
}

std::optional<Event> ThreadCommunicator::mark(comm::CachedEvent& event, Device& device, Stream stream) {
  if (device.host_accessible()) {
    device.synchronize(stream);
    return std::nullopt;
  }
  const Event recorded = event.get(device);
  device.record(recorded, stream);
  return recorded;
}

template <class Read>
void ThreadCommunicator::run(const Call& call, std::size_t bytes_sent, std::size_t bytes_received, Read read) {
  guard_.run(call.operation, bytes_sent, bytes_received, [&] {
    group_->meet(rank_, call, deadline_, recorder());
    std::optional<Event> done;
    try {
      done = read();
    } catch (...) {
      guard_.fail_by_exception();
      group_->part(rank_, std::nullopt);
      throw;
    }
    group_->part(rank_, done);
  });
  guard_.check();  // of a rank that failed while it read
}

// A rank's `ready` event is recorded again only after all have met for the next call, hence after all have waited for
// the present one; so is `done`. Two events a rank are enough.
void ThreadCommunicator::exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                                  Device& device, Stream stream) {
  comm::check_exchange(sends, receives, rank_, size());
  const Call call{
      .operation = Operation::exchange, .sends = sends, .receives = receives, .ready = mark(ready_, device, stream)};
  run(call, comm::total_bytes(sends), comm::total_bytes(receives), [&] {
    for (const ReceiveMessage& receive : receives) {
      const Call& theirs = group_->call(receive.peer);
      const auto send = std::find_if(theirs.sends.begin(), theirs.sends.end(),
                                     [&](const SendMessage& message) { return message.peer == rank_; });
      wait_for(device, stream, theirs.ready);
      device.copy(receive.data, send->data, receive.bytes, stream);
    }
    return mark(done_, device, stream);
  });
  for (const SendMessage& send : sends) wait_for(device, stream, group_->done(send.peer));
}

void ThreadCommunicator::all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                                    Stream stream) {
  comm::check_parts(bytes, size());
  const Call call{
      .operation = Operation::all_gather, .own = own, .bytes = bytes, .ready = mark(ready_, device, stream)};
  run(call, comm::part_of(bytes, rank_), comm::total_of(bytes), [&] {
    auto* destination = static_cast<std::byte*>(all);
    for (int peer = 0; peer < size(); ++peer) {
      const Call& theirs = group_->call(peer);
      const std::size_t part = bytes[static_cast<std::size_t>(peer)];
      if (part > 0 && theirs.own != destination) {
        wait_for(device, stream, theirs.ready);
        device.copy(destination, theirs.own, part, stream);
      }
      destination += part;
    }
    return mark(done_, device, stream);
  });
  for (int peer = 0; peer < size(); ++peer)
    if (peer != rank_) wait_for(device, stream, group_->done(peer));
}

void ThreadCommunicator::all_gather_host(const void* own, void* all, std::size_t bytes) {
  const std::vector<std::size_t> parts(static_cast<std::size_t>(size()), bytes);
  run({.operation = Operation::all_gather_host, .own = own, .bytes = parts}, bytes, comm::total_of(parts), [&] {
    auto* destination = static_cast<std::byte*>(all);
    for (int peer = 0; peer < size(); ++peer, destination += bytes) {
      const void* source = group_->call(peer).own;
      if (bytes > 0 && source != destination) std::memcpy(destination, source, bytes);
    }
    return std::optional<Event>();
  });
}

void ThreadCommunicator::barrier() {
  run({.operation = Operation::barrier}, 0, 0, [] { return std::optional<Event>(); });
}

std::vector<const std::byte*> ThreadCommunicator::open(const void* own) {
  std::vector<const std::byte*> all(static_cast<std::size_t>(size()));
  all_gather_host(&own, all.data(), sizeof own);
  return all;
}

void ThreadCommunicator::barrier(Device& device, Stream stream) {
  run({.operation = Operation::barrier, .ready = mark(ready_, device, stream)}, 0, 0, [&] {
    for (int peer = 0; peer < size(); ++peer)
      if (peer != rank_) wait_for(device, stream, group_->call(peer).ready);
    return std::optional<Event>();
  });
}

void ThreadCommunicator::read(Device& device, Stream stream, const std::function<void()>& enqueue) {
  guard_.run([&] {
    group_->begin_read();
    std::optional<Event> reads;
    try {
      enqueue();
      reads = mark(reads_, device, stream);
    } catch (...) {
      group_->end_read(rank_, std::nullopt);
      throw;
    }
    group_->end_read(rank_, reads);
  });
}

void ThreadCommunicator::close(Device& device, Stream stream) noexcept {
  try {
    group_->after_reads(rank_, [&](Event reads) { device.wait(stream, reads); });
  } catch (const std::exception&) {  // a device that has failed: nothing runs on it
  }
}

}  // namespace cpnsa::threads
