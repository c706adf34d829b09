#include "comm/mpi/communicator.hpp"

#include <fmt/format.h>

#include <cstring>
#include <exception>
#include <numeric>

#include "comm/mpi/mpi_call.hpp"
#include "comm/mpi/tags.hpp"
#include "comm/wait.hpp"

namespace cpnsa::mpi {
namespace {

using comm::Operation;

// How long the ranks that are waited for in vain have to answer that they wait as well.
constexpr std::chrono::milliseconds roll_call_limit{500};

std::chrono::milliseconds deadline_of(const Options& options) {
  const std::chrono::milliseconds deadline = options.deadline ? *options.deadline : initial_deadline();
  comm::check_deadline(deadline);
  return deadline;
}

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

DuplicatedComm::DuplicatedComm(MPI_Comm parent, std::chrono::milliseconds deadline, FlightRecorder& recorder) {
  check_parent(parent);
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Comm_idup(parent, &handle_, &request), "MPI_Comm_idup");
  comm::Wait wait(recorder, deadline);
  for (;;) {
    int done = 0;
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) break;
    if (!wait.pause())
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

MpiCommunicator::MpiCommunicator(MPI_Comm parent, const Options& options, std::size_t chunk_bytes)
    : deadline_(deadline_of(options)),
      comm_(parent, deadline_, recorder()),
      route_{comm_.get(), comm_.rank(), comm_.size(), chunk_bytes},
      failures_(*this, comm_.get(), failure_tag, route_.rank, route_.size) {
  recorder().set_owner(name(), rank(), size());
  const FlightRecorder::Call call(recorder(), "mpi::make_communicator");
  const Process own = Process::self();
  std::vector<Process> all(static_cast<std::size_t>(size()));
  all_gather_host(&own, all.data(), sizeof own);
  processes_.set(std::move(all));
}

// Messages of a communicator that failed may still arrive. It is never freed, so that MPI cannot give its context
// to a later one, which would take these messages for its own.
MpiCommunicator::~MpiCommunicator() {
  if (failures_.failed()) comm_.abandon();
}

void MpiCommunicator::set_deadline(std::chrono::milliseconds deadline) {
  comm::check_deadline(deadline);
  deadline_ = deadline;
}

void MpiCommunicator::transfer(Operation operation, std::span<const SendMessage> sends,
                               std::span<const ReceiveMessage> receives) {
  // Looks a second time: MPI made progress in the first probe, which finds nothing of what had just arrived.
  failures_.check();
  ++sequence_;
  Transfer transfer(route_, operation, sequence_);
  transfer.start(sends, receives);
  const FailureChannel::Waiting waiting(failures_, [&] { return transfer.missing(); });
  comm::Wait wait(recorder(), deadline_);
  while (!transfer.done()) {
    if (transfer.progress()) {
      wait.reset();
      continue;
    }
    failures_.check();  // after what has arrived: an operation that is complete here does not fail with a later one
    if (!wait.pause()) throw_late(operation, transfer.missing());
    check_processes(operation, transfer);
  }
}

void MpiCommunicator::check_processes(Operation operation, Transfer& transfer) {
  if (!processes_.looks_now()) return;
  const int gone = processes_.ended(transfer.missing());
  if (gone < 0 || transfer.progress()) return;  // its last messages may have arrived since
  throw CommunicationError(fmt::format("{}: rank {} waited for rank {}, whose process {} has ended", name_of(operation),
                                       rank(), gone, processes_.id(gone)));
}

void MpiCommunicator::throw_late(Operation operation, const std::vector<int>& missing) {
  const std::vector<int> silent = failures_.roll_call(missing, roll_call_limit);
  if (!silent.empty()) throw DeadlineError(comm::describe_late(name_of(operation), rank(), deadline_, silent));
  throw DeadlineError(comm::describe_late(name_of(operation), rank(), deadline_, missing) +
                      ": these wait too, so the ranks' calls do not fit together");
}

std::vector<int> MpiCommunicator::silent_ranks(std::chrono::milliseconds limit) {
  std::vector<int> all(static_cast<std::size_t>(size()));
  std::iota(all.begin(), all.end(), 0);
  return failures_.roll_call(all, limit);
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
  failures_.run(Operation::exchange, comm::total_bytes(sends), comm::total_bytes(receives), [&] {
    staging_.exchange(sends, receives, device, stream,
                      [&](auto out, auto in) { transfer(Operation::exchange, out, in); });
  });
}

void MpiCommunicator::all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                                 Stream stream) {
  comm::check_parts(bytes, size());
  failures_.run(Operation::all_gather, comm::part_of(bytes, rank()), comm::total_of(bytes), [&] {
    staging_.all_gather(own, all, bytes, rank(), device, stream,
                        [&](std::byte* parts) { gather(Operation::all_gather, parts, bytes); });
  });
}

void MpiCommunicator::all_gather_host(const void* own, void* all, std::size_t bytes) {
  failures_.run(Operation::all_gather_host, bytes, bytes * static_cast<std::size_t>(size()), [&] {
    auto* destination = static_cast<std::byte*>(all);
    std::byte* const place = destination + static_cast<std::size_t>(rank()) * bytes;
    if (bytes > 0 && own != place) std::memcpy(place, own, bytes);
    const std::vector<std::size_t> parts(static_cast<std::size_t>(size()), bytes);
    gather(Operation::all_gather_host, destination, parts);
  });
}

void MpiCommunicator::barrier() {
  failures_.run(Operation::barrier, 0, 0, [&] {
    const std::vector<std::size_t> nothing(static_cast<std::size_t>(size()), 0);
    gather(Operation::barrier, nullptr, nothing);
  });
}

std::unique_ptr<Communicator> make_communicator(MPI_Comm parent, const Options& options) {
  return std::make_unique<MpiCommunicator>(parent, options);
}

}  // namespace cpnsa::mpi
