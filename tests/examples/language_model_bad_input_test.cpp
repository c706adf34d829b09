// What is wrong is said in one line for the whole job, every rank ends with a failure, and nothing is written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::vector<Launcher> launchers() {
  std::vector<Launcher> all{one_rank(), threads(3)};
  if (const std::optional<Launcher> launcher = processes(3)) all.push_back(*launcher);
  return all;
}

struct BadInput {
  std::vector<std::string> flags;
  std::string said;  // part of the error
};

TEST(LanguageModelBadInput, IsOneLineAndAFailure) {
  const TemporaryFolder folder;
  const std::string path = folder.path();
  write_file(folder.path() / "short", "only a few bytes");
  write_file(folder.path() / "text", std::string(5000, 'a'));
  write_file(folder.path() / "other.csv", "a,b\n1,2\n");
  const std::string text = path + "/text", out = path + "/out";
  const std::vector<BadInput> cases{
      {{"--text", path + "/missing", "--out", out}, "missing"},
      {{"--text", path, "--out", out}, "folder"},
      {{"--text", path + "/short", "--out", out}, "16 bytes"},
      {{"--text", text, "--out", out, "--tokens", "5000"}, "5001"},
      {{"--text", text, "--out", text}, "no folder"},
      {{"--text", text, "--out", "/proc/none"}, "/proc/none"},
      {{"--text", text, "--out", out, "--nonsense", "1"}, "nonsense"},
      {{"--text", text, "--out", out, "--steps", "0"}, "--steps"},
      {{"--text", text, "--out", out, "--steps", "many"}, "many"},
      {{"--text", text, "--out", out, "--attention", "most"}, "--attention"},
      {{"--text", text, "--out", out, "--exchange", "send"}, "--exchange"},
      {{"--text", text, "--out", out, "--learning-rate", "nan"}, "--learning-rate"},
      {{"--text", text, "--out", out, "--heads", "3", "--kv-heads", "2"}, "--kv-heads"},
      {{"--text", text, "--out", out, "--width", "60", "--heads", "8"}, "--width"},
      {{"--text", text, "--out", out, "--select-block", "33"}, "select_block"},
      {{"--text", text, "--out", out, "--select-count", "2"}, "select_count"},
      {{"--text", text, "--out", out, "--window", "0"}, "--window"},
      {{"--text", text, "--out", out, "--device", "tpu"}, "--device"},
      {{"--text", text, "--out", out, "--device", "cuda", "--dtype", "f64"}, "--d"},  // no GPU, or not this type
      {{"--text", text, "--out", out, "--dtype", "bf16"}, "--dtype"},
      {{"--text", text, "--out", out, "--transport", "nccl"}, "--transport"},
      {{"--text", text, "--out", out, "--compare", path + "/other.csv"}, "other.csv"},
      {{"--text", text, "--out", out, "--compare", path + "/missing.csv"}, "missing.csv"},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const BadInput& bad = cases[i];
    for (const Launcher& launcher : launchers()) {
      if (launcher.by_mpi && i % 4 != 0) continue;  // starting processes takes longest
      SCOPED_TRACE(launcher.name + ", " + bad.said);
      const Outcome outcome = run_command(launcher, bad.flags);
      EXPECT_NE(outcome.status, 0);
      EXPECT_EQ(outcome.out, "");
      std::vector<std::string> lines;  // mpirun adds some of its own
      for (const std::string& line : outcome.error_lines())
        if (!launcher.by_mpi || line.starts_with("language_model:")) lines.push_back(line);
      ASSERT_EQ(lines.size(), 1u) << outcome.err;
      EXPECT_THAT(lines.front(), StartsWith("language_model: error: "));
      EXPECT_THAT(lines.front(), HasSubstr(bad.said));
    }
  }
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"other.csv", "short", "text"}));
}

TEST(LanguageModelBadInput, RanksThatMpirunDidNotStart) {
  const std::optional<Launcher> launcher = processes(2);
  if (!launcher) GTEST_SKIP() << "no MPI in this build";
  const Outcome outcome = run_command(*launcher, {"--ranks", "3"});
  EXPECT_NE(outcome.status, 0);
  EXPECT_THAT(outcome.err, HasSubstr("--ranks: found 3, expected 2"));
}

}  // namespace
}  // namespace cpnsa::test
