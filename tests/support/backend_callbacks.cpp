// Callbacks on top of two carriers of bytes: communicators of threads, which compare the ranks' calls, and mailboxes,
// which do not.

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>

#include "cpnsa/callbacks/communicator.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

using Body = std::function<void(Communicator&)>;

void run_over_threads(int ranks, const Body& body) {
  threads::run_ranks(ranks, [&](Communicator& inner) {
    const std::unique_ptr<Device> host = cpu::make_device();
    const std::size_t rank = static_cast<std::size_t>(inner.rank());
    const auto communicator = callbacks::make_communicator(
        inner.rank(), inner.size(),
        {.exchange = [&](auto sends, auto receives) { inner.exchange(sends, receives, *host, Stream{}); },
         .all_gather = [&](std::byte* all,
                           std::size_t bytes) { inner.all_gather_host(all + rank * bytes, all, bytes); },
         .barrier = [&] { inner.barrier(); },
         .abort = [&](std::string_view reason) { inner.abort(reason); },
         .set_deadline = [&](std::chrono::milliseconds deadline) { inner.set_deadline(deadline); }});
    body(*communicator);
  });
}

/// A queue of messages for each pair of ranks.
class Mailboxes {
 public:
  void send(int from, const SendMessage& message) {
    const auto* data = static_cast<const std::byte*>(message.data);
    const std::lock_guard lock(mutex_);
    boxes_[{from, message.peer}].emplace_back(data, data + message.bytes);
    changed_.notify_all();
  }
  void receive(int to, const ReceiveMessage& message) {
    std::unique_lock lock(mutex_);
    std::deque<std::vector<std::byte>>& box = boxes_[{message.peer, to}];
    changed_.wait(lock, [&] { return aborted_ || !box.empty(); });
    if (aborted_) throw std::runtime_error("the mailboxes are closed");
    if (box.front().size() != message.bytes) throw std::runtime_error("a message of another size");
    std::memcpy(message.data, box.front().data(), message.bytes);
    box.pop_front();
  }
  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> boxes_;
  bool aborted_ = false;
};

// Only the required callbacks, and abort, so that no test can hang.
callbacks::Callbacks over(Mailboxes& boxes, int rank, int size) {
  const auto exchange = [&boxes, rank](std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives) {
    for (const SendMessage& message : sends) boxes.send(rank, message);
    for (const ReceiveMessage& message : receives) boxes.receive(rank, message);
  };
  const auto all_gather = [&boxes, rank, size](std::byte* all, std::size_t bytes) {
    const auto part = [&](int of) { return all + static_cast<std::size_t>(of) * bytes; };
    for (int peer = 0; peer < size; ++peer)
      if (peer != rank) boxes.send(rank, {peer, part(rank), bytes});
    for (int peer = 0; peer < size; ++peer)
      if (peer != rank) boxes.receive(rank, {peer, part(peer), bytes});
  };
  return {.exchange = exchange, .all_gather = all_gather, .abort = [&boxes](std::string_view) { boxes.abort(); }};
}

void run_over_mailboxes(int ranks, const Body& body) {
  Mailboxes boxes;
  threads::run_ranks(ranks, [&](Communicator& thread) {
    const auto communicator =
        callbacks::make_communicator(thread.rank(), thread.size(), over(boxes, thread.rank(), thread.size()));
    try {
      body(*communicator);
    } catch (const std::exception& error) {
      communicator->abort(error.what());
      throw;
    }
  });
}

std::vector<int> rank_counts() {
  return {1, 2, 3, 4, 8};
}

const bool registered =
    add(transports(), TransportBackend{"callbacks_over_threads", rank_counts, run_over_threads}) &&
    add(transports(), TransportBackend{"callbacks_over_mailboxes", rank_counts, run_over_mailboxes, false});

}  // namespace
}  // namespace cpnsa::test
