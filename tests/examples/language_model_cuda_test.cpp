// The model on CUDA against the model on the CPU: the whole gradient, and curves at every number of ranks.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "cpnsa/cpu/device.hpp"
#include "cpnsa/cuda/device.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "examples/model/transformer.hpp"
#include "tests/examples/loss_curve.hpp"
#include "tests/support/numbers.hpp"
#include "tests/tools/command.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

using namespace model;
using testing::HasSubstr;
using testing::StartsWith;

struct Result {
  double loss;
  Values gradients;
  std::vector<std::int32_t> best;
};

// As many blocks as a query may see are selected: rounding then decides nothing.
AttentionKind kind_of_test(bool full, std::int64_t tokens) {
  AttentionKind kind = AttentionKind::nsa(4, 2, 16);
  kind.config.select_count = (tokens + kind.config.select_block - 1) / kind.config.select_block;
  return full ? kind.full(tokens) : kind;
}

// Values are rounded to bf16 on both devices, so that they start alike.
Result step(Device& device, DType dtype, bool full) {
  constexpr std::int64_t tokens = 300;
  Result result;
  threads::run_ranks(1, [&](Communicator& communicator) {
    const std::array<std::int64_t, 2> document{0, tokens};
    AttentionKind kind = kind_of_test(full, tokens);
    kind.options.dtype = dtype;
    const Partition partition = Partition::contiguous(document, kind.config.select_block, 1);
    const auto operations = make_operations(device, dtype);
    Parameters parameters(*operations, 5);
    Transformer transformer(parameters, kind, {2, 64, 256}, partition, communicator);
    write(*operations, parameters.values(), round_to(DType::bf16, read(*operations, parameters.values())));
    parameters.round();
    Random random(7);
    std::vector<std::int32_t> bytes, targets;
    for (std::int64_t i = 0; i < tokens; ++i) {
      bytes.push_back(static_cast<std::int32_t>(random.integer(0, 255)));
      targets.push_back(i % 5 == 0 ? ignored : static_cast<std::int32_t>(random.integer(0, 255)));
    }
    write(*operations, parameters.gradients(),
          Values(static_cast<std::size_t>(parameters.gradients().elements()), NAN));
    result.loss = transformer.forward_backward(bytes, targets, 1.0 / tokens);
    result.gradients = read(*operations, parameters.gradients());
    result.best = transformer.predict(bytes);
  });
  return result;
}

double norm(const Values& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

TEST(LanguageModelCuda, GradientIsTheCpus) {
  const auto cpu = cpu::make_device();
  const auto cuda = cuda::make_device();
  for (const bool full : {false, true}) {
    SCOPED_TRACE(full ? "full" : "nsa");
    const Result expected = step(*cpu, DType::f64, full), found = step(*cuda, DType::bf16, full);
    EXPECT_NEAR(found.loss, expected.loss, 2e-3 * expected.loss);
    ASSERT_EQ(found.gradients.size(), expected.gradients.size());
    // A part of the parameters at a time, so that small gradients count too.
    constexpr std::size_t parts = 30;
    double largest = 0;
    for (std::size_t part = 0; part < parts; ++part) {
      const auto at = [&](const Values& values, std::size_t index) {
        return values.begin() + static_cast<std::ptrdiff_t>(index * values.size() / parts);
      };
      const Values wanted(at(expected.gradients, part), at(expected.gradients, part + 1));
      Values error(at(found.gradients, part), at(found.gradients, part + 1));
      for (std::size_t i = 0; i < error.size(); ++i) error[i] -= wanted[i];
      const double deviation = norm(error) / norm(wanted);
      EXPECT_LT(deviation, 0.03) << "part " << part;
      largest = std::max(largest, deviation);
    }
    RecordProperty(full ? "full" : "nsa", fmt::format("{}", largest));
    fmt::print("largest deviation of a part of the gradient: {:.4f}, of the loss {:.2e}\n", largest,
               found.loss / expected.loss - 1);
    std::size_t different = 0;
    for (std::size_t i = 0; i < found.best.size(); ++i) different += found.best[i] != expected.best[i];
    EXPECT_LT(different, found.best.size() / 20);  // near-ties
  }
}

TEST(LanguageModelCuda, TwoStepsAreEqualToTheLastBit) {
  const auto cuda = cuda::make_device();
  const Result first = step(*cuda, DType::bf16, false), second = step(*cuda, DType::bf16, false);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.gradients, second.gradients);
}

class LanguageModelCudaCurve : public testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 400; ++i) text += fmt::format("line {} of a text that repeats itself\n", i * i % 97);
    write_file(folder_.path() / "text", text);
  }

  std::vector<double> losses(const Launcher& launcher, const std::vector<std::string>& flags) {
    const std::filesystem::path out = folder_.path() / "out";
    std::vector<std::string> arguments{"--text",     folder_.path() / "text",
                                       "--out",      out,
                                       "--tokens",   "520",
                                       "--steps",    "12",
                                       "--width",    "16",
                                       "--heads",    "2",
                                       "--kv-heads", "1"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome outcome = run_command(launcher, arguments);
    EXPECT_EQ(outcome.status, 0) << launcher.name << ": " << outcome.err;
    return read_losses(out / "loss.csv");
  }

  TemporaryFolder folder_;
};

TEST_F(LanguageModelCudaCurve, IsTheCpusAtEveryNumberOfRanks) {
  for (const std::string attention : {"nsa", "full"}) {
    const std::vector<double> expected = losses(one_rank(), {"--attention", attention});
    ASSERT_EQ(expected.size(), 12u);
    const auto close = [&](const Launcher& launcher, std::vector<std::string> flags) {
      flags.insert(flags.end(), {"--device", "cuda", "--attention", attention});
      const double deviation = relative_deviation(expected, losses(launcher, flags));
      EXPECT_LT(deviation, 5e-3) << attention << ", " << launcher.name;
      fmt::print("{} attention, {}: curve within {:.2e} of the CPU's\n", attention, launcher.name, deviation);
    };
    close(one_rank(), {});
    close(threads(2), {"--exchange", "fetch"});
    close(threads(4), {"--exchange", "gather", "--partition", "contiguous"});
    for (const int ranks : {2, 4}) {
      const std::optional<Launcher> launcher = processes(ranks);
      if (!launcher) continue;
      close(*launcher, {"--transport", "mpi"});
      if (CPNSA_TEST_NCCL) close(*launcher, {"--transport", "nccl"});
    }
  }
}

TEST_F(LanguageModelCudaCurve, RanksMayOwnNothing) {
  const std::vector<double> expected = losses(one_rank(), {"--select-block", "320"});
  EXPECT_LT(relative_deviation(expected, losses(threads(4), {"--select-block", "320", "--device", "cuda"})), 5e-3);
}

TEST_F(LanguageModelCudaCurve, TypesAreRefused) {
  for (const std::string dtype : {"f64", "f32"}) {
    const Outcome outcome = run_command(one_rank(), {"--text", folder_.path() / "text", "--tokens", "520", "--device",
                                                     "cuda", "--dtype", dtype, "--out", folder_.path() / "none"});
    EXPECT_NE(outcome.status, 0);
    EXPECT_THAT(outcome.err, StartsWith("language_model: error: "));
    EXPECT_THAT(outcome.err, HasSubstr("--dtype: found " + dtype + ", expected bf16"));
    EXPECT_EQ(names_in(folder_.path()), std::vector<std::string>{"text"});
  }
}

}  // namespace
}  // namespace cpnsa::test
