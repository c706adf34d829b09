#include "comm/mpi/communicator.hpp"

#include <fmt/format.h>

#include <cstring>
#include <exception>

#include "comm/idle.hpp"
#include "comm/mpi/mpi_call.hpp"
#include "comm/mpi/tags.hpp"

namespace cpnsa::mpi {
namespace {

using comm::Failure;
using comm::Operation;
using Clock = std::chrono::steady_clock;

void check_parent(MPI_Comm parent) {
  int initialised = 0, finalised = 0, between_groups = 0;
  check(MPI_Initialized(&initialised), "MPI_Initialized");
  check(MPI_Finalized(&finalised), "MPI_Finalized");
  if (!initialised || finalised)
    throw ArgumentError("mpi::make_communicator: found MPI not initialised or finalised, expected MPI_Init before");
  if (parent == MPI_COMM_NULL)
    throw ArgumentError("mpi::make_communicator: found MPI_COMM_NULL, expected a communicator");
  check(MPI_Comm_test_inter(parent, &between_groups), "MPI_Comm_test_inter");
  if (between_groups)
    throw ArgumentError("mpi::make_communicator: found an intercommunicator, expected an intracommunicator");
}

}  // namespace

DuplicatedComm::DuplicatedComm(MPI_Comm parent, std::chrono::milliseconds deadline) {
  check_parent(parent);
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Comm_idup(parent, &handle_, &request), "MPI_Comm_idup");
  comm::Idle idle;
  const auto end = Clock::now() + deadline;
  for (int done = 0; !done; idle.rest()) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (!done && Clock::now() > end)
      throw DeadlineError(
          fmt::format("mpi::make_communicator: waited {} for the other ranks", comm::text_of(deadline)));
  }
  check(MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

DuplicatedComm::~DuplicatedComm() {
  int finalised = 0;
  if (handle_ != MPI_COMM_NULL && MPI_Finalized(&finalised) == MPI_SUCCESS && !finalised) MPI_Comm_free(&handle_);
}

int DuplicatedComm::rank() const {
  int rank = 0;
  check(MPI_Comm_rank(handle_, &rank), "MPI_Comm_rank");
  return rank;
}

int DuplicatedComm::size() const {
  int size = 0;
  check(MPI_Comm_size(handle_, &size), "MPI_Comm_size");
  return size;
}

MpiCommunicator::MpiCommunicator(MPI_Comm parent, std::size_t chunk_bytes)
    : comm_(parent, default_deadline),
      route_{comm_.get(), comm_.rank(), comm_.size(), chunk_bytes},
      failures_(comm_.get(), failure_tag, route_.rank, route_.size) {}

// What was sent on a communicator that failed may still arrive. It is never freed, so that MPI cannot give its context
// to a later one, which would take these messages for its own.
MpiCommunicator::~MpiCommunicator() {
  if (failures_.failed()) comm_.abandon();
}

template <class Body>
void MpiCommunicator::run(Operation operation, Body body) {
  failures_.raise_if_failed();
  ++sequence_;
  try {
    body();
  } catch (const MismatchError& error) {
    fail(Failure::Kind::mismatch, error.what());
    throw;
  } catch (const DeadlineError& error) {
    fail(Failure::Kind::deadline, error.what());
    throw;
  } catch (const std::exception& error) {
    abort(fmt::format("{}: {}", name_of(operation), error.what()));
    throw;
  }
}

void MpiCommunicator::transfer(Operation operation, std::span<const SendMessage> sends,
                               std::span<const ReceiveMessage> receives) {
  Transfer transfer(route_, operation, sequence_);
  transfer.start(sends, receives);
  comm::Idle idle;
  const auto end = Clock::now() + deadline_;
  while (!transfer.done()) {
    failures_.raise_if_failed();
    if (transfer.progress()) {
      idle.reset();
      continue;
    }
    if (Clock::now() > end)
      throw DeadlineError(comm::describe_late(operation, route_.rank, deadline_, transfer.missing()));
    idle.rest();
  }
  failures_.raise_if_failed();
}

void MpiCommunicator::gather(Operation operation, std::byte* all, std::span<const std::size_t> bytes) {
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  const std::byte* own = all + comm::offset_of(bytes, rank());
  std::byte* part = all;
  for (int peer = 0; peer < size(); part += bytes[static_cast<std::size_t>(peer++)]) {
    if (peer == rank()) continue;
    sends.push_back({peer, own, bytes[static_cast<std::size_t>(rank())]});
    receives.push_back({peer, part, bytes[static_cast<std::size_t>(peer)]});
  }
  transfer(operation, sends, receives);
}

void MpiCommunicator::exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives,
                               Device& device, Stream stream) {
  comm::check_exchange(sends, receives, rank(), size());
  run(Operation::exchange, [&] {
    through_host_.exchange(sends, receives, device, stream,
                           [&](auto out, auto in) { transfer(Operation::exchange, out, in); });
  });
}

void MpiCommunicator::all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                                 Stream stream) {
  comm::check_parts(bytes, size());
  run(Operation::all_gather, [&] {
    through_host_.all_gather(own, all, bytes, rank(), device, stream,
                             [&](std::byte* parts) { gather(Operation::all_gather, parts, bytes); });
  });
}

void MpiCommunicator::all_gather_host(const void* own, void* all, std::size_t bytes) {
  run(Operation::all_gather_host, [&] {
    auto* destination = static_cast<std::byte*>(all);
    std::byte* const place = destination + static_cast<std::size_t>(rank()) * bytes;
    if (bytes > 0 && own != place) std::memcpy(place, own, bytes);
    const std::vector<std::size_t> parts(static_cast<std::size_t>(size()), bytes);
    gather(Operation::all_gather_host, destination, parts);
  });
}

void MpiCommunicator::barrier() {
  run(Operation::barrier, [&] {
    const std::vector<std::size_t> nothing(static_cast<std::size_t>(size()), 0);
    gather(Operation::barrier, nullptr, nothing);
  });
}

void MpiCommunicator::abort(std::string_view reason) noexcept {
  try {
    fail(Failure::Kind::aborted, fmt::format("rank {} gave up: {}", rank(), reason));
  } catch (const std::exception&) {  // no memory for the reason: the others are released all the same
    fail(Failure::Kind::aborted, {});
  }
}

void MpiCommunicator::fail(Failure::Kind kind, std::string_view reason) noexcept {
  try {
    failures_.fail({kind, std::string(reason)});
  } catch (const std::exception&) {
    failures_.fail({kind, {}});
  }
}

std::unique_ptr<Communicator> make_communicator(MPI_Comm parent) {
  return std::make_unique<MpiCommunicator>(parent);
}

}  // namespace cpnsa::mpi
