#include "cpnsa/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "cpnsa/error.hpp"
#include "cpnsa/flight_recorder.hpp"
#include "src/planning/hash.hpp"

namespace cpnsa {
namespace {

// "cpnsa 01": bytes that do not begin so belong to another operation of a transport that does not compare operations.
constexpr std::uint64_t statement_magic = 0x3130'2061'736e'7063;

// The message of one rank to the others. It has a fixed size, so that ranks in different calls still gather messages of
// one size.
struct Statement {
  std::uint64_t magic = statement_magic;
  std::uint64_t group = 0;  // FlightRecorder::own_group()
  std::uint64_t call_hash = 0;
  std::uint64_t problem_length = 0;
  std::array<char, agreement_bytes - 32> text{};  // the problem, or the call when there is none
};
static_assert(sizeof(Statement) == agreement_bytes);

std::string_view text_of(const Statement& statement) {
  return {statement.text.data(), ::strnlen(statement.text.data(), statement.text.size())};
}

// The first word in which two calls differ, with its neighbours left out: "select_count=16".
std::string_view differing_word(std::string_view text, std::string_view other) {
  const std::size_t at = static_cast<std::size_t>(
      std::mismatch(text.begin(), text.end(), other.begin(), other.end()).first - text.begin());
  const std::size_t space = text.rfind(' ', at < text.size() ? at : text.size());
  const std::size_t begin = space == std::string_view::npos || at == 0 ? 0 : space + 1;
  return text.substr(begin, text.find(' ', std::max(begin, at)) - begin);
}

}  // namespace

Communicator::Communicator()
    : layers_(std::make_shared<std::atomic<std::int64_t>>(0)), recorder_(std::make_shared<FlightRecorder>()) {}

Communicator::~Communicator() = default;

void Communicator::share(const Communicator& other) {
  layers_ = other.layers_;
  recorder_ = other.recorder_;
}

void agree(Communicator& communicator, std::string_view call, std::string_view problem) {
  FlightRecorder& recorder = communicator.recorder();
  recorder.set_purpose("agreement");
  Statement own;
  own.group = recorder.own_group();
  own.call_hash = hash_of(call);
  own.problem_length = problem.size();
  const std::string_view text = problem.empty() ? call : problem;
  std::memcpy(own.text.data(), text.data(), std::min(text.size(), own.text.size()));

  std::vector<Statement> all(static_cast<std::size_t>(communicator.size()));
  communicator.all_gather_host(&own, all.data(), sizeof own);
  recorder.set_purpose({});
  const auto where = [&] {
    const std::string calling = recorder.describe_call();
    return fmt::format(" [{}{}agreement]", calling, calling.empty() ? "" : ", ");
  };

  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].magic != statement_magic)
      throw MismatchError(
          fmt::format("rank {}: found bytes of another operation, expected an agreement as on rank {}{}", rank,
                      communicator.rank(), where()));
  recorder.set_group(all.front().group);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].problem_length != 0) {
      const bool is_own = static_cast<int>(rank) == communicator.rank();  // whose text is here at its full length
      throw ArgumentError(fmt::format("rank {}: {}{}", rank, is_own ? problem : text_of(all[rank]), where()));
    }
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank].call_hash != all[0].call_hash)
      throw MismatchError(fmt::format("rank {}: found \"{}\", expected \"{}\" as on rank 0{}", rank,
                                      differing_word(text_of(all[rank]), text_of(all[0])),
                                      differing_word(text_of(all[0]), text_of(all[rank])), where()));
}

void agree_on(Communicator& communicator, std::string_view call, const std::function<void()>& validate) {
  std::exception_ptr own;
  std::string problem;
  try {
    validate();
  } catch (const std::bad_alloc&) {
    own = std::current_exception();
    problem = "found no host memory left, expected enough for this rank's part";
  } catch (const std::exception& error) {
    own = std::current_exception();
    problem = *error.what() ? error.what() : "unknown error";
  } catch (...) {
    own = std::current_exception();
    problem = "an exception that is no std::exception";
  }
  if (own) {
    refuse(communicator, problem);
    std::rethrow_exception(own);
  }
  if (communicator.size() > 1) agree(communicator, call);
}

void refuse(Communicator& communicator, std::string_view problem) noexcept {
  if (communicator.size() == 1) return;
  try {
    agree(communicator, {}, problem.empty() ? "unknown error" : problem);
  } catch (const std::exception&) {  // this rank's problem, or that the others could not be told
  }
}

}  // namespace cpnsa
