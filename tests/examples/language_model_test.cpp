// The language model learns, and its curve does not depend on how its ranks are made and what they own.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/examples/loss_curve.hpp"
#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

using testing::HasSubstr;

class LanguageModel : public testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 400; ++i) text += fmt::format("line {} of a text that repeats itself\n", i * i % 97);
    write_file(text_path(), text);
  }

  std::filesystem::path text_path() const { return folder_.path() / "text"; }
  std::filesystem::path out(const std::string& name) const { return folder_.path() / name; }

  Outcome run(const Launcher& launcher, const std::string& name, const std::vector<std::string>& flags = {}) {
    std::vector<std::string> arguments{"--text", text_path(), "--out", out(name), "--tokens", "520",        "--steps",
                                       "12",     "--width",   "16",    "--heads", "2",        "--kv-heads", "1"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome outcome = run_command(launcher, arguments);
    EXPECT_EQ(outcome.status, 0) << launcher.name << ": " << outcome.err;
    return outcome;
  }

  std::vector<double> losses(const Launcher& launcher, const std::string& name,
                             const std::vector<std::string>& flags = {}) {
    run(launcher, name, flags);
    return read_losses(out(name) / "loss.csv");
  }

  TemporaryFolder folder_;
};

TEST_F(LanguageModel, CurveIsTheSameForEveryRankCountPartitionAndExchange) {
  for (const std::string attention : {"nsa", "full"}) {
    const std::vector<double> expected = losses(one_rank(), attention, {"--attention", attention});
    ASSERT_EQ(expected.size(), 12u);
    EXPECT_NEAR(expected.front(), std::log(256.0), 0.2);  // before it has learnt, every byte is as likely
    EXPECT_LT(expected.back(), expected.front() - 0.3);
    const auto same = [&](const Launcher& launcher, const std::vector<std::string>& flags) {
      std::vector<std::string> all{"--attention", attention};
      all.insert(all.end(), flags.begin(), flags.end());
      const std::vector<double> found = losses(launcher, "other", all);
      EXPECT_LT(relative_deviation(expected, found), 1e-9) << attention << ", " << launcher.name;
    };
    same(threads(2), {"--exchange", "fetch"});
    same(threads(4), {"--exchange", "gather", "--partition", "contiguous"});
    for (const int ranks : {1, 2, 4})
      if (const std::optional<Launcher> launcher = processes(ranks)) same(*launcher, {});
  }
}

TEST_F(LanguageModel, RanksMayOwnNothing) {
  const std::vector<std::string> two_blocks{"--select-block", "320"};
  const std::vector<double> expected = losses(one_rank(), "one", two_blocks);
  EXPECT_LT(relative_deviation(expected, losses(threads(4), "four", two_blocks)), 1e-9);
}

TEST_F(LanguageModel, Float32CurveStartsTheSame) {
  const std::vector<double> expected = losses(one_rank(), "f64");
  EXPECT_LT(relative_deviation(expected, losses(threads(3), "f32", {"--dtype", "f32"})), 1e-4);
}

TEST_F(LanguageModel, TwoRunsAreEqualToTheLastDigit) {
  run(threads(3), "first");
  run(threads(3), "second");
  EXPECT_EQ(read_file(out("first") / "loss.csv"), read_file(out("second") / "loss.csv"));
}

TEST_F(LanguageModel, DrawsAnotherCurveAndReportsWhereTheFilesAre) {
  run(one_rank(), "first");
  const Outcome outcome = run(threads(2), "second", {"--compare", out("first") / "loss.csv"});
  EXPECT_THAT(outcome.out, HasSubstr("blocks fetched"));
  EXPECT_THAT(outcome.out, HasSubstr("unigram entropy of the text"));
  EXPECT_THAT(outcome.out, HasSubstr((out("second") / "loss.svg").string()));
  EXPECT_EQ(names_in(out("second")), (std::vector<std::string>{"loss.csv", "loss.svg", "model.bin"}));
  const std::string svg = read_file(out("second") / "loss.svg");
  std::size_t curves = 0;
  for (std::size_t at = svg.find("<polyline"); at != std::string::npos; at = svg.find("<polyline", at + 1)) ++curves;
  EXPECT_EQ(curves, 2u);
  EXPECT_THAT(svg, HasSubstr("unigram entropy"));
  EXPECT_THAT(svg, HasSubstr(">first<"));  // the folder of the other curve, not its path
  EXPECT_THAT(svg, HasSubstr("bytes per sequence"));
}

// The same bytes at every number of ranks, in a cache whose pages are dealt out to them, however the prompt is read.
TEST_F(LanguageModel, ItsModelContinuesATextAlikeOnEveryNumberOfRanks) {
  const Outcome trained =
      run_command(threads(2), {"--text", text_path(), "--out", out("model"), "--tokens", "520", "--steps", "150",
                               "--learning-rate", "0.03", "--width", "16", "--heads", "2", "--kv-heads", "1"});
  ASSERT_EQ(trained.status, 0) << trained.err;
  const std::string prompt = read_file(text_path()).substr(0, 150);
  const auto continued = [&](const Launcher& launcher, const std::string& chunk) {
    std::vector<std::string> command = launcher.before;
    for (const std::string& word :
         {std::string(CPNSA_TEST_GENERATE), std::string("--model"), (out("model") / "model.bin").string(),
          std::string("--prompt"), prompt, std::string("--tokens"), std::string("60"), std::string("--chunk"), chunk})
      command.push_back(word);
    command.insert(command.end(), launcher.after.begin(), launcher.after.end());
    const Outcome outcome = run_process(command);
    EXPECT_EQ(outcome.status, 0) << launcher.name << ": " << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("bytes read per token"));
    return outcome.out;
  };
  const std::string expected = continued(one_rank(), "256");
  ASSERT_EQ(expected.size(), prompt.size() + 60 + 1);
  EXPECT_EQ(expected.substr(0, prompt.size()), prompt);
  EXPECT_THAT(expected.substr(prompt.size()), HasSubstr(" of a text that repeats"));
  EXPECT_EQ(continued(one_rank(), "32"), expected);
  EXPECT_EQ(continued(threads(3), "64"), expected);
  for (const int ranks : {1, 2, 4})
    if (const std::optional<Launcher> launcher = processes(ranks)) {
      EXPECT_EQ(continued(*launcher, "256"), expected) << launcher->name;
    }
}

TEST_F(LanguageModel, AFileThatIsNoModelIsRefused) {
  const auto error_of = [&](const std::string& file) {
    const Outcome outcome = run_process({CPNSA_TEST_GENERATE, "--model", file});
    EXPECT_NE(outcome.status, 0);
    return outcome.err;
  };
  EXPECT_THAT(error_of(text_path()), HasSubstr("expected a model.bin of language_model"));
  EXPECT_THAT(error_of(out("none") / "model.bin"), HasSubstr("No such file"));
  run(one_rank(), "cut");
  const std::string whole = read_file(out("cut") / "model.bin");
  write_file(out("cut") / "model.bin", whole.substr(0, whole.size() - 1));
  EXPECT_THAT(error_of(out("cut") / "model.bin"), HasSubstr("bytes of values in place of"));
}

}  // namespace
}  // namespace cpnsa::test
