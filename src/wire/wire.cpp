#include "src/wire/wire.hpp"

#include <chrono>
#include <exception>
#include <numeric>
#include <thread>

#include "cpnsa/flight_recorder.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {

Wire::Wire(Device& device_, Communicator& communicator_, bool timing)
    : device(device_),
      communicator(communicator_),
      summary_halo_arrived(device),
      window_halo_arrived(device),
      summaries_arrived(device),
      stream_(device),
      side_stream_(device),
      handed_over_(device),
      timer_(device, timing) {}

void Wire::hand_over(Stream from, Stream to) {
  device.record(handed_over_.get(), from);
  device.wait(to, handed_over_.get());
}

void Wire::exchange(Traffic traffic, std::span<const planning::PeerRange> sends, const void* send_base,
                    std::span<const planning::PeerRange> receives, void* receive_base, std::size_t item_bytes) {
  std::vector<SendMessage> outgoing;
  for (const planning::PeerRange& range : sends)
    outgoing.push_back({range.peer, static_cast<const std::byte*>(send_base) + to_size(range.first) * item_bytes,
                        to_size(range.count) * item_bytes});
  std::vector<ReceiveMessage> incoming;
  for (const planning::PeerRange& range : receives) {
    incoming.push_back({range.peer, static_cast<std::byte*>(receive_base) + to_size(range.first) * item_bytes,
                        to_size(range.count) * item_bytes});
    count_received(traffic, static_cast<std::int64_t>(incoming.back().bytes));
  }
  communicator.recorder().set_purpose(name_of(traffic));
  communicator.exchange(outgoing, incoming, device, stream());
}

void Wire::all_gather(Traffic traffic, void* all, std::span<const std::size_t> bytes) {
  const int rank = communicator.rank();
  const std::size_t before = std::accumulate(bytes.begin(), bytes.begin() + rank, std::size_t{0});
  const std::size_t total = std::accumulate(bytes.begin(), bytes.end(), std::size_t{0});
  communicator.recorder().set_purpose(name_of(traffic));
  communicator.all_gather(static_cast<const std::byte*>(all) + before, all, bytes, device, stream());
  count_received(traffic, static_cast<std::int64_t>(total - at(bytes, rank)));
}

void Wire::reset() {
  received_ = {};
  predicted_ = {};
  timer_.reset();
}

void Wire::count_received(Traffic traffic, std::int64_t bytes) {
  at(received_, traffic) += bytes;
}

void Wire::account(const ByTraffic& predicted, int agreements) {
  const std::int64_t agreement = static_cast<std::int64_t>(agreement_bytes) * (communicator.size() - 1) * agreements;
  count_received(Traffic::control, agreement);
  at(predicted_, Traffic::control) += agreement;
  for (std::size_t kind = 0; kind < predicted.size(); ++kind) predicted_[kind] += predicted[kind];
}

void Wire::run(Stream compute, const std::function<void()>& step) {
  const auto release = [&](const char* problem) noexcept {
    communicator.abort(problem);
    try {
      hand_over(side_stream(), stream());
      hand_over(compute, stream());
    } catch (...) {  // the device has failed: nothing runs on it
    }
  };
  try {
    step();
    hand_over(compute, stream());  // whose end is now that of the step
  } catch (const std::exception& error) {
    release(error.what());
    throw;
  } catch (...) {  // of a device or of callbacks
    release("an exception that is no std::exception");
    throw;
  }
}

void Wire::wait_for_steps() {
  device.activate();
  communicator.wait(device, stream());
}

bool Wire::drained() noexcept {
  try {
    wait_for_steps();
    return true;
  } catch (const std::exception&) {  // a communicator or a device that failed
  }
  try {
    constexpr std::chrono::seconds parting{2};  // an aborted communicator's streams drain at once
    const auto end = std::chrono::steady_clock::now() + parting;
    device.record(handed_over_.get(), stream());
    while (!device.done(handed_over_.get())) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  } catch (const std::exception&) {  // a failed device has nothing left that runs
  }
  return true;
}

}  // namespace cpnsa
