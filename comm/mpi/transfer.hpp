#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "comm/operation.hpp"

namespace cpnsa::mpi {

/// Precedes each message, so that calls that do not fit together are found before any of its bytes is received.
struct Header {
  std::uint64_t sequence;  ///< of the call on the sender
  std::uint64_t operation;
  std::uint64_t bytes;
};

/// A piece of a message; MPI counts in int.
struct Chunk {
  std::size_t offset;
  int bytes;
};
std::vector<Chunk> split(std::size_t bytes, std::size_t chunk_bytes);

/// Where and how messages of a communicator travel.
struct Route {
  MPI_Comm handle;
  int rank;
  int size;
  std::size_t chunk_bytes;
};

/// The messages of one call on one rank, of which empty ones travel too. Nothing in it waits, but for the destructor.
class Transfer {
 public:
  Transfer(const Route& route, comm::Operation operation, std::uint64_t sequence)
      : route_(route), operation_(operation), sequence_(sequence) {}
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;
  /// Where the transfer is not done, takes back what can be, so that MPI does not write to the caller's memory later.
  ~Transfer();

  /// Starts everything, once. The spans need not outlive the call; what they point to must outlive the transfer.
  void start(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives);
  /// Returns whether something has arrived or left. Throws MismatchError where a message is none that was expected.
  bool progress();
  bool done() const { return remaining_ == 0; }
  /// The ranks waited for, ascending.
  std::vector<int> missing() const;

 private:
  // The message that the request of the same index belongs to.
  struct Item {
    int peer;
    bool receives;
    const ReceiveMessage* announced;  // the message of which this is the header
  };

  void add(MPI_Request request, Item item);
  void send(const SendMessage& message, const Header& header);
  void receive_header(const ReceiveMessage& message, Header& header);
  void receive_content(const ReceiveMessage& message);
  void check_header(const ReceiveMessage& expected, const Header& found) const;
  bool drain() noexcept;

  Route route_;
  comm::Operation operation_;
  std::uint64_t sequence_;
  std::vector<ReceiveMessage> receives_;
  std::unique_ptr<Header[]> headers_;  // received ones, in the order of receives_, then one a send
  std::vector<MPI_Request> requests_;
  std::vector<Item> items_;
  std::vector<int> finished_;
  std::size_t remaining_ = 0;
};

}  // namespace cpnsa::mpi
