// `cpnsa bench` at sizes that take no time: the shape of what it prints and writes, never how long it took.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const std::vector<std::string> small{"bench", "-b",   "256",     "-e",       "512",        "-n", "1",
                                     "-w",    "0",    "--heads", "2",        "--kv-heads", "1",  "--dk",
                                     "8",     "--dv", "8",       "--device", "cpu"};

Outcome bench(const Launcher& launcher, const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = small;
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return run_command(launcher, arguments);
}

// Lines of the table itself: those that are no comment.
std::vector<std::string> rows_of(const std::string& text) {
  std::vector<std::string> rows;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);)
    if (line.find('#') == std::string::npos) rows.push_back(line);
  return rows;
}

TEST(Bench, ARowALengthAndPass) {
  const Outcome outcome = bench(threads(2), {});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(rows_of(outcome.out).size(), 4u) << outcome.out;
  for (const char* column : {"compress", "compressed", "imp.+topk", "exchange", "selected", "window", "gate", "total",
                             "TFLOP/s", "moved MiB", "GB/s rank", "peak MiB"})
    EXPECT_THAT(outcome.out, HasSubstr(column));
}

TEST(Bench, ATableThatIsLostIsAnError) {
  for (const char* arguments :
       {"bench --device cpu -b 256 -e 256 -n 1 -w 0 --heads 1 --kv-heads 1 --dk 8 --dv 8", "--help"}) {
    const Outcome outcome = run_process({"sh", "-c", command_path() + " " + arguments + " > /dev/full"});
    EXPECT_EQ(outcome.status, 1) << arguments;
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("standard output"));
  }
}

TEST(Bench, DecodingStepsOfABatch) {
  const TemporaryFolder folder;
  const std::string path = folder.path() / "bench.json";
  const Outcome outcome = bench(threads(2), {"--decode", "--batch", "3", "--queries", "2", "-J", path});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(rows_of(outcome.out).size(), 2u) << outcome.out;
  const json report = json::parse(read_file(path));
  ASSERT_EQ(report["rows"].size(), 2u);
  EXPECT_EQ(report["batch"], 3);
  EXPECT_EQ(report["rows"][1]["tokens"], 512);
  EXPECT_GT(report["rows"][1]["read_bytes"], report["rows"][0]["read_bytes"]);
  for (const char* stage : {"prepare", "append", "compress", "compressed", "importance", "tokens", "merge"})
    EXPECT_TRUE(report["rows"][0]["stage_seconds"].contains(stage)) << stage;
}

TEST(Bench, TheRecordOfAStepByRank) {
  const TemporaryFolder folder;
  const std::string report_path = folder.path() / "bench.json", trace_path = folder.path() / "trace.json";
  const Outcome outcome = bench(threads(2), {"-J", report_path, "--trace", trace_path});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json row = json::parse(read_file(report_path))["rows"][1];
  ASSERT_EQ(row["by_rank"].size(), 2u);
  std::int64_t received = 0;
  for (const json& record : row["by_rank"]) {
    EXPECT_GT(record["stage_seconds"]["selected"], 0);
    EXPECT_GE(record["wait_seconds"]["selected"], 0);
    for (const json& bytes : record["bytes_received"]) received += bytes.get<std::int64_t>();
  }
  EXPECT_EQ(
      row["forward"]["bytes_received"].get<std::int64_t>() + row["backward"]["bytes_received"].get<std::int64_t>(),
      received);
  EXPECT_GT(row["forward"]["bytes_per_second_per_rank"], 0);
  EXPECT_NEAR(row["forward"]["bytes_per_second_per_rank"].get<double>() *
                  row["forward"]["stage_seconds"]["exchange"].get<double>(),
              row["forward"]["max_bytes_received"].get<double>(), 1);

  std::set<int> ranks;
  std::set<std::string> stages;
  const json trace = json::parse(read_file(trace_path));
  for (const json& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    ranks.insert(event["pid"].get<int>()), stages.insert(event["name"]);
    EXPECT_GE(event["dur"], 0);
  }
  EXPECT_EQ(ranks, (std::set<int>{0, 1}));
  EXPECT_THAT(stages, testing::IsSupersetOf({"compress", "window", "selected", "combine_backward"}));
  EXPECT_THAT(bench(one_rank(), {"--trace", trace_path}).err, HasSubstr("File exists"));
  EXPECT_THAT(bench(one_rank(), {"--decode", "--trace", folder.path() / "other"}).err,
              HasSubstr("--trace: found with --decode"));
}

