#pragma once

#include "comm/mpi/failure_channel.hpp"
#include "comm/mpi/transfer.hpp"
#include "comm/through_host.hpp"
#include "cpnsa/mpi/communicator.hpp"

namespace cpnsa::mpi {

/// A duplicate of a communicator; freed unless it is abandoned.
class DuplicatedComm {
 public:
  DuplicatedComm(MPI_Comm parent, std::chrono::milliseconds deadline);
  DuplicatedComm(const DuplicatedComm&) = delete;
  DuplicatedComm& operator=(const DuplicatedComm&) = delete;
  ~DuplicatedComm();

  MPI_Comm get() const { return handle_; }
  int rank() const;
  int size() const;
  void abandon() { handle_ = MPI_COMM_NULL; }

 private:
  MPI_Comm handle_ = MPI_COMM_NULL;
};

/// One rank of an MPI job. Every call is made of point-to-point messages that do not block, looked at in turn with the
/// channel on which a rank that fails tells the others.
class MpiCommunicator final : public Communicator {
 public:
  static constexpr std::size_t longest_message = std::size_t{1} << 30;

  explicit MpiCommunicator(MPI_Comm parent, std::size_t chunk_bytes = longest_message);
  ~MpiCommunicator() override;

  std::string_view name() const override { return "mpi"; }
  int rank() const override { return route_.rank; }
  int size() const override { return route_.size; }
  void set_deadline(std::chrono::milliseconds deadline) override { deadline_ = deadline; }

  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override;
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override;
  void all_gather_host(const void* own, void* all, std::size_t bytes) override;
  void barrier() override;
  void check() override { failures_.raise_if_failed(); }
  void abort(std::string_view reason) noexcept override;

 private:
  /// Runs `body`; when it throws, every rank learns of it.
  template <class Body>
  void run(comm::Operation operation, Body body);
  /// Moves messages between host memory of the ranks.
  void transfer(comm::Operation operation, std::span<const SendMessage> sends,
                std::span<const ReceiveMessage> receives);
  /// Every rank's part to every rank, in host memory; the own part is in its place already.
  void gather(comm::Operation operation, std::byte* all, std::span<const std::size_t> bytes);
  void fail(comm::Failure::Kind kind, std::string_view reason) noexcept;

  DuplicatedComm comm_;
  Route route_;
  FailureChannel failures_;
  std::uint64_t sequence_ = 0;  // of calls
  std::chrono::milliseconds deadline_ = default_deadline;
  comm::ThroughHost through_host_;
};

}  // namespace cpnsa::mpi
