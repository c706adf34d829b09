// `cpnsa decode` on the worked cases: the same results as `cpnsa run --no-backward`, however the tokens are fed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/npy.hpp"
#include "tests/support/tolerance.hpp"
#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"
#include "tools/decode_steps.hpp"

namespace cpnsa::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

void decode(const Launcher& launcher, const fs::path& in, const fs::path& out, const std::vector<std::string>& flags) {
  std::vector<std::string> arguments{"decode", "--in", in, "--out", out, "--device", "cpu", "--dtype", "f64"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  const Outcome outcome = run_command(launcher, arguments);
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_THAT(outcome.out, HasSubstr("sequences"));
}

void expect_same_as_run(const Launcher& launcher, const std::vector<std::string>& flags) {
  const std::vector<std::string> names = names_in(CPNSA_TEST_GOLDEN_CASES);
  ASSERT_FALSE(names.empty());
  for (const std::string& name : names) {
    SCOPED_TRACE(name + ", " + launcher.name + " " + testing::PrintToString(flags));
    const fs::path in = fs::path(CPNSA_TEST_GOLDEN_CASES) / name / "in";
    const TemporaryFolder results;
    const Outcome run = run_command(one_rank(), {"run", "--in", in, "--out", results.path() / "run", "--no-backward",
                                                 "--device", "cpu", "--dtype", "f64"});
    ASSERT_EQ(run.status, 0) << run.err;
    decode(launcher, in, results.path() / "decode", flags);
    const NpyArray expected = read_npy(results.path() / "run" / "out.npy"),
                   found = read_npy(results.path() / "decode" / "out.npy");
    ASSERT_EQ(found.shape, expected.shape);
    EXPECT_TRUE(within("out", found.values, expected.values, 1e-11));
    const NpyArray selected = read_npy(results.path() / "run" / "selected.npy");
    ASSERT_GT(selected.values.size(), 0u);
    EXPECT_EQ(read_npy(results.path() / "decode" / "selected.npy").values, selected.values);
    EXPECT_EQ(names_in(results.path() / "decode"), (std::vector<std::string>{"out.npy", "selected.npy", "stats.json"}));
  }
}

TEST(Decode, OneRankGivesTheResultsOfRun) {
  expect_same_as_run(one_rank(), {});
}
TEST(Decode, ShortChunksSeveralQueriesAndOtherPages) {
  expect_same_as_run(one_rank(),
                     {"--prefill", "100", "--chunk", "37", "--queries", "5", "--page", "128", "--seed", "9"});
}
TEST(Decode, TruncationDoesNotChangeTheResult) {
  expect_same_as_run(threads(2), {"--truncate", "70", "--queries", "3"});
}
TEST(Decode, ShardedCachesGiveTheResultsOfRun) {
  expect_same_as_run(threads(3), {"--queries", "7"});
}
TEST(Decode, ReplicatedSummariesGiveTheResultsOfRun) {
  expect_same_as_run(threads(4), {"--queries", "7", "--replicate-summaries"});
}
TEST(Decode, Processes) {
  const std::optional<Launcher> launcher = processes(2);
  if (!launcher) GTEST_SKIP() << "no MPI in this build";
  expect_same_as_run(*launcher, {"--queries", "7"});
}

TEST(Decode, StatsSayWhatAStepSendsAndWhatACacheHolds) {
  const TemporaryFolder folder;
  write_layer(folder.path() / "in");
  decode(threads(2), folder.path() / "in", folder.path() / "out", {"--prefill", "0", "--queries", "4"});
  const json stats = json::parse(read_file(folder.path() / "out" / "stats.json"));
  const std::int64_t steps = stats["steps"];
  EXPECT_GT(steps, 1);
  EXPECT_GT(stats["pages"], 1);
  EXPECT_EQ(stats["messages"], json({3 * steps, 3 * steps}));
  ASSERT_EQ(stats["cache_bytes"].size(), 2u);
  EXPECT_GT(stats["cache_bytes"][0], 0);
  for (const char* kind : {"log_sum_exps", "candidates", "parts"}) {
    ASSERT_EQ(stats["bytes_received"][kind].size(), 2u);
    EXPECT_GT(stats["bytes_received"][kind][0], 0);
    EXPECT_EQ(stats["bytes_received"][kind][0], stats["bytes_received"][kind][1]);
  }
}

TEST(Decode, WhatAnEarlierRunLeftIsRemoved) {
  const TemporaryFolder folder;
  write_layer(folder.path() / "in");
  ASSERT_EQ(run_command(one_rank(), {"run", "--in", folder.path() / "in", "--out", folder.path() / "out"}).status, 0);
  decode(one_rank(), folder.path() / "in", folder.path() / "out", {});
  EXPECT_EQ(names_in(folder.path() / "out"), (std::vector<std::string>{"out.npy", "selected.npy", "stats.json"}));
}

TEST(Decode, WrongInputsEndWithOneLineAndNoOutput) {
  const TemporaryFolder folder;
  write_layer(folder.path() / "in");
  const auto expect_error = [&](std::vector<std::string> flags, const std::string& text) {
    flags.insert(flags.begin(), {"decode", "--in", folder.path() / "in", "--out", folder.path() / "out"});
    const Outcome outcome = run_command(threads(2), flags);
    EXPECT_NE(outcome.status, 0);
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(text));
    EXPECT_FALSE(fs::exists(folder.path() / "out"));
  };
  expect_error({"--page", "9"}, "--page: found 9, expected a multiple of select_block");
  expect_error({"--page", "0"}, "--page: found 0, expected a whole number");
  expect_error({"--chunk", "0"}, "--chunk: found 0");
  expect_error({"--queries", "x"}, "--queries: found x");
  expect_error({"--partition", "zigzag"}, "--partition: found an unknown argument");
  fs::remove(folder.path() / "in" / "gate.npy");
  expect_error({}, "gate.npy");
}

