// `cpnsa plan`: its bytes are those that a run reports, and what it says of too little memory.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "cpnsa/forecast.hpp"
#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json plan(const std::vector<std::string>& flags, int status = 0) {
  std::vector<std::string> arguments{"plan", "-J"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  const Outcome outcome = run_command(one_rank(), arguments);
  EXPECT_EQ(outcome.status, status) << outcome.err;
  return json::parse(outcome.out);
}

// The flags that plan and bench share, drawn at random.
struct Setting {
  explicit Setting(std::mt19937& random) {
    const auto draw = [&](std::initializer_list<const char*> choices) {
      return std::string(choices.begin()[random() % choices.size()]);
    };
    ranks = draw({"1", "2", "3", "5"});
    tokens = std::to_string(200 + random() % 800);
    flags = {"--heads",        draw({"4", "8"}),
             "--kv-heads",     draw({"1", "2", "4"}),
             "--dk",           draw({"8", "24", "32"}),
             "--dv",           draw({"8", "16"}),
             "--device",       "cpu",
             "--dtype",        draw({"f32", "bf16", "f64"}),
             "--window",       draw({"32", "100"}),
             "--select-count", draw({"3", "6"}),
             "--documents",    draw({"1", "3"}),
             "--compressor",   draw({"mlp", "linear", "mean"}),
             "--selection",    draw({"random", "local"}),
             "--partition",    draw({"contiguous", "zigzag", "zigzag_per_document"}),
             "--exchange",     draw({"auto", "fetch", "gather"})};
    for (const char* flag : {"--separate-kv", "--no-backward", "--keep-blocks", "--recompute-branches"})
      if (random() % 3 == 0) flags.emplace_back(flag);
  }
  std::string tokens, ranks;
  std::vector<std::string> flags;
};

TEST(Plan, BytesAreThoseThatARunReports) {
  std::mt19937 random(25);
  for (int repeat = 0; repeat < 8; ++repeat) {
    const Setting setting(random);
    std::vector<std::string> flags = setting.flags;
    flags.insert(flags.end(), {"--tokens", setting.tokens, "--ranks", setting.ranks});
    const json planned = plan(flags)["rows"][0];

    const TemporaryFolder folder;
    const std::string path = folder.path() / "bench.json";
    std::vector<std::string> bench{"bench", "-b", setting.tokens, "-e", setting.tokens, "-n",         "1",
                                   "-w",    "0",  "-J",           path, "--ranks",      setting.ranks};
    bench.insert(bench.end(), setting.flags.begin(), setting.flags.end());
    const Outcome outcome = run_command(one_rank(), bench);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    const json measured = json::parse(read_file(path))["rows"][0];
    const std::string what = planned.dump();
    for (const char* key : {"workspace_bytes", "saved_bytes", "tensor_bytes"})
      EXPECT_EQ(planned[key], measured[key]) << key << what;
  }
}

TEST(Plan, PartsSumToTheirBytes) {
  for (const char* flag :
       {"--keep-blocks", "--recompute-branches", "--no-backward", "--separate-kv", "--exchange=pull"}) {
    const json row = plan({"--tokens", "16K", "--ranks", "4", "--device", "cpu", flag})["rows"][0];
    ASSERT_EQ(row["of_ranks"].size(), 4u);
    for (const json& rank : row["of_ranks"]) {
      const auto sum = [&](const char* key) {
        std::int64_t bytes = 0;
        for (const json& part : rank[key]) bytes += part.get<std::int64_t>();
        return bytes;
      };
      EXPECT_EQ(sum("saved"), rank["saved_bytes"]) << flag;
      EXPECT_EQ(std::max(sum("forward_workspace"), sum("backward_workspace")), rank["workspace_of_a_step_bytes"])
          << flag;
      EXPECT_GT(rank["forward_workspace"].size(), 2u);
    }
  }
}

