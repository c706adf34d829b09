#include "comm/callbacks/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace cpnsa::callbacks {

using comm::Failure;
using comm::Operation;

CallbackCommunicator::CallbackCommunicator(int rank, int size, Callbacks callbacks)
    : rank_(rank), size_(size), callbacks_(std::move(callbacks)) {
  if (size < 1 || rank < 0 || rank >= size)
    throw ArgumentError(
        fmt::format("rank: found rank {} of {}, expected 0 or more and less than the number", rank, size));
  if (!callbacks_.exchange || !callbacks_.all_gather)
    throw ArgumentError(fmt::format("callbacks: found no {}, expected exchange and all_gather",
                                    callbacks_.exchange ? "all_gather" : "exchange"));
}

void CallbackCommunicator::set_deadline(std::chrono::milliseconds deadline) {
  if (callbacks_.set_deadline) callbacks_.set_deadline(deadline);
}

template <class Body>
void CallbackCommunicator::run(Operation operation, Body body) {
  check();
  std::string problem;
  Failure::Kind kind = Failure::Kind::aborted;
  try {
    return body();
  } catch (const DeviceError&) {  // of the memory, not of the callbacks
    abort(fmt::format("{}: the device failed", name_of(operation)));
    throw;
  } catch (const MismatchError& error) {
    kind = Failure::Kind::mismatch, problem = error.what();
  } catch (const DeadlineError& error) {
    kind = Failure::Kind::deadline, problem = error.what();
  } catch (const std::exception& error) {
    problem = error.what();
  } catch (...) {
    problem = "an exception that is no std::exception";
  }
  const Failure failure{kind, fmt::format("{} on rank {} of {}: {}", name_of(operation), rank_, size_, problem)};
  fail(failure.kind, failure.reason);
  failure.raise();
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
  callbacks_.exchange(sends, receives);
}

void CallbackCommunicator::gather_equal(std::byte* all, std::size_t bytes) {
  if (bytes > 0 && size_ > 1) callbacks_.all_gather(all, bytes);
}

void CallbackCommunicator::exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                                    Device& device, Stream stream) {
  comm::check_exchange(sends, receives, rank_, size_);
  run(Operation::exchange, [&] {
    through_host_.exchange(sends, receives, device, stream, [&](auto out, auto in) {
      if (size_ > 1) callbacks_.exchange(out, in);
    });
  });
}

void CallbackCommunicator::all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                                      Stream stream) {
  comm::check_parts(bytes, size_);
  run(Operation::all_gather, [&] {
    through_host_.all_gather(own, all, bytes, rank_, device, stream, [&](std::byte* parts) { gather(parts, bytes); });
  });
}

void CallbackCommunicator::all_gather_host(const void* own, void* all, std::size_t bytes) {
  run(Operation::all_gather_host, [&] {
    auto* destination = static_cast<std::byte*>(all);
    std::byte* const place = destination + static_cast<std::size_t>(rank_) * bytes;
    if (bytes > 0 && own != place) std::memcpy(place, own, bytes);
    gather_equal(destination, bytes);
  });
}

void CallbackCommunicator::barrier() {
  run(Operation::barrier, [&] {
    if (size_ == 1) return;
    if (callbacks_.barrier) return callbacks_.barrier();
    std::vector<std::byte> all(static_cast<std::size_t>(size_));
    gather_equal(all.data(), 1);
  });
}

void CallbackCommunicator::check() {
  const std::lock_guard lock(mutex_);
  if (failure_) failure_->raise();
}

void CallbackCommunicator::abort(std::string_view reason) noexcept {
  try {
    fail(Failure::Kind::aborted, fmt::format("rank {} gave up: {}", rank_, reason));
  } catch (const std::exception&) {  // no memory for the reason: the others are released all the same
    fail(Failure::Kind::aborted, {});
  }
}

void CallbackCommunicator::fail(Failure::Kind kind, std::string_view reason) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    try {
      failure_ = Failure{kind, std::string(reason)};
    } catch (const std::exception&) {
      failure_ = Failure{kind, {}};
    }
  }
  try {
    if (callbacks_.abort) callbacks_.abort(reason);
  } catch (...) {  // the other ranks' deadlines must do
  }
}

std::unique_ptr<Communicator> make_communicator(int rank, int size, Callbacks callbacks) {
  return std::make_unique<CallbackCommunicator>(rank, size, std::move(callbacks));
}

}  // namespace cpnsa::callbacks
