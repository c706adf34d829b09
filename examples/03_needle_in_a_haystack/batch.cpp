#include "batch.hpp"

#include <algorithm>

namespace needle {
namespace {

std::vector<std::int32_t> at(const std::vector<std::int32_t>& all, std::span<const std::int64_t> positions) {
  std::vector<std::int32_t> some;
  for (const std::int64_t position : positions) some.push_back(all[static_cast<std::size_t>(position)]);
  return some;
}

}  // namespace

Batch::Batch(std::span<const Haystack> haystacks) : cu_seqlens{0} {
  constexpr std::int32_t any_filler = 0;
  for (const Haystack& haystack : haystacks) {
    const std::size_t begin = tokens.size();
    tokens.insert(tokens.end(), haystack.tokens.begin(), haystack.tokens.end());
    previous.push_back(any_filler);
    previous.insert(previous.end(), haystack.tokens.begin(), haystack.tokens.end() - 1);
    targets.resize(tokens.size(), model::ignored);
    for (const Question& question : haystack.questions)
      targets[begin + static_cast<std::size_t>(question.position)] = question.value;
    cu_seqlens.push_back(static_cast<std::int64_t>(tokens.size()));
  }
}

Rows Batch::rows(std::span<const std::int64_t> positions) const {
  return {at(tokens, positions), at(previous, positions)};
}

std::vector<std::int32_t> Batch::targets_at(std::span<const std::int64_t> positions) const {
  return at(targets, positions);
}

std::int64_t Batch::questions() const {
  return static_cast<std::int64_t>(targets.size()) - std::count(targets.begin(), targets.end(), model::ignored);
}

}  // namespace needle
