#include "train_and_ask.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <optional>

#include "cpnsa/error.hpp"
#include "curriculum.hpp"
#include "evaluation.hpp"
#include "report.hpp"
#include "tools/execution.hpp"
#include "tools/output_folder.hpp"

namespace needle {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

struct Result {
  Grid grid;
  double training_seconds = 0, evaluation_seconds = 0;
};

// If this rank fails alone, ends the waits of the others too; no effect if all ranks fail with the same error.
Result run(const Options& options, model::Operations& operations, cpnsa::Communicator& communicator) {
  const bool first = communicator.rank() == 0;
  Progress progress;
  Result result;
  try {
    auto begin = std::chrono::steady_clock::now();
    const Values values = learn(options, operations, communicator,
                                [&](const Lesson& lesson, std::int64_t step, Reach reach, double loss) {
                                  if (first) progress.step(lesson, step, reach, loss);
                                });
    result.training_seconds = seconds_since(begin);
    begin = std::chrono::steady_clock::now();
    result.grid = evaluate(options, values, operations, communicator,
                           [&](std::int64_t length, std::int64_t sequence, std::int64_t sequences) {
                             if (first) progress.sequence(length, sequence, sequences);
                           });
    result.evaluation_seconds = seconds_since(begin);
  } catch (const std::exception& error) {
    communicator.abort(error.what());
    throw;
  }
  return result;
}

}  // namespace

void train_and_ask(const Options& options, const cpnsa::tool::RankPlace& place) {
  cpnsa::Communicator& control = place.control;
  const bool first = control.rank() == 0;
  std::optional<cpnsa::tool::Execution> execution;
  std::optional<cpnsa::tool::OutputFolder> output;  // on rank 0
  std::unique_ptr<model::Operations> operations;
  cpnsa::agree_on(control, "open", [&] {
    execution.emplace(options.execution, place);
    operations = model::make_operations(execution->device(), execution->dtype());
    if (first) {
      output.emplace(options.out);
      for (const char* name : {numbers_name, picture_name}) output->check(name);
    }
  });
  cpnsa::agree(control, fmt::format("{} {}", options.describe(), execution->describe()));
  execution->connect();

  if (first) {
    fmt::print("{} rank{} ({}, {}), {} tokens a step\n", control.size(), control.size() == 1 ? "" : "s",
               execution->device().description(), execution->communicator().name(), options.tokens);
    std::fflush(stdout);
  }
  const Result result = run(options, *operations, execution->communicator());
  cpnsa::agree_on(control, "results", [&] {
    if (first) {
      output->add_text(numbers_name, to_csv(result.grid));
      output->add_text(picture_name, to_heat_map(result.grid));
      output->commit({});
    }
  });
  if (first) print_summary(options, result.grid, result.training_seconds, result.evaluation_seconds);
}

}  // namespace needle
