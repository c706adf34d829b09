#pragma once

#include "comm/host_staging.hpp"
#include "comm/mpi/failure_channel.hpp"
#include "comm/mpi/processes.hpp"
#include "comm/mpi/transfer.hpp"
#include "cpnsa/mpi/communicator.hpp"

namespace cpnsa::mpi {

/// A duplicate of a communicator; freed unless it is abandoned.
class DuplicatedComm {
 public:
  DuplicatedComm(MPI_Comm parent, std::chrono::milliseconds deadline, FlightRecorder& recorder);
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
  static constexpr std::size_t max_message_bytes = std::size_t{1} << 30;

  explicit MpiCommunicator(MPI_Comm parent, const Options& options = {}, std::size_t chunk_bytes = max_message_bytes);
  ~MpiCommunicator() override;

  std::string_view name() const override { return "mpi"; }
  int rank() const override { return route_.rank; }
  int size() const override { return route_.size; }
  void set_deadline(std::chrono::milliseconds deadline) override;

  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override;
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override;
  void all_gather_host(const void* own, void* all, std::size_t bytes) override;
  void barrier() override;
  std::vector<int> silent_ranks(std::chrono::milliseconds limit) override;
  void check() override { failures_.check(); }
  void abort(std::string_view reason) noexcept override { failures_.abort(reason); }

 private:
  /// Moves messages between host memory of the ranks.
  void transfer(comm::Operation operation, std::span<const SendMessage> sends,
                std::span<const ReceiveMessage> receives);
  /// Throws if a process that the transfer waits for has ended.
  void check_processes(comm::Operation operation, Transfer& transfer);
  /// The deadline is over: throws the error that names the ranks at fault.
  [[noreturn]] void throw_late(comm::Operation operation, const std::vector<int>& missing);
  /// Every rank's part to every rank, in host memory; this rank's part is in place already.
  void gather(comm::Operation operation, std::byte* all, std::span<const std::size_t> bytes);

  std::chrono::milliseconds deadline_;
  DuplicatedComm comm_;
  Route route_;
  FailureChannel failures_;
  Processes processes_;
  std::uint64_t sequence_ = 0;  // of operations
  comm::HostStaging staging_;
};

}  // namespace cpnsa::mpi