using tool::DecodePiece;

std::vector<std::int64_t> counts(const std::vector<std::vector<DecodePiece>>& steps, std::int64_t sequence) {
  std::vector<std::int64_t> list;
  for (const auto& pieces : steps)
    for (const DecodePiece& piece : pieces)
      if (piece.sequence == sequence) list.push_back(piece.count);
  return list;
}

TEST(DecodeSteps, ChunksThenQueriesUntilEverySequenceHasEnded) {
  const std::vector<std::int64_t> bounds{0, 10, 10, 13};
  const auto steps = tool::decode_steps(bounds, {.prefill = 5, .chunk = 3, .queries = 2});
  EXPECT_THAT(counts(steps, 0), ElementsAre(3, 2, 2, 2, 1));
  EXPECT_THAT(counts(steps, 1), ElementsAre());
  EXPECT_THAT(counts(steps, 2), ElementsAre(3));
}

TEST(DecodeSteps, TheHalfIsPrefilledUnlessGiven) {
  const std::vector<std::int64_t> bounds{0, 9};
  EXPECT_THAT(counts(tool::decode_steps(bounds, {}), 0), ElementsAre(4, 1, 1, 1, 1, 1));
}

TEST(DecodeSteps, CutTokensAreAppendedAgainInTheNextStep) {
  const std::vector<std::int64_t> bounds{0, 35};
  const auto steps = tool::decode_steps(bounds, {.prefill = 0, .truncate = 8});
  std::int64_t length = 0, cuts = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    ASSERT_EQ(steps[i].size(), 1u);
    const DecodePiece& piece = steps[i].front();
    if (piece.begin < length) {
      EXPECT_EQ(i % 10, 0u);
      EXPECT_LE(length - piece.begin, 8);
      EXPECT_EQ(piece.begin + piece.count, length);
      ++cuts;
    } else {
      EXPECT_EQ(piece.begin, length);
      EXPECT_EQ(piece.count, 1);
    }
    length = piece.begin + piece.count;
  }
  EXPECT_EQ(length, 35);
  EXPECT_EQ(cuts, 3);
}

}  // namespace
}  // namespace cpnsa::test