TEST(Bench, AGraphNeedsAGpu) {
  const Outcome outcome = bench(threads(1), {"--decode", "--graph"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("--graph: found the cpu device, expected cuda"));
}

TEST(Bench, JsonHoldsEveryRow) {
  const TemporaryFolder folder;
  const std::string path = folder.path() / "bench.json";
  const Outcome outcome = bench(threads(2), {"-J", path, "--no-backward"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json report = json::parse(read_file(path));
  ASSERT_EQ(report["rows"].size(), 2u);
  EXPECT_EQ(report["rows"][0]["tokens"], 256);
  EXPECT_EQ(report["rows"][1]["tokens"], 512);
  EXPECT_EQ(report["config"]["num_q_heads"], 2);
  EXPECT_EQ(report["provenance"]["hosts"].size(), 2u);
  EXPECT_EQ(report["provenance"]["nodes"], 1);
  EXPECT_NE(report["provenance"]["commit"], "");
  EXPECT_FALSE(report["rows"][0].contains("backward"));
  EXPECT_TRUE(report["rows"][0]["forward"]["stage_seconds"].contains("selected"));

  const Outcome again = bench(one_rank(), {"-J", path});
  EXPECT_NE(again.status, 0);
  ASSERT_EQ(again.error_lines().size(), 1u) << again.err;
  EXPECT_THAT(again.err, HasSubstr("File exists"));
  EXPECT_EQ(json::parse(read_file(path)), report);
}

TEST(Bench, DocumentsShareTheTokens) {
  const TemporaryFolder folder;
  const auto report = [&](const std::string& documents) {
    const std::string path = folder.path() / documents;
    const Outcome outcome =
        bench(threads(2), {"-J", path, "--documents", documents, "--partition", "zigzag_per_document"});
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return json::parse(read_file(path));
  };
  const json one = report("1"), three = report("3");
  EXPECT_EQ(three["documents"], 3);
  EXPECT_EQ(three["rows"][1]["tokens"], 512);
  EXPECT_LT(three["rows"][1]["forward"]["flop"], one["rows"][1]["forward"]["flop"]);  // no token sees another document
}

TEST(Bench, WhatIsKeptIsAChoice) {
  const TemporaryFolder folder;
  const auto row = [&](const std::vector<std::string>& choice) {
    const std::string path = folder.path() / (choice.empty() ? "usual" : choice[0]);
    std::vector<std::string> flags{"-J", path, "--exchange", "gather"};
    flags.insert(flags.end(), choice.begin(), choice.end());
    const Outcome outcome = bench(threads(2), flags);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return json::parse(read_file(path))["rows"][1];
  };
  const json usual = row({}), recomputed = row({"--recompute-branches"}), kept = row({"--keep-blocks"});
  EXPECT_LT(recomputed["saved_bytes"], usual["saved_bytes"]);
  EXPECT_GT(kept["saved_bytes"], usual["saved_bytes"]);
  EXPECT_LT(kept["backward"]["bytes_received"], usual["backward"]["bytes_received"]);
}

TEST(Bench, LocalSelectionSharesBlocks) {
  const TemporaryFolder folder;
  std::vector<double> distinct;
  for (const char* selection : {"random", "local"}) {
    const std::string path = folder.path() / selection;
    const Outcome outcome = run_command(one_rank(), {"bench",
                                                     "-b",
                                                     "8192",
                                                     "-e",
                                                     "8192",
                                                     "-n",
                                                     "1",
                                                     "-w",
                                                     "0",
                                                     "--heads",
                                                     "2",
                                                     "--kv-heads",
                                                     "1",
                                                     "--dk",
                                                     "16",
                                                     "--dv",
                                                     "8",
                                                     "--device",
                                                     "cpu",
                                                     "--no-backward",
                                                     "--selection",
                                                     selection,
                                                     "--select-count",
                                                     "8",
                                                     "-J",
                                                     path});
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    distinct.push_back(json::parse(read_file(path))["rows"][0]["distinct_blocks_per_16_queries"]);
  }
  EXPECT_LT(2 * distinct[1], distinct[0]);
}

TEST(Bench, WrongInput) {
  const auto expect = [](const std::vector<std::string>& flags, const std::vector<std::string>& expected) {
    SCOPED_TRACE(testing::PrintToString(flags));
    std::vector<std::string> arguments{"bench", "--device", "cpu"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    for (const Launcher& launcher : {one_rank(), threads(2)}) {
      const Outcome outcome = run_command(launcher, arguments);
      EXPECT_NE(outcome.status, 0);
      ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.err;
      for (const std::string& text : expected) EXPECT_THAT(outcome.err, HasSubstr(text));
    }
  };
  expect({"-b", "1X"}, {"-b", "found 1X", "expected a whole number"});
  expect({"-b", "0"}, {"found 0", "expected a whole number"});
  expect({"-b", "8K", "-e", "4K"}, {"--end", "found 4096", "expected at least --begin = 8192"});
  expect({"-b", "2", "--documents", "3"}, {"--documents", "found 3", "expected at most --begin = 2"});
  expect({"-f", "1"}, {"found 1", "expected a whole number from 2"});
  expect({"--init-blocks", "20"}, {"init_blocks", "found 22", "expected"});
  expect({"--kv-heads", "0"}, {"--kv-heads", "found 0", "expected a whole number from 1"});
  expect({"--kv-heads", "3"}, {"num_q_heads", "found 8", "num_kv_heads = 3"});
  expect({"--selection", "global"}, {"--selection", "found global", "expected one of random|local"});
  expect({"-J", "/nowhere/at/all.json"}, {"/nowhere/at/all.json", "found", "expected"});
}

}  // namespace
}  // namespace cpnsa::test
