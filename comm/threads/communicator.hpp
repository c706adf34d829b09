#pragma once

#include <memory>

#include "comm/cached.hpp"
#include "comm/collective_guard.hpp"
#include "comm/threads/group.hpp"
#include "cpnsa/one_sided.hpp"
#include "cpnsa/threads/communicator.hpp"

namespace cpnsa::threads {

/// Tells the other ranks by the group.
class ThreadGuard final : public comm::CollectiveGuard {
 public:
  ThreadGuard(const Communicator& owner, Group& group, int rank) : CollectiveGuard(owner), group_(group), rank_(rank) {}

 private:
  std::optional<comm::Failure> look() override { return group_.failure(); }
  void tell(const comm::Failure& failure) noexcept override { group_.fail(rank_, failure); }

  Group& group_;
  int rank_;
};

/// One rank of a group. Receivers copy out of the senders' memory, each on its own stream. Windows are plain pointers:
/// the ranks' devices must reach each other's memory.
class ThreadCommunicator final : public Communicator, private OneSided {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank);
  ~ThreadCommunicator() override { group_->leave(rank_); }

  std::string_view name() const override { return "threads"; }
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  void set_deadline(std::chrono::milliseconds deadline) override;

  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override;
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override;
  void all_gather_host(const void* own, void* all, std::size_t bytes) override;
  void barrier() override;
  OneSided* one_sided() override { return this; }
  void check() override { guard_.check(); }
  void abort(std::string_view reason) noexcept override { guard_.abort(reason); }

 private:
  std::vector<const std::byte*> open(const void* own) override;
  void barrier(Device& device, Stream stream) override;
  void read(Device& device, Stream stream, const std::function<void()>& enqueue) override;
  void close(Device& device, Stream stream) noexcept override;

  /// The event, recorded on the stream; none after waiting for the stream where the host can read what is there.
  static std::optional<Event> mark(comm::CachedEvent& event, Device& device, Stream stream);
  /// Runs `read` between meeting the others and parting from them; it returns what to give to Group::part.
  template <class Read>
  void run(const Call& call, std::size_t bytes_sent, std::size_t bytes_received, Read read);

  std::shared_ptr<Group> group_;
  int rank_;
  std::chrono::milliseconds deadline_ = initial_deadline();
  ThreadGuard guard_;
  comm::CachedEvent ready_, done_, reads_;
};

}  // namespace cpnsa::threads
