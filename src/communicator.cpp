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
#include "src/planning/hash.hpp"

namespace cpnsa {
namespace {

// The message of one rank to the others. It has a fixed size, so that ranks in different calls still gather messages of
// one size.
struct Statement {
  std::uint64_t call_hash = 0;
  std::uint64_t problem_length = 0;
  std::array<char, agreement_bytes - 16> text{};  // the problem, or the call when there is none
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

void agree(Communicator& communicator, std::string_view call, std::string_view problem) {
  Statement own;
  own.call_hash = hash_of(call);
  own.problem_length = problem.size();
  const std::string_view text = problem.empty() ? call : problem;
  std::memcpy(own.text.data(), text.data(), std::min(text.size(), own.text.size()));

  std::vector<Statement> all(static_cast<std::size_t>(communicator.size()));
  communicator.all_gather_host(&own, all.data(), sizeof own);

  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].problem_length != 0) {
      const bool is_own = static_cast<int>(rank) == communicator.rank();  // whose text is here at its full length
      throw ArgumentError(fmt::format("rank {}: {}", rank, is_own ? problem : text_of(all[rank])));
    }
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank].call_hash != all[0].call_hash)
      throw MismatchError(fmt::format("rank {}: found \"{}\", expected \"{}\" as on rank 0", rank,
                                      differing_word(text_of(all[rank]), text_of(all[0])),
                                      differing_word(text_of(all[0]), text_of(all[rank]))));
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
