#pragma once

#include <mpi.h>

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "comm/collective_guard.hpp"

namespace cpnsa::mpi {

/// The failure of an MPI communicator, and the channel beside its operations on which ranks tell each other of it.
class FailureChannel final : public comm::CollectiveGuard {
 public:
  /// `handle` stays the caller's.
  FailureChannel(const Communicator& owner, MPI_Comm handle, int tag, int rank, int size)
      : CollectiveGuard(owner), handle_(handle), tag_(tag), rank_(rank), size_(size) {}
  ~FailureChannel() override;

  /// This rank waits for messages while this object lives; `missing` returns from which ranks.
  class Waiting {
   public:
    Waiting(FailureChannel& channel, std::function<std::vector<int>()> missing) : channel_(channel) {
      channel_.missing_ = std::move(missing);
    }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;
    ~Waiting() { channel_.missing_ = nullptr; }

   private:
    FailureChannel& channel_;
  };

  /// Asks `ranks`, and those that they wait for, whether they are in a wait as this one is. Returns those that do not
  /// answer within `limit`, ascending: the ranks at fault. Empty if all answer.
  std::vector<int> roll_call(std::span<const int> ranks, std::chrono::milliseconds limit);

 private:
  enum class Subject : std::uint8_t { failure, question, answer };
  struct Notice {
    Subject subject;
    comm::Failure::Kind kind;  // of a failure
    std::uint16_t count;       // of `waiting_for`, in an answer
    std::array<int, 64> waiting_for;
    std::array<char, 1023> reason;  // of a failure; ends with a zero
  };

  std::optional<comm::Failure> look() override;
  void tell(const comm::Failure& failure) noexcept override;
  void send(const Notice& notice, int peer) noexcept;
  void ask(int peer) noexcept;
  void answer(int peer);

  MPI_Comm handle_;
  int tag_;
  int rank_;
  int size_;
  std::function<std::vector<int>()> missing_;    // null while this rank waits for no message
  std::vector<std::pair<int, Notice>> answers_;  // to the present roll call
  std::vector<std::unique_ptr<Notice>> sent_;
  std::vector<MPI_Request> sending_;
};

}  // namespace cpnsa::mpi
