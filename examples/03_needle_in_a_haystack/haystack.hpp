#pragma once

#include <cstdint>
#include <vector>

namespace needle {

/// The vocabulary: filler tokens, keys, and the values that may follow a key.
inline constexpr std::int32_t fillers = 128;
inline constexpr std::int32_t keys = 64;
inline constexpr std::int32_t values = 64;
inline constexpr std::int32_t vocabulary = fillers + keys + values;
inline constexpr std::int32_t first_key = fillers;
inline constexpr std::int32_t first_value = fillers + keys;

/// A needle, which is a key followed by a value, and its question: a second occurrence of the key, after which the
/// model must predict the value.
struct Question {
  std::int64_t needle = 0;    ///< position of the key; its value follows
  std::int64_t position = 0;  ///< position of the key that asks
  std::int32_t value = 0;     ///< the answer: the token that the model must predict
  int band = 0;               ///< in a test haystack: the band of depths of the needle
};

/// Random filler with needles, each with a different key, and a question for each needle.
struct Haystack {
  std::vector<std::int32_t> tokens;
  std::vector<Question> questions;
};

/// A training haystack: `needles` needles and their questions anywhere, each question followed by its answer. Questions
/// nearer to their needle than `nearest` tokens are not asked. Needs 1 <= needles <= keys and 4 * needles <=
/// length. The haystack is determined by the seed and the number.
Haystack training_haystack(std::int64_t length, std::int64_t needles, std::int64_t nearest, std::uint64_t seed,
                           std::uint64_t number);

/// A test haystack: every key has a needle; each of `bands` equal parts of the haystack has the same number of needles,
/// and the remaining ones are anywhere; the questions are at the end, without answers. Needs 1 <= bands <= keys and
/// length >= shortest_test.
Haystack test_haystack(std::int64_t length, int bands, std::uint64_t seed, std::uint64_t number);

inline constexpr std::int64_t shortest_test = 8 * keys;

/// The number of questions per band of a test haystack.
inline constexpr std::int64_t questions_per_band(int bands) {
  return keys / bands;
}

}  // namespace needle
