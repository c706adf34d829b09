// The model's gradient, and that the evaluation counts what the model answers.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "batch.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "curriculum.hpp"
#include "evaluation.hpp"
#include "instance.hpp"

namespace cpnsa::test {
namespace {

using namespace needle;

// Against finite differences along random directions, of a part of the parameters at a time.
TEST(NeedleModel, GradientIsThatOfTheLoss) {
  const std::array<Haystack, 3> haystacks{training_haystack(64, 8, 0, 1, 1), training_haystack(200, 20, 24, 1, 2),
                                          training_haystack(64, 8, 0, 1, 3)};
  const Batch batch(haystacks);
  const double scale = 1.0 / static_cast<double>(batch.questions());
  Options options;
  for (const Reach reach : {Reach::all, Reach::summaries}) {
    threads::run_ranks(1, [&](Communicator& communicator) {
      const auto device = cpu::make_device();
      const auto operations = model::make_operations(*device, DType::f64);
      Instance instance(options, attention_of(options, DType::f64, reach), batch.cu_seqlens, *operations, communicator,
                        {});
      model::Parameters& parameters = instance.parameters();
      const auto loss = [&] {
        return scale * instance.retriever().forward_backward(batch.rows(instance.positions()),
                                                             batch.targets_at(instance.positions()), scale);
      };
      EXPECT_GT(loss(), std::log(static_cast<double>(needle::values)) - 1);
      const std::vector<double> gradients = model::read(*operations, parameters.gradients());
      const Values values = instance.values();

      constexpr std::size_t parts = 15;
      std::mt19937_64 random(11);
      for (std::size_t part = 0; part < parts; ++part) {
        const std::size_t begin = part * values.size() / parts, end = (part + 1) * values.size() / parts;
        std::vector<double> direction(values.size());
        double expected = 0;
        for (std::size_t i = begin; i < end; ++i) {
          direction[i] = static_cast<double>(random() >> 11) * 0x1p-52 - 1.0;
          expected += direction[i] * gradients[i];
        }
        const auto loss_at = [&](double distance) {
          Values moved = values;
          for (std::size_t i = 0; i < values.size(); ++i) moved[i] += distance * direction[i];
          model::write(*operations, parameters.values(), moved);
          parameters.round();
          return loss();
        };
        constexpr double distance = 1e-5;
        const double found = (loss_at(distance) - loss_at(-distance)) / (2 * distance);
        EXPECT_NEAR(found, expected, 1e-6 * std::abs(expected) + 1e-8) << "parameters " << begin << " to " << end;
      }
    });
  }
}

// Counted once more, question by question, from the predictions of one rank.
Grid counted(const Options& options, const Values& learnt) {
  Grid grid;
  grid.bands = options.bands;
  threads::run_ranks(1, [&](Communicator& communicator) {
    const auto device = cpu::make_device();
    const auto operations = model::make_operations(*device, DType::f32);
    for (std::int64_t length = options.shortest; length <= options.longest; length *= 2) {
      grid.lengths.push_back(length);
      grid.asked.push_back(0);
      grid.right.emplace_back(static_cast<std::size_t>(options.bands));
      for (std::int64_t sequence = 1; sequence <= options.sequences; ++sequence) {
        const std::array<Haystack, 1> haystack{evaluation_haystack(options, length, sequence)};
        const Batch batch(haystack);
        Instance instance(options, attention_of(options, DType::f32, Reach::all), batch.cu_seqlens, *operations,
                          communicator, learnt);
        const std::vector<std::int32_t> predicted = instance.retriever().predict(batch.rows(instance.positions()));
        for (const Question& question : haystack[0].questions) {
          const auto row = std::find(instance.positions().begin(), instance.positions().end(), question.position) -
                           instance.positions().begin();
          grid.asked.back() += question.band == 0;
          grid.right.back().at(static_cast<std::size_t>(question.band)) +=
              predicted.at(static_cast<std::size_t>(row)) == question.value;
        }
      }
    }
  });
  return grid;
}

// A short training on short sequences: far better than chance (1 of 64), also where sequences are longer.
TEST(NeedleEvaluation, CountsWhatAModelThatHasLearntAnswers) {
  Options options;
  options.tokens = 1024;
  options.steps = 1200;
  options.learning_rate = 0.005;
  options.shortest = 512;
  options.longest = 2048;
  options.bands = 3;
  options.sequences = 3;
  Values learnt;
  std::vector<Grid> grids(2);
  threads::run_ranks(2, [&](Communicator& communicator) {
    const auto device = cpu::make_device();
    const auto operations = model::make_operations(*device, DType::f32);
    const Values values = learn(options, *operations, communicator, [](auto...) {});
    grids.at(static_cast<std::size_t>(communicator.rank())) =
        evaluate(options, values, *operations, communicator, [](auto...) {});
    if (communicator.rank() == 0) learnt = values;
  });
  const Grid expected = counted(options, learnt);
  for (const Grid& grid : grids) {
    EXPECT_EQ(grid.lengths, (std::vector<std::int64_t>{512, 1024, 2048}));
    EXPECT_EQ(grid.asked, expected.asked);
    for (std::size_t length = 0; length < 3; ++length)
      for (std::size_t band = 0; band < 3; ++band) {
        // A rounding may turn an answer: ranks add up in another order.
        EXPECT_NEAR(static_cast<double>(grid.right.at(length).at(band)),
                    static_cast<double>(expected.right.at(length).at(band)), 1);
        EXPECT_GE(grid.accuracy(length, static_cast<int>(band)), 0.4);
      }
  }
}

// Not yet trained, the model is right as often as chance is, whatever the length and the depth.
TEST(NeedleEvaluation, AModelThatKnowsNothingIsAtChance) {
  Options options;
  options.shortest = 512;
  options.longest = 1024;
  options.bands = 4;
  options.sequences = 8;
  threads::run_ranks(2, [&](Communicator& communicator) {
    const auto device = cpu::make_device();
    const auto operations = model::make_operations(*device, DType::f32);
    const Grid grid = evaluate(options, {}, *operations, communicator, [](auto...) {});
    ASSERT_EQ(grid.lengths, (std::vector<std::int64_t>{512, 1024}));
    for (std::size_t length = 0; length < 2; ++length)
      for (int band = 0; band < 4; ++band) {
        EXPECT_EQ(grid.asked[length], 128);
        EXPECT_LE(grid.accuracy(length, band), 0.10);
      }
  });
}

}  // namespace
}  // namespace cpnsa::test
