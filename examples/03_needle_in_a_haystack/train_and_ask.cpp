#include "train_and_ask.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>

#include "cpnsa/error.hpp"
#include "curriculum.hpp"
#include "evaluation.hpp"
#include "report.hpp"
#include "tools/execution.hpp"

namespace needle {
namespace {

void create_folder(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error || !std::filesystem::is_directory(path))
    throw cpnsa::ArgumentError(fmt::format("--out: found {} ({}), expected a folder that can be created", path.string(),
                                           error ? error.message() : "no folder"));
}

[[noreturn]] void refuse(const std::filesystem::path& path) {
  throw cpnsa::ArgumentError(
      fmt::format("--out: found {} ({}), expected a file that can be written", path.string(), std::strerror(errno)));
}

void write_file(const std::filesystem::path& path, const std::string& content) {
  errno = 0;
  std::ofstream file(path, std::ios::binary);
  file << content;
  file.close();
  if (!file) refuse(path);
}

// Checks before the training that the results can be written, without changing anything.
void check_writable(const std::filesystem::path& path) {
  const bool there = std::filesystem::exists(path);
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::app);
  if (!file) refuse(path);
  file.close();
  if (!there) std::filesystem::remove(path);
}

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
  std::unique_ptr<model::Operations> operations;
  cpnsa::agree_on(control, "open", [&] {
    execution.emplace(options.execution, place);
    operations = model::make_operations(execution->device(), execution->dtype());
    if (first) {
      create_folder(options.out);
      for (const char* name : {numbers_name, picture_name}) check_writable(options.out / name);
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
      write_file(options.out / numbers_name, to_csv(result.grid));
      write_file(options.out / picture_name, to_heat_map(result.grid));
    }
  });
  if (first) print_summary(options, result.grid, result.training_seconds, result.evaluation_seconds);
}

}  // namespace needle
