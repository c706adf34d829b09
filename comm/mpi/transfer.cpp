#include "comm/mpi/transfer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "comm/mpi/mpi_call.hpp"
#include "comm/mpi/tags.hpp"
#include "comm/wait.hpp"

namespace cpnsa::mpi {
namespace {

// A transfer that failed waits so long for copies that other ranks are in the middle of.
constexpr std::chrono::seconds grace{1};

}  // namespace

std::vector<Chunk> split(std::size_t bytes, std::size_t chunk_bytes) {
  std::vector<Chunk> chunks;
  for (std::size_t offset = 0; offset < bytes; offset += chunk_bytes)
    chunks.push_back({offset, static_cast<int>(std::min(chunk_bytes, bytes - offset))});
  return chunks;
}

void Transfer::start(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives) {
  receives_.assign(receives.begin(), receives.end());
  headers_ = std::make_unique<Header[]>(receives.size() + sends.size());
  Header* header = headers_.get();
  for (const ReceiveMessage& message : receives_) receive_header(message, *header++);
  for (const SendMessage& message : sends) {
    *header = {sequence_, static_cast<std::uint64_t>(operation_), message.bytes};
    send(message, *header++);
  }
}

Transfer::~Transfer() {
  if (done()) return;
  for (std::size_t i = 0; i < requests_.size(); ++i)
    if (requests_[i] != MPI_REQUEST_NULL && items_[i].receives) MPI_Cancel(&requests_[i]);
  comm::Backoff backoff;
  const auto end = std::chrono::steady_clock::now() + grace;
  while (!drain() && std::chrono::steady_clock::now() < end) backoff.pause();
  if (drain()) return;
  // Sends that no rank will receive any more. MPI may still hold on to the headers.
  static_cast<void>(headers_.release());
  for (MPI_Request& request : requests_)
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
}

bool Transfer::drain() noexcept {
  int done = 0;
  MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
  return done != 0;
}

void Transfer::add(MPI_Request request, Item item) {
  requests_.push_back(request);
  items_.push_back(item);
  ++remaining_;
}

void Transfer::send(const SendMessage& message, const Header& header) {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Isend(&header, sizeof header, MPI_BYTE, message.peer, header_tag, route_.handle, &request), "MPI_Isend");
  add(request, {message.peer, false, nullptr});
  for (const Chunk& chunk : split(message.bytes, route_.chunk_bytes)) {
    check(MPI_Isend(static_cast<const std::byte*>(message.data) + chunk.offset, chunk.bytes, MPI_BYTE, message.peer,
                    content_tag, route_.handle, &request),
          "MPI_Isend");
    add(request, {message.peer, false, nullptr});
  }
}

void Transfer::receive_header(const ReceiveMessage& message, Header& header) {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Irecv(&header, sizeof header, MPI_BYTE, message.peer, header_tag, route_.handle, &request), "MPI_Irecv");
  add(request, {message.peer, true, &message});
}

void Transfer::receive_content(const ReceiveMessage& message) {
  for (const Chunk& chunk : split(message.bytes, route_.chunk_bytes)) {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Irecv(static_cast<std::byte*>(message.data) + chunk.offset, chunk.bytes, MPI_BYTE, message.peer,
                    content_tag, route_.handle, &request),
          "MPI_Irecv");
    add(request, {message.peer, true, nullptr});
  }
}

bool Transfer::progress() {
  if (done()) return false;
  finished_.resize(requests_.size());
  int count = 0;
  check(
      MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, finished_.data(), MPI_STATUSES_IGNORE),
      "MPI_Testsome");
  if (count == MPI_UNDEFINED || count == 0) return false;
  remaining_ -= static_cast<std::size_t>(count);
  for (int i = 0; i < count; ++i) {
    const ReceiveMessage* message = items_[static_cast<std::size_t>(finished_[static_cast<std::size_t>(i)])].announced;
    if (!message) continue;
    check_header(*message, headers_[static_cast<std::size_t>(message - receives_.data())]);
    receive_content(*message);
  }
  return true;
}

// Messages from one rank arrive in the order of its calls, so that one of an earlier call was not received there, and
// one of a later call says that the sender had none for the present call.
void Transfer::check_header(const ReceiveMessage& expected, const Header& found) const {
  const auto operation = static_cast<comm::Operation>(found.operation);
  if (found.sequence == sequence_ && operation != operation_)
    throw MismatchError(fmt::format("rank {}: found a call of {}, expected {} as on rank {}", expected.peer,
                                    name_of(operation), name_of(operation_), route_.rank));
  if (found.sequence == sequence_ && found.bytes == expected.bytes) return;
  if (found.sequence < sequence_)
    throw MismatchError(fmt::format("{}: rank {} receives nothing from rank {}, which sends {} bytes (call {})",
                                    name_of(operation), route_.rank, expected.peer, found.bytes, found.sequence));
  if (found.sequence > sequence_)
    throw MismatchError(fmt::format("{}: rank {} receives {} bytes from rank {}, which sends nothing (call {})",
                                    name_of(operation_), route_.rank, expected.bytes, expected.peer, sequence_));
  throw MismatchError(fmt::format("{}: rank {} receives {} bytes from rank {}, which sends {}", name_of(operation_),
                                  route_.rank, expected.bytes, expected.peer, found.bytes));
}

std::vector<int> Transfer::missing() const {
  std::set<int> peers;
  for (std::size_t i = 0; i < requests_.size(); ++i)
    if (requests_[i] != MPI_REQUEST_NULL) peers.insert(items_[i].peer);
  return {peers.begin(), peers.end()};
}

}  // namespace cpnsa::mpi