TEST(Plan, BytesBetweenRanksAreThoseOfARun) {
  const std::vector<std::string> shared{"--heads",  "4",   "--kv-heads",  "2",      "--dk",       "16",    "--dv", "8",
                                        "--device", "cpu", "--partition", "zigzag", "--exchange", "gather"};
  std::vector<std::string> flags = shared;
  flags.insert(flags.end(), {"--tokens", "2K", "--ranks", "4"});
  std::int64_t planned = 0;
  const json row_planned = plan(flags)["rows"][0];
  for (const json& rank : row_planned["of_ranks"])
    for (const json& bytes : rank["bytes_received"]) planned += bytes.get<std::int64_t>();

  const TemporaryFolder folder;
  const std::string path = folder.path() / "bench.json";
  std::vector<std::string> bench{"bench", "-b", "2K", "-e",      "2K", "-n",      "1",   "-w",
                                 "0",     "-J", path, "--ranks", "4",  "--dtype", "bf16"};
  bench.insert(bench.end(), shared.begin(), shared.end());
  ASSERT_EQ(run_command(one_rank(), bench).status, 0);
  const json row = json::parse(read_file(path))["rows"][0];
  const std::int64_t measured =
      row["forward"]["bytes_received"].get<std::int64_t>() + row["backward"]["bytes_received"].get<std::int64_t>();
  // The run also counts agreements: a few messages of 1 KiB, and the need matrix's own part.
  EXPECT_GE(measured, planned);
  EXPECT_LT(measured - planned, 64 << 10);
  EXPECT_GT(planned, 1 << 20);
}

// Flags of a decoding plan and benchmark, drawn at random.
TEST(Plan, BytesOfDecodingAreThoseThatARunReports) {
  std::mt19937 random(7);
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto draw = [&](std::initializer_list<const char*> choices) {
      return std::string(choices.begin()[random() % choices.size()]);
    };
    const std::string tokens = std::to_string(100 + random() % 400), ranks = draw({"1", "2", "3"});
    std::vector<std::string> shared{"--decode",
                                    "--device",
                                    "cpu",
                                    "--heads",
                                    draw({"2", "4"}),
                                    "--kv-heads",
                                    draw({"1", "2"}),
                                    "--dk",
                                    draw({"8", "24"}),
                                    "--dv",
                                    draw({"8", "16"}),
                                    "--dtype",
                                    draw({"f32", "bf16", "f64"}),
                                    "--compressor",
                                    draw({"mlp", "linear", "mean"}),
                                    "--window",
                                    draw({"32", "100"}),
                                    "--batch",
                                    draw({"1", "3"}),
                                    "--queries",
                                    draw({"1", "2"}),
                                    "--page",
                                    draw({"64", "128"}),
                                    "--ranks",
                                    ranks};
    if (random() % 2 == 0) shared.emplace_back("--separate-kv");
    SCOPED_TRACE(testing::PrintToString(shared) + tokens);
    std::vector<std::string> flags = shared;
    flags.insert(flags.end(), {"--tokens", tokens});
    const json planned = plan(flags)["rows"][0], of_rank = planned["of_ranks"][0];

    const TemporaryFolder folder;
    const std::string path = folder.path() / "bench.json";
    std::vector<std::string> bench{"bench", "-b", tokens, "-e", tokens, "-n", "1", "-w", "0", "-J", path};
    bench.insert(bench.end(), shared.begin(), shared.end());
    const Outcome outcome = run_command(one_rank(), bench);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    const json measured = json::parse(read_file(path))["rows"][0];
    EXPECT_EQ(of_rank["cache_bytes"], measured["cache_bytes"]);
    EXPECT_EQ(of_rank["workspace_bytes"].get<std::int64_t>() + of_rank["schedule_bytes"].get<std::int64_t>(),
              measured["workspace_bytes"]);
    EXPECT_EQ(planned["read_bytes"], measured["read_bytes"]);
    EXPECT_EQ(planned["messages"], ranks == "1" ? 0 : 3);
    std::int64_t parts = 0;
    for (const json& part : of_rank["cache"]) parts += part.get<std::int64_t>();
    EXPECT_EQ(parts, of_rank["cache_bytes"]);
  }
}

TEST(Plan, DecodingSaysHowManySequencesFit) {
  const std::vector<std::string> flags{"--decode", "--tokens", "64K", "--layers", "32", "--ranks", "1,8"};
  const json report = plan(flags);
  const json one = report["rows"][0], eight = report["rows"][1];
  EXPECT_GT(one["step_seconds"], 0);
  EXPECT_GT(eight["message_seconds"], 0);
  const std::int64_t fitting = one["max_batch"];
  EXPECT_GT(fitting, 1);
  EXPECT_GT(eight["max_batch"], fitting);
  const auto of_batch = [&](std::int64_t batch, int status) {
    return plan({"--decode", "--tokens", "64K", "--layers", "32", "--ranks", "1", "--batch", std::to_string(batch)},
                status);
  };
  EXPECT_EQ(of_batch(fitting, 0)["fits"], true);
  EXPECT_EQ(of_batch(fitting + 1, 3)["fits"], false);
  const Outcome text = run_command(one_rank(), {"plan", "--decode", "--tokens", "1K", "--batch", "2"});
  for (const char* part : {"# cpnsa plan: decoding 2 sequences of 1024 tokens", "max batch", "cache slc",
                           "to measure it: mpirun -n 8 cpnsa bench --decode", "docs/performance.md"})
    EXPECT_THAT(text.out, HasSubstr(part));
  for (const std::vector<std::string>& wrong :
       {std::vector<std::string>{"--queries", "2K"}, {"--measured", "x.json"}, {"--page", "65"}}) {
    std::vector<std::string> arguments{"plan", "--decode", "--tokens", "1K"};
    arguments.insert(arguments.end(), wrong.begin(), wrong.end());
    const Outcome outcome = run_command(one_rank(), arguments);
    EXPECT_EQ(outcome.status, 1) << wrong[0];
    EXPECT_THAT(outcome.err, HasSubstr("found"));
  }
}

