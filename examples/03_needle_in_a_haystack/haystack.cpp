#include "haystack.hpp"

#include <algorithm>
#include <random>

namespace needle {
namespace {

// Needles and questions are at even positions, so that they do not overlap.
constexpr std::int64_t slot_size = 2;

class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t number) : engine_(seed * 0x9e3779b97f4a7c15u + number) {}

  std::int64_t below(std::int64_t end) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(end));
  }

  template <class Type>
  void shuffle(std::vector<Type>& items) {
    choose(items, static_cast<std::int64_t>(items.size()));
  }

  // Moves `count` randomly chosen items to the front, in random order.
  template <class Type>
  void choose(std::vector<Type>& items, std::int64_t count) {
    const auto size = static_cast<std::int64_t>(items.size());
    for (std::int64_t i = 0; i < count; ++i)
      std::swap(items[static_cast<std::size_t>(i)], items[static_cast<std::size_t>(i + below(size - i))]);
  }

 private:
  std::mt19937_64 engine_;
};

std::vector<std::int64_t> slots(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> positions;
  for (std::int64_t slot = (begin + slot_size - 1) / slot_size; (slot + 1) * slot_size <= end; ++slot)
    positions.push_back(slot * slot_size);
  return positions;
}

std::vector<std::int32_t> shuffled_keys(Random& random) {
  std::vector<std::int32_t> all(keys);
  for (std::int32_t key = 0; key < keys; ++key) all[static_cast<std::size_t>(key)] = first_key + key;
  random.shuffle(all);
  return all;
}

std::vector<std::int32_t> filler(Random& random, std::int64_t length) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(length));
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random.below(fillers));
  return tokens;
}

std::int32_t random_value(Random& random) {
  return first_value + static_cast<std::int32_t>(random.below(values));
}

void put(std::vector<std::int32_t>& tokens, std::int64_t position, std::int32_t key, std::int32_t value) {
  tokens[static_cast<std::size_t>(position)] = key;
  tokens[static_cast<std::size_t>(position + 1)] = value;
}

}  // namespace

Haystack training_haystack(std::int64_t length, std::int64_t needles, std::int64_t nearest, std::uint64_t seed,
                           std::uint64_t number) {
  Random random(seed, number);
  Haystack haystack{filler(random, length), {}};
  const std::vector<std::int32_t> key_of = shuffled_keys(random);
  std::vector<std::int64_t> positions = slots(0, length);
  random.choose(positions, 2 * needles);
  for (std::size_t i = 0; i < static_cast<std::size_t>(needles); ++i) {
    const auto [needle, position] = std::minmax(positions[2 * i], positions[2 * i + 1]);
    if (position - needle < nearest) continue;
    const std::int32_t value = random_value(random);
    put(haystack.tokens, needle, key_of[i], value);
    put(haystack.tokens, position, key_of[i], value);
    haystack.questions.push_back({needle, position, value, 0});
  }
  return haystack;
}

Haystack test_haystack(std::int64_t length, int bands, std::uint64_t seed, std::uint64_t number) {
  Random random(seed, number);
  Haystack haystack{filler(random, length), {}};
  const std::vector<std::int32_t> key_of = shuffled_keys(random);
  const std::int64_t end = (length - slot_size * keys) / slot_size * slot_size;  // the position of the first question

  std::vector<std::int64_t> needles, left;
  for (int band = 0; band < bands; ++band) {
    std::vector<std::int64_t> positions = slots(end * band / bands, end * (band + 1) / bands);
    random.shuffle(positions);
    const auto chosen = positions.begin() + questions_per_band(bands);
    needles.insert(needles.end(), positions.begin(), chosen);
    left.insert(left.end(), chosen, positions.end());
  }
  const auto asked = static_cast<std::int64_t>(needles.size());
  random.choose(left, keys - asked);
  needles.insert(needles.end(), left.begin(), left.begin() + (keys - asked));

  std::vector<std::int64_t> questions = slots(end, end + slot_size * keys);
  random.shuffle(questions);
  for (std::size_t i = 0; i < static_cast<std::size_t>(keys); ++i) {
    const std::int32_t value = random_value(random);
    put(haystack.tokens, needles[i], key_of[i], value);
    if (static_cast<std::int64_t>(i) >= asked) continue;  // no question asks for this needle
    haystack.tokens[static_cast<std::size_t>(questions[i])] = key_of[i];
    haystack.questions.push_back(
        {needles[i], questions[i], value, static_cast<int>(static_cast<std::int64_t>(i) / questions_per_band(bands))});
  }
  return haystack;
}

}  // namespace needle
