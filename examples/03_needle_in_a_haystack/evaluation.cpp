#include "evaluation.hpp"

#include <algorithm>
#include <chrono>

#include "batch.hpp"
#include "curriculum.hpp"
#include "examples/model/all_reduce.hpp"

namespace needle {
namespace {

constexpr std::uint64_t test_seed = 0x5eed;  // added to the seed: test haystacks are not in the training

// The number of right answers in this rank's rows, per band.
std::vector<double> right_answers(const Haystack& haystack, const Batch& batch, Instance& instance, int bands) {
  const std::span<const std::int64_t> positions = instance.positions();
  const std::vector<std::int32_t> predicted = instance.retriever().predict(batch.rows(positions));
  std::vector<int> band_at(haystack.tokens.size());
  for (const Question& question : haystack.questions)
    band_at[static_cast<std::size_t>(question.position)] = question.band;

  const std::vector<std::int32_t> targets = batch.targets_at(positions);
  std::vector<double> right(static_cast<std::size_t>(bands));
  for (std::size_t row = 0; row < targets.size(); ++row)
    if (targets[row] != model::ignored && targets[row] == predicted[row])
      right[static_cast<std::size_t>(band_at[static_cast<std::size_t>(positions[row])])] += 1;
  return right;
}

}  // namespace

Haystack evaluation_haystack(const Options& options, std::int64_t length, std::int64_t number) {
  return test_haystack(length, options.bands, options.seed + test_seed, static_cast<std::uint64_t>(length + number));
}

Grid evaluate(const Options& options, const Values& values, model::Operations& operations,
              cpnsa::Communicator& communicator, const SequenceObserver& observe) {
  model::AllReduce all_reduce(operations, communicator);
  Grid grid;
  grid.bands = options.bands;
  for (const Lesson& lesson : curriculum(options))
    grid.max_trained_length = std::max(grid.max_trained_length, lesson.length);
  for (std::int64_t length = options.shortest; length <= options.longest; length *= 2) {
    const auto begin = std::chrono::steady_clock::now();
    const std::int64_t document[] = {0, length};
    Instance instance(options, attention_of(options, operations.narrow(), Reach::all), document, operations,
                      communicator, values);
    std::vector<double> right(static_cast<std::size_t>(options.bands));
    for (std::int64_t sequence = 1; sequence <= options.sequences; ++sequence) {
      const Haystack haystack[] = {evaluation_haystack(options, length, sequence)};
      const std::vector<double> found = right_answers(haystack[0], Batch(haystack), instance, options.bands);
      for (std::size_t band = 0; band < right.size(); ++band) right[band] += found[band];
      observe(length, sequence, options.sequences);
    }
    all_reduce.sum_on_host(right);
    grid.lengths.push_back(length);
    grid.right.emplace_back(right.begin(), right.end());
    grid.asked.push_back(options.sequences * questions_per_band(options.bands));
    grid.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return grid;
}

}  // namespace needle
