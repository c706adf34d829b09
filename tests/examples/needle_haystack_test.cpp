// Where needles and questions lie, and what the model is given of them.
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <set>

#include "batch.hpp"
#include "haystack.hpp"

namespace cpnsa::test {
namespace {

using namespace needle;

bool is_filler(std::int32_t token) {
  return token >= 0 && token < fillers;
}
bool is_key(std::int32_t token) {
  return token >= first_key && token < first_key + keys;
}
bool is_value(std::int32_t token) {
  return token >= first_value && token < first_value + values;
}

std::int32_t token_at(const Haystack& haystack, std::int64_t position) {
  return haystack.tokens.at(static_cast<std::size_t>(position));
}

std::map<std::int32_t, int> key_counts(const Haystack& haystack) {
  std::map<std::int32_t, int> counts;
  for (const std::int32_t token : haystack.tokens)
    if (is_key(token)) ++counts[token];
  return counts;
}

void check_needle(const Haystack& haystack, const Question& question) {
  EXPECT_TRUE(is_key(token_at(haystack, question.needle)));
  EXPECT_TRUE(is_value(question.value));
  EXPECT_EQ(token_at(haystack, question.needle + 1), question.value);
  EXPECT_EQ(token_at(haystack, question.position), token_at(haystack, question.needle));
}

TEST(NeedleHaystack, ToLearnFromHasEveryPairTwice) {
  constexpr std::int64_t needles = 16;
  std::size_t asked = 0;
  for (std::uint64_t number = 0; number < 50; ++number) {
    for (const std::int64_t nearest : {0, 24}) {
      const Haystack haystack = training_haystack(128, needles, nearest, 3, number);
      ASSERT_EQ(haystack.tokens.size(), 128u);
      if (nearest == 0) {
        EXPECT_EQ(haystack.questions.size(), static_cast<std::size_t>(needles));
      }
      asked += haystack.questions.size();
      for (const Question& question : haystack.questions) {
        check_needle(haystack, question);
        EXPECT_GE(question.position - question.needle, nearest);
        EXPECT_EQ(token_at(haystack, question.position + 1), question.value);
      }
      const auto counts = key_counts(haystack);
      EXPECT_EQ(counts.size(), haystack.questions.size());
      for (const auto& [key, count] : counts) EXPECT_EQ(count, 2) << key;
      std::size_t others = 0;
      for (const std::int32_t token : haystack.tokens) others += is_filler(token);
      EXPECT_EQ(others, haystack.tokens.size() - 4 * haystack.questions.size());
    }
  }
  EXPECT_GT(asked, 50u * needles);
}

TEST(NeedleHaystack, ToTestWithHasItsNeedlesInTheirBands) {
  for (const int bands : {1, 7, 10, 64}) {
    for (const std::int64_t length : {shortest_test, std::int64_t{1000}, std::int64_t{4096}}) {
      SCOPED_TRACE(testing::Message() << bands << " bands, " << length << " tokens");
      const Haystack haystack = test_haystack(length, bands, 5, 1);
      ASSERT_EQ(static_cast<std::int64_t>(haystack.tokens.size()), length);
      const std::int64_t end = (length - 2 * keys) / 2 * 2;

      std::vector<std::int64_t> asked(static_cast<std::size_t>(bands));
      std::set<std::int64_t> needles, positions;
      for (const Question& question : haystack.questions) {
        check_needle(haystack, question);
        EXPECT_GE(question.needle, end * question.band / bands);
        EXPECT_LE(question.needle + 2, end * (question.band + 1) / bands);
        EXPECT_GE(question.position, end);
        EXPECT_TRUE(is_filler(token_at(haystack, question.position + 1)));  // the answer is not given away
        ++asked.at(static_cast<std::size_t>(question.band));
        needles.insert(question.needle);
        positions.insert(question.position);
      }
      EXPECT_EQ(needles.size(), haystack.questions.size());
      EXPECT_EQ(positions.size(), haystack.questions.size());
      for (const std::int64_t count : asked) EXPECT_EQ(count, questions_per_band(bands));

      const auto counts = key_counts(haystack);
      EXPECT_EQ(counts.size(), static_cast<std::size_t>(keys));  // every key has a needle, asked for or not
      std::size_t twice = 0;
      for (const auto& [key, count] : counts) twice += count == 2;
      EXPECT_EQ(twice, haystack.questions.size());
    }
  }
}

TEST(NeedleHaystack, NeedlesOfManySequencesAreAllOverTheirBands) {
  constexpr int bands = 4;
  std::array<std::set<std::int64_t>, bands> needles;
  for (std::uint64_t number = 0; number < 200; ++number)
    for (const Question& question : test_haystack(1024, bands, 5, number).questions)
      needles.at(static_cast<std::size_t>(question.band)).insert(question.needle);
  for (const auto& band : needles) EXPECT_EQ(band.size(), (1024u - 2 * keys) / 2 / bands);  // every even position
}

TEST(NeedleHaystack, SeedAndNumberTellThemApart) {
  EXPECT_EQ(test_haystack(1024, 10, 1, 2).tokens, test_haystack(1024, 10, 1, 2).tokens);
  EXPECT_NE(test_haystack(1024, 10, 1, 2).tokens, test_haystack(1024, 10, 1, 3).tokens);
  EXPECT_NE(test_haystack(1024, 10, 1, 2).tokens, test_haystack(1024, 10, 2, 2).tokens);
}

TEST(NeedleBatch, RowsKnowTheTokenBeforeThemInTheirDocument) {
  const std::array<Haystack, 2> haystacks{training_haystack(64, 4, 0, 1, 1), training_haystack(32, 2, 0, 1, 2)};
  const Batch batch(haystacks);
  EXPECT_EQ(batch.cu_seqlens, (std::vector<std::int64_t>{0, 64, 96}));
  EXPECT_EQ(batch.questions(), 6);
  std::int64_t begin = 0;
  for (const Haystack& haystack : haystacks) {
    const auto length = static_cast<std::int64_t>(haystack.tokens.size());
    std::map<std::int64_t, std::int32_t> answers;
    for (const Question& question : haystack.questions) answers[question.position] = question.value;
    for (std::int64_t i = 0; i < length; ++i) {
      const std::array<std::int64_t, 1> position{begin + i};
      const Rows rows = batch.rows(position);
      EXPECT_EQ(rows.tokens.at(0), token_at(haystack, i));
      if (i == 0) {
        EXPECT_TRUE(is_filler(rows.previous.at(0)));
      } else {
        EXPECT_EQ(rows.previous.at(0), token_at(haystack, i - 1));
      }
      EXPECT_EQ(batch.targets_at(position).at(0), answers.contains(i) ? answers.at(i) : model::ignored);
    }
    begin += length;
  }
}

}  // namespace
}  // namespace cpnsa::test
