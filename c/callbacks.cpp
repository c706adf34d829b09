#include "c/callbacks.hpp"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "c/parameters.hpp"
#include "cpnsa/callbacks/communicator.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::c {
namespace {

void check(const cpnsa_callbacks& callbacks, int returned) {
  if (returned == 0) return;
  const char* text = callbacks.error_text ? callbacks.error_text(callbacks.user) : nullptr;
  const std::string problem =
      fmt::format("the callback returned {}, expected 0{}{}", returned, text ? ": " : "", text ? text : "");
  if (returned == CPNSA_ERROR_MISMATCH) throw MismatchError(problem);
  if (returned == CPNSA_ERROR_DEADLINE) throw DeadlineError(problem);
  throw CommunicationError(problem);
}

}  // namespace

std::unique_ptr<Communicator> make_callback_communicator(int rank, int ranks, const cpnsa_callbacks* given) {
  const auto c = read<cpnsa_callbacks>(given, CPNSA_CALLBACKS_INIT, sizeof(cpnsa_callbacks), "callbacks");
  callbacks::Callbacks made;
  if (c.exchange)
    made.exchange = [c](std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives) {
      std::vector<cpnsa_send> out;
      std::vector<cpnsa_receive> in;
      for (const SendMessage& message : sends) out.push_back({message.peer, message.data, message.bytes});
      for (const ReceiveMessage& message : receives) in.push_back({message.peer, message.data, message.bytes});
      check(c, c.exchange(c.user, out.data(), out.size(), in.data(), in.size()));
    };
  if (c.all_gather)
    made.all_gather = [c](std::byte* all, std::size_t bytes) { check(c, c.all_gather(c.user, all, bytes)); };
  if (c.barrier) made.barrier = [c] { check(c, c.barrier(c.user)); };
  if (c.abort) made.abort = [c](std::string_view reason) { c.abort(c.user, std::string(reason).c_str()); };
  if (c.set_deadline)
    made.set_deadline = [c](std::chrono::milliseconds deadline) { c.set_deadline(c.user, deadline.count()); };
  return callbacks::make_communicator(rank, ranks, std::move(made));
}

}  // namespace cpnsa::c
