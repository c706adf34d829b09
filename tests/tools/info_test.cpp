// `cpnsa info`: what it must name, as text and as JSON.
#include "cpnsa/info.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

const std::vector<std::string> layer{"info", "--heads", "4", "--kv-heads", "2", "--dk", "24", "--dv", "16"};

std::vector<std::string> with(std::vector<std::string> arguments, const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(Info, NamesVersionCommitAndBackends) {
  const Outcome outcome = run_command(one_rank(), {"info"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("cpnsa " + std::string(build_info().version)),
                                 HasSubstr("commit " + std::string(build_info().commit)),
                                 HasSubstr("backends: cpu, threads"), HasSubstr("GPUs: ")));
  const Outcome version = run_command(one_rank(), {"--version"});
  EXPECT_THAT(version.out, HasSubstr("cpnsa " + std::string(build_info().version) + " (commit "));
}

TEST(Info, JsonGoesToStandardOutputOrToAFile) {
  const Outcome outcome = run_command(one_rank(), with(layer, {"-J"}));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json report = json::parse(outcome.out);
  EXPECT_EQ(report["version"], std::string(build_info().version));
  EXPECT_EQ(report["commit"], std::string(build_info().commit));
  EXPECT_TRUE(report["gpus"].is_array());
  ASSERT_FALSE(report["kernels"].empty());
  EXPECT_EQ(report["kernels"][0]["device"], "cpu");
  EXPECT_EQ(report["kernels"][0]["served"], true);

  const TemporaryFolder folder;
  const std::string path = folder.path() / "info.json";
  const Outcome both = run_command(one_rank(), with(layer, {"-J", path}));
  ASSERT_EQ(both.status, 0) << both.err;
  EXPECT_THAT(both.out, HasSubstr("cpu: served"));
  EXPECT_EQ(json::parse(read_file(path))["kernels"], report["kernels"]);
  EXPECT_NE(run_command(one_rank(), with(layer, {"-J", path})).status, 0);
}

TEST(Info, AConfigurationThatBreaksTheRulesIsAnError) {
  const Outcome outcome =
      run_command(one_rank(), {"info", "--heads", "3", "--kv-heads", "2", "--dk", "8", "--dv", "8"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, HasSubstr("num_q_heads: found 3, expected a multiple of num_kv_heads = 2"));
}

TEST(Info, OneProcessOfAJobPrints) {
  const auto launcher = processes(2);
  if (!launcher) GTEST_SKIP() << "built without MPI";
  const Outcome outcome = run_command(*launcher, with(layer, {"-J"}));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_TRUE(json::accept(outcome.out)) << outcome.out;
}

}  // namespace
}  // namespace cpnsa::test
