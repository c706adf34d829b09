#include "comm/callbacks/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace cpnsa::callbacks {

using comm::Operation;

CallbackCommunicator::CallbackCommunicator(int rank, int size, Callbacks callbacks)
    : rank_(rank), size_(size), callbacks_(std::move(callbacks)), guard_(*this, callbacks_) {
  if (size < 1 || rank < 0 || rank >= size)
    throw ArgumentError(
        fmt::format("rank: found rank {} of {}, expected 0 or more and less than the number", rank, size));
  if (!callbacks_.exchange || !callbacks_.all_gather)
    throw ArgumentError(fmt::format("callbacks: found no {}, expected exchange and all_gather",
                                    callbacks_.exchange ? "all_gather" : "exchange"));
  recorder().set_owner(name(), rank, size);
  set_deadline(initial_deadline());
}

void CallbackCommunicator::set_deadline(std::chrono::milliseconds deadline) {
  comm::check_deadline(deadline);
  if (callbacks_.set_deadline) callbacks_.set_deadline(deadline);
}

void CallbackGuard::tell(const comm::Failure& failure) noexcept {
  try {
    if (callbacks_.abort) callbacks_.abort(failure.reason);
  } catch (...) {  // the other ranks' deadlines must do
  }
}

template <class Callback, class... Arguments>
void CallbackCommunicator::call(const Callback& callback, Arguments... arguments) const {
  const auto text = [&](const char* problem) {
    return fmt::format("callback on rank {} of {}: {}", rank_, size_, problem);
  };
  try {
    callback(arguments...);
  } catch (const MismatchError& error) {
    throw MismatchError(text(error.what()));
  } catch (const InterruptedError& error) {
    throw InterruptedError(text(error.what()));
  } catch (const DeadlineError& error) {
    throw DeadlineError(text(error.what()));
  } catch (const std::exception& error) {
    throw CommunicationError(text(error.what()));
  } catch (...) {
    throw CommunicationError(text("an exception that is no std::exception"));
  }
}

void CallbackCommunicator::gather(std::byte* all, std::span<const std::size_t> bytes) {
  const std::size_t own_bytes = bytes[static_cast<std::size_t>(rank_)];
  if (std::all_of(bytes.begin(), bytes.end(), [&](std::size_t part) { return part == own_bytes; }))
    return gather_equal(all, own_bytes);
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  const std::byte* own = all + comm::offset_of(bytes, rank_);
  for (int peer = 0; peer < size_; all += bytes[static_cast<std::size_t>(peer++)]) {
    if (peer == rank_) continue;
    if (own_bytes > 0) sends.push_back({peer, own, own_bytes});
    if (const std::size_t part = bytes[static_cast<std::size_t>(peer)]; part > 0) receives.push_back({peer, all, part});
  }
  call(callbacks_.exchange, std::span<const SendMessage>(sends), std::span<const ReceiveMessage>(receives));
}

void CallbackCommunicator::gather_equal(std::byte* all, std::size_t bytes) {
  if (bytes > 0 && size_ > 1) call(callbacks_.all_gather, all, bytes);
}

void CallbackCommunicator::exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                                    Device& device, Stream stream) {
  comm::check_exchange(sends, receives, rank_, size_);
  guard_.run(Operation::exchange, comm::total_bytes(sends), comm::total_bytes(receives), [&] {
    staging_.exchange(sends, receives, device, stream, [&](auto out, auto in) {
      if (size_ > 1) call(callbacks_.exchange, out, in);
    });
  });
}

void CallbackCommunicator::all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                                      Stream stream) {
  comm::check_parts(bytes, size_);
  guard_.run(Operation::all_gather, comm::part_of(bytes, rank_), comm::total_of(bytes), [&] {
    staging_.all_gather(own, all, bytes, rank_, device, stream, [&](std::byte* parts) { gather(parts, bytes); });
  });
}

void CallbackCommunicator::all_gather_host(const void* own, void* all, std::size_t bytes) {
  guard_.run(Operation::all_gather_host, bytes, bytes * static_cast<std::size_t>(size_), [&] {
    auto* destination = static_cast<std::byte*>(all);
    std::byte* const place = destination + static_cast<std::size_t>(rank_) * bytes;
    if (bytes > 0 && own != place) std::memcpy(place, own, bytes);
    gather_equal(destination, bytes);
  });
}

void CallbackCommunicator::barrier() {
  guard_.run(Operation::barrier, 0, 0, [&] {
    if (size_ == 1) return;
    if (callbacks_.barrier) return call(callbacks_.barrier);
    std::vector<std::byte> all(static_cast<std::size_t>(size_));
    gather_equal(all.data(), 1);
  });
}

std::unique_ptr<Communicator> make_communicator(int rank, int size, Callbacks callbacks) {
  return std::make_unique<CallbackCommunicator>(rank, size, std::move(callbacks));
}

}  // namespace cpnsa::callbacks
