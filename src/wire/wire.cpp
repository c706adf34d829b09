#include "src/wire/wire.hpp"

#include <chrono>
#include <exception>
#include <numeric>
#include <thread>

#include "cpnsa/flight_recorder.hpp"
#include "cpnsa/one_sided.hpp"
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

void Wire::exchange(const Phase& phase) {
  const auto bytes = [&](std::int64_t items) { return to_size(items) * phase.item_bytes; };
  std::vector<SendMessage> outgoing;
  for (const planning::PeerRange& range : phase.sends)
    outgoing.push_back(
        {range.peer, static_cast<const std::byte*>(phase.send_base) + bytes(range.first), bytes(range.count)});
  std::vector<ReceiveMessage> incoming;
  for (const planning::PeerRange& range : phase.receives) {
    incoming.push_back(
        {range.peer, static_cast<std::byte*>(phase.receive_base) + bytes(range.first), bytes(range.count)});
    count_received(phase.traffic, static_cast<std::int64_t>(incoming.back().bytes));
  }
  communicator.recorder().set_purpose(name_of(phase.traffic));
  if (windows_.empty()) return communicator.exchange(outgoing, incoming, device, stream());
  const RankPointers sent = in_windows(phase.send_base);
  read(stream(), [&] {
    for (std::size_t i = 0; i < incoming.size(); ++i)
      device.copy(incoming[i].data, static_cast<const std::byte*>(sent.of[incoming[i].peer]) + bytes(phase.sources[i]),
                  incoming[i].bytes, stream());
  });
}

void Wire::all_gather(Traffic traffic, void* all, std::span<const std::size_t> bytes) {
  const int rank = communicator.rank();
  const std::size_t before = std::accumulate(bytes.begin(), bytes.begin() + rank, std::size_t{0});
  const std::size_t total = std::accumulate(bytes.begin(), bytes.end(), std::size_t{0});
  communicator.recorder().set_purpose(name_of(traffic));
  count_received(traffic, static_cast<std::int64_t>(total - at(bytes, rank)));
  if (windows_.empty())
    return communicator.all_gather(static_cast<const std::byte*>(all) + before, all, bytes, device, stream());
  const RankPointers gathered = in_windows(all);
  read(stream(), [&] {
    std::size_t first = 0;
    for (int peer = 0; peer < communicator.size(); first += at(bytes, peer++))
      if (peer != rank && at(bytes, peer) > 0)
        device.copy(static_cast<std::byte*>(all) + first, static_cast<const std::byte*>(gathered.of[peer]) + first,
                    at(bytes, peer), stream());
  });
}

void Wire::open_window(const void* own) {
  communicator.recorder().set_purpose("windows");
  windows_ = communicator.one_sided()->open(own);
}

void Wire::meet(Traffic traffic) {
  if (windows_.empty()) return;
  communicator.recorder().set_purpose(name_of(traffic));
  communicator.one_sided()->barrier(device, stream());
}

RankPointers Wire::in_windows(const void* own) const {
  const auto offset = static_cast<const std::byte*>(own) - at(windows_, communicator.rank());
  RankPointers pointers;
  for (std::size_t rank = 0; rank < windows_.size(); ++rank) pointers.of[rank] = windows_[rank] + offset;
  return pointers;
}

void Wire::read(Stream on, const std::function<void()>& enqueue) {
  communicator.one_sided()->read(device, stream(), [&] {
    enqueue();
    if (on.handle != stream().handle) hand_over(on, stream());
  });
}

void Wire::reset(Stream compute) {
  received_ = {};
  predicted_ = {};
  timer_.start(compute);
}

void Wire::count_received(Traffic traffic, std::int64_t bytes) {
  at(received_, traffic) += bytes;
  timer_.count_received(bytes);
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
    if (!windows_.empty()) communicator.one_sided()->close(device, stream());
    windows_.clear();
    try {
      hand_over(side_stream(), stream());
      hand_over(compute, stream());
    } catch (...) {  // the device has failed: nothing runs on it
    }
  };
  try {
    step();
    windows_.clear();
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