TEST(Plan, TooLittleMemoryIsStatusThree) {
  const std::vector<std::string> flags{"--tokens", "128K", "--ranks", "2,4", "--layers", "32", "--memory", "30"};
  const json report = plan(flags, 3);
  EXPECT_EQ(report["fits"], false);
  ASSERT_EQ(report["rows"].size(), 2u);
  EXPECT_EQ(report["rows"][0]["fits"], false);
  const std::int64_t smallest = report["smallest_ranks"];
  EXPECT_GT(smallest, 2);
  const json fitting =
      plan({"--tokens", "128K", "--ranks", std::to_string(smallest), "--layers", "32", "--memory", "30"});
  EXPECT_EQ(fitting["rows"][0]["fits"], true);
  EXPECT_LE(fitting["rows"][0]["total_bytes"], std::int64_t{30} << 30);
}

TEST(Plan, SaysWhatItAssumesAndHowToMeasure) {
  const Outcome outcome = run_command(one_rank(), {"plan", "--tokens", "64K", "--ranks", "1,8"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  for (const char* part :
       {"# cpnsa plan: 65536 tokens", "smallest number of ranks that fits", "alternatives for 8 ranks",
        "to measure it: mpirun -n 8 cpnsa bench", "assumptions:", "docs/performance/h200-128.json"})
    EXPECT_THAT(outcome.out, HasSubstr(part));
  const json report = plan({"--tokens", "64K", "--ranks", "1,8"});
  EXPECT_NEAR(report["rows"][0]["efficiency"].get<double>(), 1, 1e-9);
  // Rates differ a little with the amount of work, so the efficiency may exceed 1.
  EXPECT_NEAR(report["rows"][1]["efficiency"].get<double>(), 1, 0.5);
  EXPECT_GT(report["rows"][1]["seconds"].get<double>(), 0);
  EXPECT_LT(report["rows"][1]["seconds"].get<double>(), report["rows"][0]["seconds"].get<double>());
}

TEST(Plan, TakesTheTimesOfABenchmark) {
  const TemporaryFolder folder;
  const std::string path = folder.path() / "bench.json";
  const std::vector<std::string> layer{"--heads", "4", "--kv-heads", "2", "--dk", "8", "--dv", "8", "--device", "cpu"};
  std::vector<std::string> bench{"bench", "-b", "512", "-e", "512", "-n", "1", "-w", "0", "-J", path};
  bench.insert(bench.end(), layer.begin(), layer.end());
  ASSERT_EQ(run_command(one_rank(), bench).status, 0);
  const json measured = json::parse(read_file(path))["rows"][0];
  std::vector<std::string> flags = layer;
  flags.insert(flags.end(), {"--tokens", "512", "--ranks", "1", "--measured", path});
  const json rank = plan(flags)["rows"][0]["of_ranks"][0];
  for (const char* kind : {"compress", "compressed", "importance", "selected", "window", "gate"})
    EXPECT_NEAR(rank["forward_compute_seconds"][kind].get<double>(),
                measured["forward"]["stage_seconds"][kind].get<double>(), 1e-9)
        << kind;
  std::vector<std::string> bad{"plan", "--measured", folder.path() / "none.json"};
  EXPECT_THAT(run_command(one_rank(), bad).err, HasSubstr("none.json: found"));
}

TEST(Plan, RefusesWhatBenchRefuses) {
  for (const std::vector<std::string>& flags : {std::vector<std::string>{"--heads", "3"},
                                                {"--ranks", "4,2"},
                                                {"--gpu", "h300"},
                                                {"--memory", "-1"},
                                                {"--tokens", "0"}}) {
    std::vector<std::string> arguments{"plan"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome outcome = run_command(one_rank(), arguments);
    EXPECT_EQ(outcome.status, 1) << flags[0];
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("found"));
  }
}

}  // namespace
}  // namespace cpnsa::test
