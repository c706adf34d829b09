#pragma once

#include <memory>

#include "comm/kept.hpp"
#include "comm/threads/group.hpp"
#include "cpnsa/threads/communicator.hpp"

namespace cpnsa::threads {

/// One rank of a group. Receivers copy out of the senders' memory, each on its own stream.
class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}

  std::string_view name() const override { return "threads"; }
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  void set_deadline(std::chrono::milliseconds deadline) override { deadline_ = deadline; }

  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override;
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override;
  void all_gather_host(const void* own, void* all, std::size_t bytes) override;
  void barrier() override;
  void check() override { group_->check(); }
  void abort(std::string_view reason) noexcept override;

 private:
  /// The event, recorded on the stream; none after waiting for the stream where the host can read what is there.
  static std::optional<Event> mark(comm::KeptEvent& event, Device& device, Stream stream);
  /// Runs `read` between meeting the others and parting from them; it returns what to give to Group::part.
  template <class Read>
  void run(const Call& call, Read read);

  std::shared_ptr<Group> group_;
  int rank_;
  std::chrono::milliseconds deadline_ = default_deadline;
  comm::KeptEvent ready_, done_;
};

}  // namespace cpnsa::threads
